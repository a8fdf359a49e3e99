//! Integration tests, in one binary so that they share one Postgres.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod batch_feed;
mod browser;
mod catalogue;
mod clients;
mod consistency;
mod dev_command;
mod dev_engine;
mod dev_postgres;
mod dev_schema;
mod docker;
mod door;
mod limits;
mod list_feed;
mod live;
mod mint;
mod network;
mod ops;
mod reader;
mod replication;
mod run_feed;
mod sdk;
mod secrets;
mod streams;
