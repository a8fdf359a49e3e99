//! Streams under load: who writes them, who reads them, and the servers that both do that at.

pub mod bare;
pub mod chunk;
pub mod lite;
pub mod readers;
pub mod session;
pub mod stand;
pub mod tally;
pub mod writing;
