//! Batches of runs.

use sqlx::{PgExecutor, PgPool};

use super::id;
use super::run::{RunSpec, StepError, TriggeredRun, one, trigger_run};
use super::seed::Environment;

/// A batch that was triggered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggeredBatch {
    /// `BatchTaskRun.id`, which its runs carry.
    pub id: String,
    /// `BatchTaskRun.friendlyId`, as clients know it.
    pub friendly_id: String,
    /// Its runs.
    pub runs: Vec<TriggeredRun>,
}

/// Inserts a batch, then its runs one by one, so that they join it while it is watched.
pub async fn trigger_batch(
    pool: &PgPool,
    environment: &Environment,
    specs: Vec<RunSpec>,
) -> Result<TriggeredBatch, StepError> {
    let id = id::cuid();
    let friendly_id = format!("batch_{id}");
    sqlx::query(
        r#"INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", status, "runCount",
               "batchVersion", sealed, "createdAt", "updatedAt")
           SELECT $1, $2, $3, 'PROCESSING', $4, 'runengine:v2', true, at, at
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at)"#,
    )
    .bind(&id)
    .bind(&friendly_id)
    .bind(environment.id)
    .bind(i32::try_from(specs.len()).unwrap_or(i32::MAX))
    .execute(pool)
    .await?;
    let mut runs = Vec::with_capacity(specs.len());
    for spec in specs {
        let spec = RunSpec { batch: Some(id.clone()), ..spec };
        runs.push(trigger_run(pool, environment, spec).await?);
    }
    Ok(TriggeredBatch { id, friendly_id, runs })
}

/// Marks a batch (by its friendly id) as completed.
pub async fn complete_batch(database: impl PgExecutor<'_>, batch: &str) -> Result<(), StepError> {
    let update = sqlx::query(
        r#"UPDATE "BatchTaskRun" SET status = 'COMPLETED', "completedAt" = at, "updatedAt" = at
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at)
           WHERE "friendlyId" = $1"#,
    );
    one(database, batch, update.bind(batch)).await
}
