//! What the slot is told it may forget, and which kind of slot it is.

use std::time::{Duration, Instant};

use runwire::dev::{Options, Postgres};
use runwire::postgres::Lsn;
use runwire::replication::SlotKind;
use sqlx::PgPool;

use crate::support::cluster::{database_in, fresh_database};
use crate::support::gateway::eventually;
use crate::support::program::Serving;
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, head, resets, settings, transactions};

async fn confirmed(pool: &PgPool, slot: &str) -> Lsn {
    let text: String = sqlx::query_scalar(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_one(pool)
    .await
    .unwrap();
    text.parse().unwrap()
}

async fn slots(pool: &PgPool) -> Vec<(String, bool)> {
    sqlx::query_as(
        "SELECT slot_name::text, temporary FROM pg_replication_slots
         WHERE database = current_database()",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_permanent_slot_trails_by_its_time_and_never_confirms_what_was_not_received() {
    let database = fresh_database().await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let mut settings = settings(&database.url, "confirmed_trail");
    settings.slot_kind = SlotKind::Permanent;
    settings.trail = Duration::from_secs(2);
    let trail = settings.trail;
    let stream = Stream::start(settings).await;
    stream.marks.settle(Lsn(u64::MAX));
    let written = Instant::now();
    set_metadata(pool, run, 1).await;
    stream.until("the change", |events| transactions(events).count() == 1).await;
    let end = stream.look(|events| transactions(events).next().unwrap().end_lsn);
    let mut version = 1;
    while confirmed(pool, "confirmed_trail").await < end {
        assert!(written.elapsed() < Duration::from_secs(20), "it is never confirmed");
        version += 1;
        set_metadata(pool, run, version).await;
        let confirmed = confirmed(pool, "confirmed_trail").await;
        // Looked at afterwards, so that the stream may only have gone on.
        assert!(confirmed <= stream.head(), "{confirmed} was not received");
    }
    assert!(written.elapsed() >= trail, "confirmed after {:?}", written.elapsed());
    stream.stop().await;
}

#[tokio::test]
async fn a_permanent_slot_confirms_only_what_some_query_has_shown() {
    let database = fresh_database().await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let mut settings = settings(&database.url, "confirmed_settled");
    settings.slot_kind = SlotKind::Permanent;
    settings.trail = Duration::ZERO;
    let stream = Stream::start(settings).await;
    for version in 0..2 {
        set_metadata(pool, run, version).await;
    }
    stream.until("both changes", |events| transactions(events).count() == 2).await;
    let second = stream.look(|events| transactions(events).nth(1).unwrap().commit_lsn);
    stream.marks.settle(second);
    eventually("the settled change to be confirmed", || async {
        let confirmed = confirmed(pool, "confirmed_settled").await;
        assert!(confirmed <= second, "{confirmed} is beyond what was shown");
        confirmed == second
    })
    .await;
    stream.stop().await;
}

#[tokio::test]
async fn a_temporary_slot_is_confirmed_at_once_and_keeps_nothing() {
    let database = fresh_database().await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let stream = Stream::start(settings(&database.url, "confirmed_temporary")).await;
    eventually("the slot's name", || async { stream.status.attached() }).await;
    set_metadata(pool, run, 1).await;
    stream.until("the change", |events| transactions(events).count() == 1).await;
    let end = stream.look(|events| transactions(events).next().unwrap().end_lsn);
    let slot = stream.status.slot();
    eventually("the change to be confirmed", || async {
        let confirmed = confirmed(pool, &slot).await;
        assert!(confirmed <= stream.head(), "{confirmed} was not received");
        confirmed >= end
    })
    .await;
    stream.stop().await;
    eventually("the slot to go", || async { slots(pool).await.is_empty() }).await;
}

#[tokio::test]
async fn a_temporary_slot_does_not_outlive_a_killed_process() {
    let database = fresh_database().await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    assert!(matches!(&slots(&database.pool).await[..], [(_, true)]));
    serving.kill().await;
    eventually("the slot to go", || async { slots(&database.pool).await.is_empty() }).await;
}

/// A cluster that bounds what a slot may retain.
async fn bounded(megabytes: u32) -> Postgres {
    cluster("max_slot_wal_keep_size", &format!("{megabytes}MB")).await
}

async fn cluster(setting: &str, value: &str) -> Postgres {
    let settings = vec![(setting.to_owned(), value.to_owned())];
    Postgres::start(Options { settings, ..Options::default() }).await.expect("start Postgres")
}

#[tokio::test]
async fn a_slot_is_kept_only_where_the_server_bounds_what_it_may_retain() {
    let unbounded = fresh_database().await;
    let stream = Stream::start(settings(&unbounded.url, "confirmed_auto")).await;
    assert!(matches!(&slots(&unbounded.pool).await[..], [(_, true)]));
    stream.stop().await;

    let postgres = bounded(1_000).await;
    let bounded = database_in(&postgres).await;
    let stream = Stream::start(settings(&bounded.url, "confirmed_auto")).await;
    assert_eq!(slots(&bounded.pool).await, [("confirmed_auto".to_owned(), false)]);
    stream.stop().await;
    assert_eq!(slots(&bounded.pool).await, [("confirmed_auto".to_owned(), false)]);
    bounded.pool.close().await;
}

#[tokio::test]
async fn a_new_permanent_slot_trails_by_no_more_than_a_quarter_of_what_the_server_lets_it_keep() {
    let postgres = bounded(64).await;
    let database = database_in(&postgres).await;
    let pool = &database.pool;
    let stream = Stream::start(settings(&database.url, "confirmed_bounded")).await;
    stream.marks.settle(Lsn(u64::MAX));
    let start = stream.head();
    for _ in 0..40 {
        let megabyte =
            "SELECT pg_logical_emit_message(false, 'filler', repeat(md5(random()::text), 32768))";
        sqlx::query(megabyte).execute(pool).await.unwrap();
    }
    stream.until("the log", |events| head(events).0 > start.0 + (40 << 20)).await;
    eventually("the slot to follow, long before its time", || async {
        let confirmed = confirmed(pool, "confirmed_bounded").await;
        // The server rounds what it keeps up to whole segments of 16 MB.
        stream.head().0 - confirmed.0 <= ((64 + 16) / 4) << 20
    })
    .await;
    stream.stop().await;
    pool.close().await;
}

#[tokio::test]
async fn a_server_with_little_patience_is_reported_to_before_it_asks() {
    let postgres = cluster("wal_sender_timeout", "1s").await;
    let database = database_in(&postgres).await;
    let pool = &database.pool;
    let mut settings = settings(&database.url, "confirmed_patience");
    settings.slot_kind = SlotKind::Permanent;
    let stream = Stream::start(settings).await;
    set_metadata(pool, database.seeded.run, 1).await;
    stream.until("the change", |events| transactions(events).count() == 1).await;
    let begin = stream.look(|events| transactions(events).next().unwrap().commit_lsn);
    let start: f64 = replied(pool).await;
    eventually("reports for three times as long as it waits", || async {
        // Being asked is taken for a shutdown, before which everything is confirmed.
        assert!(confirmed(pool, "confirmed_patience").await <= begin);
        replied(pool).await > start + 3.0
    })
    .await;
    stream.look(|events| assert_eq!(resets(events).len(), 1));
    stream.stop().await;
    pool.close().await;
}

/// When the walsender was last reported to, in seconds.
pub async fn replied(pool: &PgPool) -> f64 {
    sqlx::query_scalar("SELECT extract(epoch FROM reply_time)::float8 FROM pg_stat_replication")
        .fetch_optional(pool)
        .await
        .unwrap()
        .unwrap_or_default()
}
