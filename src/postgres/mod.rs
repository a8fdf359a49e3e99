//! Postgres' own values, as everything above speaks of them: WAL positions and transaction snapshots.

mod lsn;
mod snapshot;

pub use lsn::{Lsn, ParseLsnError};
pub use snapshot::{ParseSnapshotError, Snapshot};
