//! The way from Postgres' log to the seam, against real servers.

mod confirmed;
mod held;
mod lost;
mod majors;
mod order;
mod outage;
mod random;
mod refusals;
mod removal;
mod rows;
mod setup;
mod silence;
mod toast;
mod walsender;
