//! What is measured: one file per scenario, with its options, its trial and its table.

pub mod aborts;
pub mod backlog;
pub mod cold;
mod comparison;
pub mod deliveries;
pub mod door;
pub mod flood;
pub mod idle;
pub mod index;
pub mod intake;
pub mod lone;
pub mod polls;
mod recorded;
mod registration;
pub mod streams;
pub mod updates;
pub mod walsender;
