//! A slot that was taken away, and a server that was set back.

use std::path::Path;
use std::process::Command;

use runwire::dev::{Options, Postgres, StopMode};
use runwire::replication::SlotKind;
use runwire::runs::columns::Column;
use sqlx::PgPool;

use super::walsender::assert_must_refetch_once;
use crate::support::cluster::{database_in, fresh_database};
use crate::support::gateway::{Gateway, eventually};
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, head, resets, settings, texts};

#[tokio::test]
async fn a_slot_that_was_dropped_while_nobody_read_is_made_anew() {
    let database = fresh_database().await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let key = database.seeded.production.secret_key;
    let arguments = ["--slot=lost_dropped", "--slot-kind=permanent"];
    let gateway = Gateway::start(&database.url, &arguments).await;
    let open = gateway.open(run, key).await;
    gateway.stop().await;
    eventually("the slot to be let go", || async {
        sqlx::query("SELECT pg_drop_replication_slot('lost_dropped')").execute(pool).await.is_ok()
    })
    .await;
    set_metadata(pool, run, 1).await;
    let gateway = Gateway::start(&database.url, &arguments).await;
    let gone = gateway.live(run, key, &open).await;
    assert_must_refetch_once(&gateway, run, key, &gone, &open, pool).await;
    gateway.stop().await;
}

/// A cluster in which a slot that falls behind loses its log soon.
async fn strict() -> Postgres {
    let settings =
        [("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Postgres::start(Options { settings, ..Options::default() }).await.expect("start Postgres")
}

async fn write_log(pool: &PgPool, megabytes: u32) {
    let megabyte =
        "SELECT pg_logical_emit_message(false, 'filler', repeat(md5(random()::text), 32768))";
    for _ in 0..megabytes {
        sqlx::query(megabyte).execute(pool).await.unwrap();
    }
}

/// Writes until the server has removed log that the slot needs.
async fn invalidate(pool: &PgPool, slot: &str) {
    eventually("the slot to be lost", || async {
        write_log(pool, 20).await;
        sqlx::query("CHECKPOINT").execute(pool).await.unwrap();
        let status: Option<String> =
            sqlx::query_scalar("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1")
                .bind(slot)
                .fetch_one(pool)
                .await
                .unwrap();
        status.as_deref() == Some("lost")
    })
    .await;
}

#[tokio::test]
async fn a_slot_whose_log_the_server_removed_while_nobody_read_is_made_anew() {
    let postgres = strict().await;
    let database = database_in(&postgres).await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let key = database.seeded.production.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    let open = gateway.open(run, key).await;
    gateway.stop().await;
    invalidate(pool, "runwire").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let gone = gateway.live(run, key, &open).await;
    assert_must_refetch_once(&gateway, run, key, &gone, &open, pool).await;
    let kept: (String, bool) =
        sqlx::query_as("SELECT wal_status, temporary FROM pg_replication_slots WHERE active")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(kept, ("reserved".to_owned(), false));
    gateway.stop().await;
    pool.close().await;
}

#[tokio::test]
async fn a_slot_that_is_lost_while_it_is_read_is_made_anew() {
    let postgres = strict().await;
    let database = database_in(&postgres).await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let stream = Stream::start(settings(&database.url, "lost_active")).await;
    // Nothing is ever settled, so that nothing is confirmed and the slot holds its log back.
    set_metadata(pool, run, 1).await;
    eventually("the slot to be lost and made anew", || async {
        write_log(pool, 20).await;
        sqlx::query("CHECKPOINT").execute(pool).await.unwrap();
        stream.look(|events| resets(events).len() >= 2)
    })
    .await;
    // The checkpoint may have doomed the new slot as well, and the next one then begins after a change.
    let id = &run["run_".len()..];
    eventually("a change after that", || async {
        set_metadata(pool, run, 2).await;
        stream.look(|events| {
            texts(events, id, Column::Metadata).last().is_some_and(|text| text == r#"{"v":2}"#)
        })
    })
    .await;
    stream.look(|events| {
        let resets = resets(events);
        assert!(resets[1].floor > resets[0].floor && resets[1].past.is_some());
    });
    stream.stop().await;
    pool.close().await;
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(done.success());
}

#[tokio::test]
async fn a_server_that_was_set_back_to_an_older_copy_is_read_from_where_its_slot_stands() {
    let mut postgres = Postgres::start(Options::default()).await.unwrap();
    let database = database_in(&postgres).await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let mut settings = settings(&database.url, "lost_history");
    settings.slot_kind = SlotKind::Permanent;
    let stream = Stream::start(settings).await;
    let (data, older) =
        (postgres.data_dir().to_owned(), postgres.data_dir().with_extension("older"));
    postgres.stop(StopMode::Fast).await.unwrap();
    copy(&data, &older);
    postgres.start_again().await.unwrap();
    let start = stream.head();
    write_log(pool, 8).await;
    stream.until("the log", |events| head(events).0 >= start.0 + (8 << 20)).await;
    postgres.stop(StopMode::Fast).await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&older, &data).unwrap();
    postgres.start_again().await.unwrap();
    set_metadata(pool, run, 7).await;
    let id = &run["run_".len()..];
    stream
        .until("a change on the older copy", |events| {
            texts(events, id, Column::Metadata).last().is_some_and(|text| text == r#"{"v":7}"#)
        })
        .await;
    stream.look(|events| {
        let resets = resets(events);
        assert_eq!(resets.len(), 2, "everybody starts again");
        assert!(resets[1].floor <= start, "the older copy ends before");
    });
    stream.stop().await;
    pool.close().await;
}
