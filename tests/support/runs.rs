//! Runs, written by plain SQL as Trigger.dev would.

use sqlx::{AssertSqlSafe, PgPool};

/// Inserts a pending run of the task `hello`. Its internal id is the friendly one without `run_`.
pub async fn insert_run(pool: &PgPool, environment: &str, friendly_id: &str) {
    sqlx::query(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", "runtimeEnvironmentId", "projectId", "taskIdentifier",
             payload, queue, "traceId", "spanId", "updatedAt")
           VALUES ($1, $2, $3, 'project_shop', 'hello', '{}', 'task/hello', 't', 's', now() AT TIME ZONE 'utc')"#,
    )
    .bind(friendly_id.trim_start_matches("run_"))
    .bind(friendly_id)
    .bind(environment)
    .execute(pool)
    .await
    .expect("insert a run");
}

/// Sets columns of a run, as the text of a SET clause.
pub async fn update(pool: &PgPool, friendly_id: &str, set: &str) {
    let sql = format!(r#"UPDATE "TaskRun" SET {set} WHERE "friendlyId" = $1"#);
    let done = sqlx::query(AssertSqlSafe(sql)).bind(friendly_id).execute(pool).await;
    assert_eq!(done.expect("update a run").rows_affected(), 1, "no run {friendly_id}");
}

/// Sets the metadata to `{"v":n}`.
pub async fn set_metadata(pool: &PgPool, friendly_id: &str, version: i64) {
    update(pool, friendly_id, &format!(r#"metadata = '{{"v":{version}}}'"#)).await;
}
