//! The SQL side of runs: rows, read together with what the query saw.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::PgPool;

use super::lease::Lease;
use super::list::{self, List, ListQuery};
use super::many::{self, By, Carry, Found, RunId};
use super::tuple::{CellError, Tuple};
use crate::postgres::{Lsn, ParseLsnError, ParseSnapshotError, Snapshot};

/// What a query saw of the database, so that its rows can be joined to the stream.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The transactions whose effects the rows hold.
    pub snapshot: Snapshot,
    /// The end of the log, read after the snapshot was taken.
    pub insert_lsn: Lsn,
}

/// A run as a query returned it.
#[derive(Debug)]
pub struct StoredRun {
    /// The row.
    pub row: Tuple,
    /// The friendly id of the batch that it belongs to.
    pub batch_friendly_id: Option<String>,
}

/// How far the server's log has come.
#[derive(Clone, Debug)]
pub struct ServerState {
    /// What a query sees now.
    pub snapshot: Snapshot,
    /// The log is durable up to here, and only so far does the stream reach.
    pub flush_lsn: Lsn,
    /// Where the next record of the log will go.
    pub insert_lsn: Lsn,
}

/// The database did not answer, or not in a form that can be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The query failed or did not end in time.
    #[error("the database did not answer: {0}")]
    Sql(#[from] sqlx::Error),
    /// A value was not in the form that Postgres documents.
    #[error("unreadable answer: {0}")]
    Lsn(#[from] ParseLsnError),
    /// A value was not in the form that Postgres documents.
    #[error("unreadable answer: {0}")]
    Snapshot(#[from] ParseSnapshotError),
    /// A cell was not text.
    #[error("unreadable answer: {0}")]
    Cell(#[from] CellError),
    /// Not even what the query saw came back.
    #[error("unreadable answer: no row")]
    NoRow,
    /// The rows of a list came in another order than was asked for.
    #[error("unreadable answer: rows out of order")]
    Disorder,
}

impl StoreError {
    /// Whether a row could not be read, rather than the database: asked for without that row, it
    /// would have answered.
    pub fn is_of_the_data(&self) -> bool {
        let StoreError::Sql(sqlx::Error::Database(error)) = self else {
            return !matches!(self, StoreError::Sql(_));
        };
        // Data exceptions, and what is corrupted.
        error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("XX"))
    }
}

/// Reads runs from the primary: plain statements, with no bound on how many are under way. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct RunStore {
    pool: PgPool,
}

impl RunStore {
    /// A store on `pool`, which must lead to the primary and print values as the stream does.
    pub fn new(pool: PgPool) -> Self {
        RunStore { pool }
    }

    /// Many runs in one statement, as far as it may carry them; what was found is in the order of
    /// what was `asked`. Every cell is known, those stored out of line as well.
    pub async fn runs(
        &self,
        by: By,
        asked: &[RunId],
        carry: Carry,
    ) -> Result<(Seen, Vec<Found>), StoreError> {
        metrics::counter!(crate::telemetry::SNAPSHOT_QUERIES).increment(1);
        many::read(&self.pool, by, asked, carry).await
    }

    /// The runs of a list, newest first, as far as its bounds let them in.
    pub async fn list(&self, query: &ListQuery) -> Result<List, StoreError> {
        metrics::counter!(crate::telemetry::SNAPSHOT_QUERIES).increment(1);
        list::read(&self.pool, query).await
    }

    /// The internal id of an environment's batch.
    pub async fn batch_id(
        &self,
        friendly_id: &str,
        environment: &str,
    ) -> Result<Option<Arc<str>>, StoreError> {
        // Postgres cannot hold NUL in a text, and would fail instead of finding nothing.
        if friendly_id.contains('\0') {
            return Ok(None);
        }
        let mut lease = Lease::of(&self.pool).await?;
        let id: Option<String> = sqlx::query_scalar(
            r#"SELECT id FROM "BatchTaskRun" WHERE "friendlyId" = $1 AND "runtimeEnvironmentId" = $2"#,
        )
        .bind(friendly_id)
        .bind(environment)
        .fetch_optional(lease.connection()?)
        .await?;
        lease.done();
        Ok(id.map(Arc::from))
    }

    /// How far the server is.
    pub async fn server_state(&self) -> Result<ServerState, StoreError> {
        let mut lease = Lease::of(&self.pool).await?;
        let row = sqlx::query(
            "SELECT pg_current_snapshot()::text, pg_current_wal_flush_lsn()::text, pg_current_wal_insert_lsn()::text",
        )
        .fetch_one(lease.connection()?)
        .await?;
        lease.done();
        Ok(ServerState {
            snapshot: row.try_get::<&str, _>(0)?.parse()?,
            flush_lsn: row.try_get::<&str, _>(1)?.parse()?,
            insert_lsn: row.try_get::<&str, _>(2)?.parse()?,
        })
    }
}
