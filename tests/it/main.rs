//! Integration tests, in one binary so that they share one Postgres.

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod dev_engine;
mod dev_postgres;
mod dev_schema;
