//! A whole Trigger.dev stand-in for a machine that has none: a throw-away Postgres with schema and
//! seed, and an engine that keeps runs moving. Behind `runwire dev`, and under the tests.

mod account;
pub mod binaries;
pub mod database;
mod directory;
mod error;

mod guardian;
pub mod package;
pub mod postgres;
pub mod seed;

pub use binaries::{Binaries, BinariesError};
pub use database::DatabaseError;
pub use error::StartError;
pub use postgres::{Options, Postgres, StopMode};
pub use seed::Seeded;
