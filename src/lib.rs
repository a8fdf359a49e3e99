//! Runwire: a realtime gateway for Trigger.dev.
//!
//! Data moves one way: Postgres' WAL → [`replication`] → `feed` → `http` → clients.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod dev;
pub mod postgres;
pub mod replication;
pub mod runs;
