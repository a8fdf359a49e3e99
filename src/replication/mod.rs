//! Postgres' logical replication stream, turned into committed transactions of run rows.

mod assembler;
pub mod change;
mod feedback;
pub mod keys;
pub mod pgoutput;
mod published;
mod removal;
mod session;
mod setup;
mod slot;
mod source;
mod status;

use std::time::Duration;

pub use published::{Unpublished, unpublished};
pub use removal::{DropError, Dropped, drop_slot};
pub use setup::SetupError;
pub use slot::retained_wal;
pub use source::Source;
pub use status::Status;

use crate::postgres::ConnectionUrl;

/// How the log is read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The primary, without a pooler in between.
    pub url: ConnectionUrl,
    /// The slot's name.
    pub slot: String,
    /// The publication's name.
    pub publication: String,
    /// Whether the slot outlives the connection.
    pub slot_kind: SlotKind,
    /// A transaction whose rows take more is not carried: everybody starts again instead. In bytes.
    pub max_tx_bytes: usize,
    /// An operator's counter: raising it makes every client start again.
    pub epoch_counter: u32,
    /// A connection that brings nothing for this long while the server's log grows is given up, unless
    /// the server still regards it as alive: it may be decoding a large transaction of other tables.
    pub silence: Duration,
    /// By how much a permanent slot's confirmed position trails, so that a restart finds the recent
    /// changes again.
    pub trail: Duration,
}

/// Whether a slot outlives its connection. A slot must never be able to fill the server's disk, also
/// when Runwire is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Permanent where the server bounds what a slot may retain, else temporary.
    Auto,
    /// Gone with the connection.
    Temporary,
    /// Kept, whatever the server's bounds are.
    Permanent,
}

impl Settings {
    /// The defaults for this server and these names.
    pub fn new(url: ConnectionUrl, slot: String, publication: String) -> Self {
        Settings {
            url,
            slot,
            publication,
            slot_kind: SlotKind::Auto,
            max_tx_bytes: 128 << 20,
            epoch_counter: 0,
            silence: Duration::from_secs(20),
            trail: Duration::from_secs(40),
        }
    }
}
