//! Streams of runs: records in an S2 store, written by tasks and read by clients
//! (`streams-and-sessions.md`). It knows no HTTP routes and no runs.
//!
//! [`Store`] keeps the records, [`Hub`] shares one tail of a stream among all who read it,
//! [`access`] says who may write.

pub mod access;
mod batch;
#[cfg(feature = "embedded")]
mod embedded;
mod frames;
mod hub;
#[cfg(all(test, feature = "embedded"))]
mod hub_tests;
mod paced;
mod past;
#[cfg(test)]
mod past_tests;
mod recent;
#[cfg(test)]
mod recent_tests;
mod remote;
mod remote_events;
mod remote_tokens;
#[cfg(test)]
mod scripted;
mod secret;
mod service;
mod store;
mod turns;

pub use batch::{Batch, BatchBuilder};
pub use frames::{DONE, Frames, ping};
pub use hub::{Hub, Next, Reader};
pub use paced::Paced;
pub use remote::{Remote, RemoteError, RemoteSettings, Token};
pub use remote_tokens::WriterTokens;
pub use secret::{Secret, SecretError};
pub use service::ServiceTokens;
pub use store::{Event, Position, Reading, Start, Store, StoreError, StoreSettings, StreamId};
