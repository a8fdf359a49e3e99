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

/// Inserts a run as [`insert_run`] does, with these further columns, each by its SQL expression.
pub async fn insert_with(pool: &PgPool, environment: &str, run: &str, columns: &[(&str, &str)]) {
    let payload = ("payload", "'{}'");
    let payload = columns.iter().all(|(name, _)| *name != payload.0).then_some(&payload);
    let columns: Vec<_> = columns.iter().chain(payload).collect();
    let names: String = columns.iter().map(|(name, _)| format!(r#", "{name}""#)).collect();
    let values: String = columns.iter().map(|(_, value)| format!(", {value}")).collect();
    let sql = format!(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", "runtimeEnvironmentId", "projectId", "taskIdentifier",
             queue, "traceId", "spanId", "updatedAt"{names})
           VALUES ($1, $2, $3, 'project_shop', 'hello', 'task/hello', 't', 's', now() AT TIME ZONE 'utc'{values})"#
    );
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(run.trim_start_matches("run_"))
        .bind(run)
        .bind(environment)
        .execute(pool)
        .await;
    done.expect("insert a run");
}

/// Deletes a run.
pub async fn delete(pool: &PgPool, friendly_id: &str) {
    let sql = r#"DELETE FROM "TaskRun" WHERE "friendlyId" = $1"#;
    sqlx::query(sql).bind(friendly_id).execute(pool).await.expect("delete a run");
}
