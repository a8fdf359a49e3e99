//! What the integration tests stand on.
#![allow(dead_code)] // some of it waits for the feed's tests

pub mod cluster;
pub mod npm;
