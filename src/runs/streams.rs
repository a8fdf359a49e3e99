//! What a stream's routes need of runs: whose it is, where it is kept, and its key on the row
//! (`streams-and-sessions.md`, 3).

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgPool;

use super::lease::Lease;
use crate::limits::Gate;

/// For how long a statement may take, its wait for a turn included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who waits for a turn, at most.
const WAITING: usize = 10_000;

/// A run as its streams see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRun {
    /// The internal id.
    pub id: String,
    /// The friendly id.
    pub friendly_id: String,
    /// `v1` (Redis) or `v2` (S2).
    pub version: String,
    /// The basin of its organization, if it has one.
    pub basin: Option<String>,
    /// Whether it has ended.
    pub completed: bool,
    /// Its organization.
    pub organization: String,
    /// What its environment is called in names.
    pub environment_slug: String,
    /// Its task.
    pub task: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The friendly id of its batch.
    pub batch: Option<String>,
    /// The keys of its streams.
    pub keys: Vec<String>,
}

/// Which run a stream is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The run that is named.
    Own,
    /// The one that triggered it.
    Parent,
    /// The first one of all.
    Root,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// No such run in this environment.
    NoRun,
    /// It has no parent or root.
    NoTarget,
    /// The run that is meant.
    Found(Box<StreamRun>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum StreamRunsError {
    /// Too many ask, or the database does not answer.
    #[error("the database did not answer")]
    Unavailable,
    /// The role may not write the row.
    #[error(
        r#"the gateway's database role lacks a right: GRANT UPDATE ("realtimeStreams", "updatedAt") ON "TaskRun""#
    )]
    MissingGrant,
}

/// Statements about streams, on a pool of their own: neither snapshots nor credentials wait for them.
#[derive(Clone, Debug)]
pub struct StreamRuns {
    pool: PgPool,
    gate: Gate,
}

const RUN: &str = r#"
SELECT t.id, t."friendlyId", t."realtimeStreamsVersion" AS version, t."streamBasinName" AS basin,
       t."completedAt" IS NOT NULL AS completed, e."organizationId" AS organization, e.slug,
       t."taskIdentifier" AS task, coalesce(t."runTags", '{}') AS tags, b."friendlyId" AS batch,
       coalesce(t."realtimeStreams", '{}') AS keys
FROM "TaskRun" r
JOIN "RuntimeEnvironment" e ON e.id = r."runtimeEnvironmentId"
LEFT JOIN "TaskRun" t ON t."runtimeEnvironmentId" = r."runtimeEnvironmentId" AND t.id =
  CASE $3 WHEN 'self' THEN r.id WHEN 'parent' THEN r."parentTaskRunId" ELSE r."rootTaskRunId" END
LEFT JOIN "BatchTaskRun" b ON b.id = t."batchId"
WHERE r."friendlyId" = $1 AND r."runtimeEnvironmentId" = $2
LIMIT 1"#;

/// Looked at again under the row's lock, so that a key is there once however many come at once.
const PUSH: &str = r#"
UPDATE "TaskRun" SET "realtimeStreams" = coalesce("realtimeStreams", '{}') || $2::text,
  "updatedAt" = clock_timestamp() AT TIME ZONE 'utc'
WHERE id = $1 AND NOT ($2 = ANY (coalesce("realtimeStreams", '{}')))"#;

impl StreamRuns {
    /// On this pool, of so many connections, which nobody else should use.
    pub fn new(pool: PgPool, connections: usize) -> StreamRuns {
        StreamRuns { pool, gate: Gate::new(connections, WAITING, "stream-row") }
    }

    /// The run whose stream is meant.
    pub async fn find(
        &self,
        environment: &str,
        friendly_id: &str,
        target: Target,
    ) -> Result<Lookup, StreamRunsError> {
        // Postgres cannot hold NUL in a text, and would fail instead of finding nothing.
        if friendly_id.contains('\0') {
            return Ok(Lookup::NoRun);
        }
        let target = match target {
            Target::Own => "self",
            Target::Parent => "parent",
            Target::Root => "root",
        };
        let read = async {
            let mut lease = Lease::of(&self.pool).await?;
            let query = sqlx::query(RUN).bind(friendly_id).bind(environment).bind(target);
            let row = query.fetch_optional(lease.connection()?).await?;
            lease.done();
            let Some(row) = row else { return Ok(Lookup::NoRun) };
            let Some(id) = row.try_get::<Option<String>, _>("id")? else {
                return Ok(Lookup::NoTarget);
            };
            Ok(Lookup::Found(Box::new(StreamRun {
                id,
                friendly_id: row.try_get("friendlyId")?,
                version: row.try_get("version")?,
                basin: row.try_get("basin")?,
                completed: row.try_get("completed")?,
                organization: row.try_get("organization")?,
                environment_slug: row.try_get("slug")?,
                task: row.try_get("task")?,
                tags: row.try_get("tags")?,
                batch: row.try_get("batch")?,
                keys: row.try_get("keys")?,
            })))
        };
        self.patiently(environment, read).await
    }

    /// Puts the stream's key on the run's row, unless it is there.
    pub async fn push_key(
        &self,
        environment: &str,
        run: &StreamRun,
        key: &str,
    ) -> Result<(), StreamRunsError> {
        if run.keys.iter().any(|known| known == key) {
            return Ok(());
        }
        let write = async {
            let mut lease = Lease::of(&self.pool).await?;
            sqlx::query(PUSH).bind(&run.id).bind(key).execute(lease.connection()?).await?;
            lease.done();
            Ok(())
        };
        self.patiently(environment, write).await
    }

    async fn patiently<T>(
        &self,
        environment: &str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StreamRunsError> {
        let work = async {
            let place = self.gate.enter(environment, PATIENCE).await;
            let _place = place.map_err(|_| StreamRunsError::Unavailable)?;
            work.await.map_err(|error| {
                let code = error.as_database_error().and_then(|error| error.code());
                if code.as_deref() == Some("42501") {
                    return StreamRunsError::MissingGrant;
                }
                tracing::warn!(%error, "a stream's run could not be read or written");
                StreamRunsError::Unavailable
            })
        };
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => done,
            Err(_) => Err(StreamRunsError::Unavailable),
        }
    }
}
