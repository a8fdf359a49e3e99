//! Nothing is lost and nothing goes back in time (`postgres.md`, 5.6): at random, and in the forced
//! interleavings that chance hardly finds.

mod accidents;
mod ahead;
mod behind;
mod crash;
mod followed;
mod held;
mod holds;
mod hung;
mod hung_slot;
mod lists;
mod lists_resumed;
mod merged;
pub mod node;
mod population;
mod random;
mod standby;
mod subscriber;
mod writers;
