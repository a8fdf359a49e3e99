//! The steps of a run's life, each by the SQL that Trigger.dev's engine would send. The simulated
//! engine and the tests take the same steps.
//!
//! Runs go by their friendly ids. Every step sets `updatedAt`, since no default or trigger does.

use sqlx::PgExecutor;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use super::id;
use super::seed::Environment;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is no such run (or batch).
    #[error("{0} does not exist")]
    Unknown(String),
    /// The database said no.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// A run to trigger.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The task.
    pub task: String,
    /// JSON text.
    pub payload: String,
    /// `None` is NULL, which is what the engine writes for no tags.
    pub tags: Option<Vec<String>>,
    /// JSON text.
    pub metadata: Option<String>,
    /// The internal id of the batch it is a member of.
    pub batch: Option<String>,
    /// Delays it by so many seconds.
    pub delay_seconds: Option<i32>,
    /// How long it may wait, as `10m`.
    pub ttl: Option<String>,
    /// Its queue; by default the task's own.
    pub queue: Option<String>,
    /// Whether it is a test run.
    pub is_test: bool,
}

impl RunSpec {
    /// A plain run of a task.
    pub fn new(task: &str) -> RunSpec {
        RunSpec {
            task: task.to_owned(),
            payload: "{}".to_owned(),
            tags: None,
            metadata: None,
            batch: None,
            delay_seconds: None,
            ttl: None,
            queue: None,
            is_test: false,
        }
    }
}

/// A run that was triggered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggeredRun {
    /// `TaskRun.id`.
    pub id: String,
    /// `TaskRun.friendlyId`, as clients know it.
    pub friendly_id: String,
}

/// Inserts a run: `PENDING` and queued, or `DELAYED`.
pub async fn trigger_run(
    database: impl PgExecutor<'_>,
    environment: &Environment,
    spec: RunSpec,
) -> Result<TriggeredRun, StepError> {
    let id = id::cuid();
    let friendly_id = format!("run_{id}");
    let queue = spec.queue.unwrap_or_else(|| format!("task/{}", spec.task));
    sqlx::query(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", engine, status, "taskIdentifier", payload, queue,
               "traceId", "spanId", "runtimeEnvironmentId", "environmentType", "projectId",
               "organizationId", "runTags", "batchId", metadata, ttl, "isTest", "baseCostInCents",
               "realtimeStreamsVersion", "createdAt", "updatedAt", "queuedAt", "delayUntil")
           SELECT $1, $2, 'V2',
               CASE WHEN $3::int IS NULL THEN 'PENDING' ELSE 'DELAYED' END::"TaskRunStatus", $4, $5, $6,
               $7, $8, $9, $10::"RuntimeEnvironmentType", $11, $12, $13, $14, $15, $16, $17, 0.0025,
               'v2', at, at, CASE WHEN $3 IS NULL THEN at END, at + make_interval(secs => $3)
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at)"#,
    )
    .bind(&id)
    .bind(&friendly_id)
    .bind(spec.delay_seconds)
    .bind(spec.task)
    .bind(spec.payload)
    .bind(queue)
    .bind(id::hex(32))
    .bind(id::hex(16))
    .bind(environment.id)
    .bind(environment.kind)
    .bind(environment.project)
    .bind(environment.organization)
    .bind(spec.tags)
    .bind(spec.batch)
    .bind(spec.metadata)
    .bind(spec.ttl)
    .bind(spec.is_test)
    .execute(database)
    .await?;
    Ok(TriggeredRun { id, friendly_id })
}

