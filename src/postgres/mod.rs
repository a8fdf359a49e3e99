//! Postgres' own values, as everything above speaks of them: WAL positions, transaction snapshots
//! and connection URLs.

mod lsn;
mod snapshot;
mod url;

pub use lsn::{Lsn, ParseLsnError};
pub use snapshot::{ParseSnapshotError, Snapshot};
pub use url::{ConnectionUrl, UrlError};
