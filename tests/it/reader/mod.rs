//! Reading runs for the feeds, against a real Postgres.

mod batches;
mod bounds;
mod lists;
mod together;
mod trouble;

use std::sync::Arc;

use runwire::postgres::ConnectionUrl;
use runwire::runs::columns::Column;
use runwire::runs::reader::{Reader, ReaderLimits, RunRead};
use runwire::runs::store::RunStore;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgPool};

use crate::support::cluster::{Database, shared};

/// A pool as the server makes it.
fn pool(database: &Database, connections: u32) -> PgPool {
    let url = ConnectionUrl::parse(&database.url).unwrap();
    PgPoolOptions::new().max_connections(connections).connect_lazy_with(url.sql_options())
}

fn reader(database: &Database, limits: ReaderLimits) -> Arc<Reader> {
    let connections = u32::try_from(limits.connections).unwrap();
    Reader::new(RunStore::new(pool(database, connections)), limits)
}

/// Inserts `count` runs whose friendly ids are `run_{name}_1` and so on.
async fn insert_runs(pool: &PgPool, environment: &str, name: &str, count: i32) {
    sqlx::query(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", "runtimeEnvironmentId", "projectId", "taskIdentifier",
             payload, queue, "traceId", "spanId", number, "createdAt", "updatedAt")
           SELECT $2 || '_' || n, 'run_' || $2 || '_' || n, $1, 'project_shop', 'hello', '{"n":' || n || '}',
             'task/hello', 't', 's', n, '2026-01-01'::timestamp + make_interval(secs => n / 3), now() AT TIME ZONE 'utc'
           FROM generate_series(1, $3) n"#,
    )
    .bind(environment)
    .bind(name)
    .bind(count)
    .execute(pool)
    .await
    .unwrap();
}

fn arc(text: impl AsRef<str>) -> Arc<str> {
    text.as_ref().into()
}

/// The run's cell.
fn cell(read: &RunRead, column: Column) -> Option<&str> {
    read.run.as_ref().expect("the run is there").row.text(column)
}

/// Replaces `"TaskRun"` by a view of itself where a run's payload is what this expression says, so
/// that a statement that reads it waits, or fails. The expression must not be volatile, or else it
/// would be computed for every run.
async fn replace_payload(pool: &PgPool, internal_id: &str, expression: &str) {
    let columns: Vec<String> = Column::ALL
        .into_iter()
        .filter(|column| *column != Column::Payload)
        .map(|column| format!(r#""{}""#, column.name()))
        .collect();
    let sql = format!(
        r#"ALTER TABLE "TaskRun" RENAME TO "Stored";
           CREATE FUNCTION wait_for(key bigint) RETURNS text STABLE LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock_shared(key); RETURN 'waited'; END $$;
           CREATE VIEW "TaskRun" AS SELECT {},
             CASE WHEN id = '{internal_id}' THEN {expression} ELSE payload END AS payload,
             "projectId", queue, "traceId", "spanId" FROM "Stored""#,
        columns.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// A lock that makes `wait_for(1)` wait until it is dropped.
async fn hold(database: &Database) -> PgConnection {
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut holder).await.unwrap();
    holder
}

/// Waits until so many statements wait for the lock.
async fn held_up(pool: &PgPool, count: i64) {
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        if waiting >= count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until nobody is connected to the database, so that its statistics are complete.
async fn left_alone(database: &Database) -> PgConnection {
    database.pool.close().await;
    let (_, name) = database.url.split('?').next().unwrap().rsplit_once('/').unwrap();
    let mut server = PgConnection::connect(&shared().await.url("postgres")).await.unwrap();
    loop {
        let connected: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'",
        )
        .bind(name)
        .fetch_one(&mut server)
        .await
        .unwrap();
        if connected == 0 {
            return server;
        }
        tokio::task::yield_now().await;
    }
}

/// How many transactions the database has seen, with nobody connected.
async fn transactions(database: &Database) -> i64 {
    let mut server = left_alone(database).await;
    let (_, name) = database.url.split('?').next().unwrap().rsplit_once('/').unwrap();
    sqlx::query_scalar(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1",
    )
    .bind(name)
    .fetch_one(&mut server)
    .await
    .unwrap()
}
