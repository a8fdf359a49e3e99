//! What the integration tests stand on.

pub mod cluster;
pub mod gateway;
pub mod npm;
pub mod program;
pub mod runs;
pub mod stream;
pub mod token;
