//! The seam: what the stream says, whoever reads it. The feed consumes these and knows no socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::keys::KeyChange;
use crate::postgres::{Lsn, Snapshot};
use crate::runs::tuple::Tuple;

/// One step of the stream, in commit order.
#[derive(Debug)]
pub enum Event {
    /// A committed transaction, whole.
    Tx(Tx),
    /// Every transaction whose commit LSN is below this one has been delivered.
    Progress(Lsn),
    /// What was delivered before can no longer be continued.
    Reset(Reset),
    /// The connection was made anew and the stream goes on where it was. The server may have
    /// crashed meanwhile, and given ids of lost transactions out again.
    Resumed {
        /// Where the server's durable log ended then: the stream had not come further before.
        server: Lsn,
    },
}

/// A committed transaction with the changes that matter here; others leave it empty.
#[derive(Debug)]
pub struct Tx {
    /// The top-level transaction id, its low 32 bits.
    pub xid: u32,
    /// Where its commit record begins. Strictly rising from one transaction to the next.
    pub commit_lsn: Lsn,
    /// Where its commit record ends: everything that commits below has been delivered.
    pub end_lsn: Lsn,
    /// When it committed: microseconds since 1970 by the database's clock.
    pub commit_time: i64,
    /// Its changes in the order they were made.
    pub changes: Vec<Change>,
}

/// One row operation.
#[derive(Debug)]
pub enum Change {
    /// A run row was inserted.
    RunInserted(Tuple),
    /// A run row was updated. Cells of `new` may be unchanged; `old` is there under REPLICA IDENTITY
    /// FULL only.
    RunUpdated {
        /// The row as it is now.
        new: Tuple,
        /// The row as it was.
        old: Option<Box<Tuple>>,
    },
    /// The run of this internal id was deleted.
    RunDeleted(String),
    /// All runs were deleted at once.
    RunsTruncated,
    /// The transaction was too large to be carried: anything may have changed.
    TooLarge,
    /// A row of a table that credentials are checked against changed.
    Key(KeyChange),
}

/// Why and from where the stream starts anew.
#[derive(Debug)]
pub struct Reset {
    /// Names the database's history: positions of another epoch mean nothing here.
    pub epoch: u64,
    /// Changes that committed at or after this position will be delivered; earlier ones will not.
    pub floor: Lsn,
    /// Where the server's durable log ended when the connection was made.
    pub server: Lsn,
    /// What a query must show before its rows may be joined to this stream: all that the slot
    /// regards as past. `None` where the slot has been read before.
    pub past: Option<Snapshot>,
}

/// What the stream's two ends tell each other outside of the stream. Positions only rise.
#[derive(Debug, Default)]
pub struct Marks {
    settled: AtomicU64,
    server: AtomicU64,
}

impl Marks {
    /// Marks at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Every transaction that commits below `lsn` has been shown by a finished query, so that the
    /// slot may forget it.
    pub fn settle(&self, lsn: Lsn) {
        self.settled.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// See [`Marks::settle`].
    pub fn settled(&self) -> Lsn {
        Lsn(self.settled.load(Ordering::Acquire))
    }

    /// The server's own log had reached `lsn` (flushed) when it was last asked.
    pub fn saw_server_at(&self, lsn: Lsn) {
        self.server.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// See [`Marks::saw_server_at`].
    pub fn server(&self) -> Lsn {
        Lsn(self.server.load(Ordering::Acquire))
    }
}