/// Moves a run to a status, with the time that belongs to it: `queuedAt` with `PENDING`, `startedAt`
/// with the first `EXECUTING`, `expiredAt` with `EXPIRED`, `completedAt` with every end.
pub async fn set_status(
    database: impl PgExecutor<'_>,
    run: &str,
    status: &str,
) -> Result<(), StepError> {
    let update = sqlx::query(
        r#"UPDATE "TaskRun" SET status = $2::"TaskRunStatus", "updatedAt" = at,
               "queuedAt" = CASE WHEN $2 = 'PENDING' THEN at ELSE "queuedAt" END,
               "startedAt" = CASE WHEN $2 = 'EXECUTING' THEN coalesce("startedAt", at) ELSE "startedAt" END,
               "expiredAt" = CASE WHEN $2 = 'EXPIRED' THEN at ELSE "expiredAt" END,
               "completedAt" = CASE WHEN $2 IN ('CANCELED', 'EXPIRED', 'TIMED_OUT', 'CRASHED',
                   'SYSTEM_FAILURE', 'INTERRUPTED', 'COMPLETED_WITH_ERRORS', 'COMPLETED_SUCCESSFULLY')
                   THEN coalesce("completedAt", at) ELSE "completedAt" END
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at)
           WHERE "friendlyId" = $1"#,
    );
    one(database, run, update.bind(run).bind(status)).await
}

/// Replaces a run's metadata (JSON text).
pub async fn set_metadata(
    database: impl PgExecutor<'_>,
    run: &str,
    metadata: &str,
) -> Result<(), StepError> {
    let update = sqlx::query(
        r#"UPDATE "TaskRun" SET metadata = $2, "metadataVersion" = "metadataVersion" + 1,
               "updatedAt" = clock_timestamp() AT TIME ZONE 'UTC'
           WHERE "friendlyId" = $1"#,
    );
    one(database, run, update.bind(run).bind(metadata)).await
}

/// Adds a tag to a run, which may have none yet.
pub async fn add_tag(database: impl PgExecutor<'_>, run: &str, tag: &str) -> Result<(), StepError> {
    let update = sqlx::query(
        r#"UPDATE "TaskRun" SET "runTags" = array_append("runTags", $2),
               "updatedAt" = clock_timestamp() AT TIME ZONE 'UTC'
           WHERE "friendlyId" = $1"#,
    );
    one(database, run, update.bind(run).bind(tag)).await
}

/// Ends a run well: status, output (JSON text), usage and times in one update, as clients rely on.
pub async fn complete(
    database: impl PgExecutor<'_>,
    run: &str,
    output: &str,
) -> Result<(), StepError> {
    finish(database, run, "COMPLETED_SUCCESSFULLY", Some(output), None).await
}

/// Ends a run with an error, which clients parse: see [`built_in_error`].
pub async fn fail(
    database: impl PgExecutor<'_>,
    run: &str,
    error: &serde_json::Value,
) -> Result<(), StepError> {
    finish(database, run, "COMPLETED_WITH_ERRORS", None, Some(error.to_string())).await
}

/// What a task's exception is stored as.
pub fn built_in_error(name: &str, message: &str) -> serde_json::Value {
    let stack = format!("{name}: {message}\n    at run (/app/src/trigger/task.ts:12:9)");
    serde_json::json!({
        "type": "BUILT_IN_ERROR", "name": name, "message": message, "stackTrace": stack,
    })
}

async fn finish(
    database: impl PgExecutor<'_>,
    run: &str,
    status: &str,
    output: Option<&str>,
    error: Option<String>,
) -> Result<(), StepError> {
    let update = sqlx::query(
        r#"UPDATE "TaskRun" SET status = $2::"TaskRunStatus", output = $3, error = $4::jsonb,
               "completedAt" = at, "updatedAt" = at, "usageDurationMs" = used, "costInCents" = used * 0.00001
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at),
               LATERAL (SELECT (extract(epoch FROM at - coalesce(started, at)) * 1000)::int
                        FROM (SELECT "startedAt" FROM "TaskRun" WHERE "friendlyId" = $1) AS r (started)
               ) AS usage (used)
           WHERE "friendlyId" = $1"#,
    );
    one(database, run, update.bind(run).bind(status).bind(output).bind(error)).await
}

/// Runs an update of one row that must exist.
pub(super) async fn one(
    database: impl PgExecutor<'_>,
    what: &str,
    update: Query<'_, sqlx::Postgres, PgArguments>,
) -> Result<(), StepError> {
    match update.execute(database).await?.rows_affected() {
        0 => Err(StepError::Unknown(what.to_owned())),
        _ => Ok(()),
    }
}
