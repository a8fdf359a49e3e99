//! The feed: a window of recent changes, the rule that joins snapshots to it, and the polls that
//! wait on it. It knows no HTTP and no socket (`docs/ARCHITECTURE.md`).

pub mod handle;
mod image;
mod intake;
pub mod position;
mod run;
mod settlement;
pub mod snapshot;
mod topic;
mod waiters;
mod window;
pub mod wire;

pub use run::{Answer, Facts, Outcome, Poll, RunFeeds, RunKey};
pub use snapshot::Open;
pub use window::{Feed, Limits};

#[cfg(test)]
mod poll_tests;
#[cfg(test)]
mod tests;
