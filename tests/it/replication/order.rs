//! Positions: a keepalive's or a transaction's end is often exactly where the next commit's record begins.

use runwire::dev::{Options, Postgres};
use runwire::postgres::Lsn;
use runwire::replication::change::Event;
use runwire::runs::columns::Column;
use sqlx::PgPool;
use tokio::sync::watch;

use crate::support::cluster::{Database, database_in};
use crate::support::runs::{insert_run, set_metadata};
use crate::support::stream::{Stream, assert_in_order, head, resets, settings, texts};

/// A cluster that nobody else writes to, with a run and a table that is not published.
async fn quiet() -> (Postgres, Database) {
    let postgres = Postgres::start(Options::default()).await.expect("start Postgres");
    let database = database_in(&postgres).await;
    let pool = &database.pool;
    let commit: String =
        sqlx::query_scalar("SHOW synchronous_commit").fetch_one(pool).await.unwrap();
    assert_eq!(commit, "on");
    sqlx::raw_sql("CREATE TABLE unpublished (n bigint)").execute(pool).await.unwrap();
    insert_run(pool, "env_prod", "run_1").await;
    (postgres, database)
}

async fn write_unpublished(pool: &PgPool) {
    sqlx::query("INSERT INTO unpublished VALUES (1)").execute(pool).await.unwrap();
}

fn version(version: i64) -> String {
    format!(r#"{{"v":{version}}}"#)
}

async fn assert_all_versions(stream: &Stream, count: i64) {
    stream
        .until("all versions", |events| {
            texts(events, "1", Column::Metadata).last() == Some(&version(count - 1))
        })
        .await;
    stream.look(|events| {
        let all: Vec<String> = (0..count).map(version).collect();
        assert_eq!(texts(events, "1", Column::Metadata), all);
        assert_in_order(events);
        assert_eq!(resets(events).len(), 1, "only the start");
    });
}

#[tokio::test]
async fn a_commit_that_begins_where_a_keepalive_ended_is_seen_like_any_other() {
    const ROUNDS: i64 = 30;
    let (_postgres, database) = quiet().await;
    let pool = &database.pool;
    let stream = Stream::start(settings(&database.url, "order_forced")).await;
    for round in 0..ROUNDS {
        let mut writer = pool.begin().await.unwrap();
        let sql = r#"UPDATE "TaskRun" SET metadata = $1 WHERE id = '1'"#;
        sqlx::query(sql).bind(version(round)).execute(&mut *writer).await.unwrap();
        // Another's commit flushes the log up to here, and a keepalive tells where that is.
        write_unpublished(pool).await;
        let end: String = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text")
            .fetch_one(pool)
            .await
            .unwrap();
        let end: Lsn = end.parse().unwrap();
        stream.until("the keepalive", |events| head(events) >= end).await;
        writer.commit().await.unwrap();
    }
    assert_all_versions(&stream, ROUNDS).await;
    let met = stream.look(|events| {
        let meets = |pair: &&[Event]| {
            matches!(pair, [Event::Progress(end), Event::Tx(tx)] if tx.commit_lsn == *end)
        };
        events.windows(2).filter(meets).count() as i64
    });
    assert!(met > ROUNDS / 2, "only {met} keepalives ended where the next commit began");
    stream.stop().await;
    pool.close().await;
}

#[tokio::test]
async fn every_commit_is_seen_once_and_in_order_while_others_write_as_well() {
    const VERSIONS: i64 = 300;
    let (_postgres, database) = quiet().await;
    let pool = &database.pool;
    let stream = Stream::start(settings(&database.url, "order_mixed")).await;
    let (done, ended) = watch::channel(false);
    let others = async {
        while !*ended.borrow() {
            write_unpublished(pool).await;
        }
    };
    let writer = async {
        for version in 0..VERSIONS {
            set_metadata(pool, "run_1", version).await;
        }
        done.send_replace(true);
    };
    tokio::join!(writer, others);
    assert_all_versions(&stream, VERSIONS).await;
    stream.stop().await;
    pool.close().await;
}
