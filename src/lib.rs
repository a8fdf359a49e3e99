//! Runwire: a realtime gateway for Trigger.dev.
//!
//! Data moves one way: Postgres' WAL → [`replication`] → [`feed`] → [`http`] → clients.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod auth;
pub mod config;
pub mod dev;
pub mod feed;
pub mod http;
pub mod lease;
pub mod limits;
pub mod logs;
pub mod postgres;
pub mod readiness;
pub mod replication;
pub mod runs;
pub mod server;
pub mod streams;
pub mod telemetry;
mod ticker;
pub mod token_command;
mod wake;
