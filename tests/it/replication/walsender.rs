//! A walsender that dies under a running stream.

use runwire::dev::Postgres;
use runwire::replication::SlotKind;
use runwire::replication::change::Event;
use runwire::runs::columns::Column;
use sqlx::PgPool;

use crate::support::cluster::{database_in, shared};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{insert_run, set_metadata};
use crate::support::stream::{Stream, assert_in_order, resets, settings, texts};

/// Kills whoever reads a slot of this database.
pub async fn terminate(pool: &PgPool) {
    let killed: Vec<bool> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
         WHERE database = current_database() AND active",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(killed, [true]);
}

#[tokio::test]
async fn a_temporary_slot_that_goes_raises_the_floor_and_the_stream_goes_on_from_there() {
    temporary_starts_anew(shared().await).await;
}

pub async fn temporary_starts_anew(postgres: &Postgres) {
    let database = database_in(postgres).await;
    let pool = &database.pool;
    insert_run(pool, "env_prod", "run_1").await;
    let stream = Stream::start(settings(&database.url, "walsender_temporary")).await;
    let slot = stream.status.slot();
    for round in 0..3 {
        set_metadata(pool, "run_1", round).await;
        stream
            .until("the change", |events| texts(events, "1", Column::Metadata).len() as i64 > round)
            .await;
        terminate(pool).await;
        stream.until("a start anew", |events| resets(events).len() as i64 == round + 2).await;
    }
    assert_ne!(stream.status.slot(), slot, "a temporary slot's name is not used twice");
    stream.look(|events| {
        // Each floor is at or above the head before, which this checks as well.
        assert_in_order(events);
        let resets = resets(events);
        assert!(resets.is_sorted_by(|a, b| a.floor < b.floor));
        assert!(resets.iter().all(|reset| reset.epoch == resets[0].epoch), "the same history");
        assert!(resets.iter().all(|reset| reset.past.is_some()), "a new slot has a past");
    });
    stream.stop().await;
}

#[tokio::test]
async fn a_permanent_slot_goes_on_where_it_was_with_nothing_lost_and_nothing_twice() {
    permanent_goes_on(shared().await).await;
}

pub async fn permanent_goes_on(postgres: &Postgres) {
    const VERSIONS: i64 = 120;
    let database = database_in(postgres).await;
    let pool = &database.pool;
    insert_run(pool, "env_prod", "run_1").await;
    let mut settings = settings(&database.url, "walsender_permanent");
    settings.slot_kind = SlotKind::Permanent;
    let stream = Stream::start(settings).await;
    let resumptions = |events: &[Event]| {
        events.iter().filter(|event| matches!(event, Event::Resumed { .. })).count() as i64
    };
    let writer = async {
        for version in 0..VERSIONS {
            set_metadata(pool, "run_1", version).await;
        }
    };
    let killer = async {
        for round in 1..=3 {
            let due = round * VERSIONS / 4;
            let seen = |events: &[Event]| texts(events, "1", Column::Metadata).len() as i64 >= due;
            stream.until("some versions", seen).await;
            terminate(pool).await;
            stream.until("the stream to go on", |events| resumptions(events) == round).await;
        }
    };
    tokio::join!(writer, killer);
    let last = format!(r#"{{"v":{}}}"#, VERSIONS - 1);
    stream
        .until("the last version", |events| {
            texts(events, "1", Column::Metadata).last() == Some(&last)
        })
        .await;
    stream.look(|events| {
        let all: Vec<String> = (0..VERSIONS).map(|v| format!(r#"{{"v":{v}}}"#)).collect();
        assert_eq!(texts(events, "1", Column::Metadata), all);
        assert_in_order(events);
        assert_eq!(resets(events).len(), 1, "only the start");
    });
    stream.stop().await;
}

#[tokio::test]
async fn clients_of_a_lost_temporary_slot_are_told_once_to_start_again() {
    let database = database_in(shared().await).await;
    let (pool, key) = (&database.pool, database.seeded.production.secret_key);
    insert_run(pool, "env_prod", "run_1").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let open = gateway.open("run_1", key).await;
    let held = gateway.live("run_1", key, &open);
    let (gone, ()) = tokio::join!(held, terminate(pool));
    assert_must_refetch_once(&gateway, "run_1", key, &gone, &open, pool).await;
    gateway.stop().await;
}

/// Follows a 409 as clients do: its handle gives the run, and polls from there are held and answered.
pub async fn assert_must_refetch_once(
    gateway: &Gateway,
    run: &str,
    key: &str,
    gone: &Shape,
    before: &Shape,
    pool: &PgPool,
) {
    assert_eq!(gone.status, 409, "{}", gone.text);
    assert_ne!(gone.handle(), before.handle());
    let path = format!(
        "/realtime/v1/runs/{run}?expired_handle={}&handle={}&offset=-1&log=full",
        before.handle(),
        gone.handle()
    );
    let fresh = Shape::read(gateway.get(&path, key).send().await.unwrap()).await;
    assert_eq!(fresh.status, 200, "{}", fresh.text);
    assert_eq!(fresh.row().0, "insert");
    let held = gateway.live(run, key, &fresh);
    let (news, ()) = tokio::join!(held, set_metadata(pool, run, 4_711));
    assert_eq!(news.status, 200, "{}", news.text);
    assert_eq!(news.row().1["metadata"], r#"{"v":4711}"#);
    assert_eq!(news.handle(), fresh.handle());
}
