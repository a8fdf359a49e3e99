//! Nothing is lost and nothing goes back in time (`postgres.md`, 5.6): at random, and in the forced
//! interleavings that chance hardly finds.

mod ahead;
mod behind;
mod crash;
mod holds;
mod hung;
mod hung_slot;
pub mod node;
mod random;
mod standby;
mod subscriber;
mod writers;
