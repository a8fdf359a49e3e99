//! The SQL side of runs: one row, read together with what the query saw.

use bytes::{BufMut, Bytes, BytesMut};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::columns::Column;
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
}

/// Reads runs from the primary. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RunStore {
    pool: PgPool,
    run_sql: &'static str,
}

impl RunStore {
    /// A store on `pool`, which must lead to the primary and print values as the stream does.
    pub fn new(pool: PgPool) -> Self {
        let cells: Vec<String> =
            Column::ALL.iter().map(|column| format!(r#"t."{}"::text"#, column.name())).collect();
        // The one-row source comes first, so that a run that is not there still leaves a snapshot.
        let sql = format!(
            r#"SELECT seen.snapshot, seen.lsn, run.* FROM
               (SELECT pg_current_snapshot()::text AS snapshot, pg_current_wal_insert_lsn()::text AS lsn) seen
               LEFT JOIN (
                 SELECT {}, b."friendlyId" FROM "TaskRun" t
                 LEFT JOIN "BatchTaskRun" b ON b.id = t."batchId"
                 WHERE t."friendlyId" = $1 AND t."runtimeEnvironmentId" = $2
               ) run ON true"#,
            cells.join(", ")
        );
        // One store lives as long as the process.
        RunStore { pool, run_sql: sql.leak() }
    }

    /// The run of this friendly id in this environment, and what the query saw.
    pub async fn run(
        &self,
        friendly_id: &str,
        environment_id: &str,
    ) -> Result<(Seen, Option<StoredRun>), StoreError> {
        metrics::counter!(crate::telemetry::SNAPSHOT_QUERIES).increment(1);
        let row = sqlx::query(self.run_sql)
            .bind(friendly_id)
            .bind(environment_id)
            .fetch_one(&self.pool)
            .await?;
        let seen = Seen {
            snapshot: row.try_get::<&str, _>(0)?.parse()?,
            insert_lsn: row.try_get::<&str, _>(1)?.parse()?,
        };
        if row.try_get::<Option<&str>, _>(2)?.is_none() {
            return Ok((seen, None));
        }
        let batch_friendly_id = row.try_get(2 + Column::COUNT)?;
        Ok((seen, Some(StoredRun { row: tuple(&row, 2)?, batch_friendly_id })))
    }

    /// How far the server is.
    pub async fn server_state(&self) -> Result<ServerState, StoreError> {
        let row = sqlx::query(
            "SELECT pg_current_snapshot()::text, pg_current_wal_flush_lsn()::text, pg_current_wal_insert_lsn()::text",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(ServerState {
            snapshot: row.try_get::<&str, _>(0)?.parse()?,
            flush_lsn: row.try_get::<&str, _>(1)?.parse()?,
            insert_lsn: row.try_get::<&str, _>(2)?.parse()?,
        })
    }
}

/// The columns from index `first` on, in the order of [`Column::ALL`].
fn tuple(row: &PgRow, first: usize) -> Result<Tuple, StoreError> {
    let mut data = BytesMut::new();
    let mut spans = [None; Column::COUNT];
    for column in Column::ALL {
        if let Some(text) = row.try_get::<Option<&str>, _>(first + column as usize)? {
            spans[column as usize] = Some((data.len(), data.len() + text.len()));
            data.put_slice(text.as_bytes());
        }
    }
    let mut tuple = Tuple::new(Bytes::from(data));
    for column in Column::ALL {
        if let Some((start, end)) = spans[column as usize] {
            tuple.set_text(column, start, end)?;
        }
    }
    Ok(tuple)
}
