//! The feeds: a window of recent changes, the rule that joins snapshots to it, and the polls that
//! wait on it. They know no HTTP and no socket (`docs/ARCHITECTURE.md`).

mod asked;
mod body;
mod chunks;
mod facts;
mod feeds;
mod filter;
mod flights;
mod follow;
pub mod handle;
mod image;
mod intake;
mod join;
mod key;
mod news;
mod open;
mod pace;
mod poll;
pub mod position;
mod settlement;
mod topic;
mod untold;
mod waiters;
mod window;
pub mod wire;

pub use body::Body;
pub use facts::Facts;
pub use feeds::{Answer, FeedSettings, Feeds, Outcome, Unavailable, View};
pub use follow::{Next, Update};
pub use key::{FeedKey, Runs};
pub use open::Open;
pub use poll::{Poll, Subscription};
pub use window::{Feed, Limits};

#[cfg(test)]
mod law_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod poll_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod untold_tests;
