//! What may be under way at once: places and bytes, with fair shares for every environment; and what
//! requests meet at the door ([`requests`]).
//!
//! Nobody waits without a bound: a queue holds so many, each until its deadline, and when it is full
//! the environment with the most waiting loses its newest.

pub mod admission;
pub mod budget;
pub mod fleet;
pub mod gate;
pub mod live;
pub mod queue;
pub mod rate;
pub mod requests;
mod tally;
#[cfg(test)]
mod tests;

pub use admission::Admitted;
pub use budget::{Budget, Share};
pub use fleet::Fleet;
pub use gate::{Gate, Place};
pub use live::{Live, LivePlace, LiveSettings};
pub use rate::Quantity;
pub use requests::{RequestLimits, RequestSettings};

/// Too many wait already, or the deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no place in time")]
pub struct Full;
