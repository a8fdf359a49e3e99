//! A whole Trigger.dev stand-in for a machine that has none: a throw-away Postgres with schema and
//! seed, and an engine that keeps runs moving. Behind `runwire dev`, and under the tests.

mod account;
#[cfg(feature = "embedded")]
mod append_session;
pub mod batch;
pub mod binaries;
mod command;
pub mod database;
mod directory;
pub mod engine;
mod error;
mod guardian;
mod id;
pub mod package;
pub mod postgres;
pub mod run;
pub mod seed;
mod welcome;

pub use batch::{TriggeredBatch, complete_batch, trigger_batch};
pub use binaries::{Binaries, BinariesError};
pub use command::{DevArgs, DevError, run as run_command};
pub use database::DatabaseError;
pub use engine::Engine;
pub use error::StartError;
pub use postgres::{Options, Postgres, StopMode};
pub use run::{RunSpec, StepError, TriggeredRun, trigger_run};
pub use seed::{Environment, Seeded};
