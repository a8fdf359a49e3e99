//! What the integration tests stand on.

pub mod balancer;
pub mod browser;
pub mod certificate;
pub mod chance;
pub mod cluster;
pub mod feed;
pub mod gateway;
pub mod npm;
pub mod packages;
pub mod process;
pub mod program;
pub mod redis;
pub mod runs;
pub mod s2;
pub mod scratch;
pub mod stream;
pub mod streams;
pub mod token;
