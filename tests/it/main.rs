//! Integration tests, in one binary so that they share one Postgres.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod dev_postgres;
mod run_feed;
