//! What the engine does beside living its runs' lives.

use std::time::Duration;

use serde_json::json;

use super::World;
use super::life::QUEUES;
use crate::dev::run::set_metadata;

/// Cancels what an earlier engine left under way in a kept database.
pub(super) async fn cancel_left_over(world: &World) {
    let cancel = sqlx::query(
        r#"UPDATE "TaskRun" SET status = 'CANCELED', "completedAt" = at, "updatedAt" = at
           FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC') AS clock (at)
           WHERE "runtimeEnvironmentId" = $1 AND starts_with(queue, $2) AND "completedAt" IS NULL"#,
    );
    report(cancel.bind(world.environment.id).bind(QUEUES).execute(&world.pool).await);
}

/// Deletes the oldest finished runs, and batches without runs, now and then.
pub(super) async fn trim(world: World) {
    while world.wait(Duration::from_secs(10)).await {
        trim_now(&world).await;
    }
}

async fn trim_now(world: &World) {
    let runs = sqlx::query(
        r#"DELETE FROM "TaskRun" WHERE id IN (
               SELECT id FROM "TaskRun"
               WHERE "runtimeEnvironmentId" = $1 AND starts_with(queue, $2) AND "completedAt" IS NOT NULL
               ORDER BY "completedAt" DESC OFFSET $3)"#,
    );
    let keep = i64::from(world.settings.keep_finished);
    let runs = runs.bind(world.environment.id).bind(QUEUES).bind(keep);
    report(runs.execute(&world.pool).await);
    let batches = sqlx::query(
        r#"DELETE FROM "BatchTaskRun" b
           WHERE "runtimeEnvironmentId" = $1 AND "completedAt" IS NOT NULL AND NOT EXISTS (
               SELECT FROM "TaskRun" r
               WHERE r."runtimeEnvironmentId" = $1 AND r."batchId" = b.id)"#,
    );
    report(batches.bind(world.environment.id).execute(&world.pool).await);
}

/// Keeps one run's progress going round.
pub(super) async fn tick(world: World, run: String) {
    let mut tenth = 0u8;
    while world.wait(world.settings.step).await {
        tenth = tenth % 10 + 1;
        let metadata = json!({ "progress": f64::from(tenth) / 10.0 }).to_string();
        if let Err(error) = set_metadata(&world.pool, &run, &metadata).await {
            tracing::debug!(%error, run, "the example run does not move");
        }
    }
}

fn report<T>(result: Result<T, sqlx::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the simulated engine could not tidy up");
    }
}
