//! What may be under way at once: places and bytes, with fair shares for every environment.
//!
//! Nobody waits without a bound: a queue holds so many, each until its deadline, and when it is full
//! the environment with the most waiting loses its newest.

pub mod budget;
pub mod gate;
pub mod queue;
mod tally;
#[cfg(test)]
mod tests;

pub use budget::{Budget, Share};
pub use gate::{Gate, Place};

/// Too many wait already, or the deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no place in time")]
pub struct Full;
