//! A Postgres that goes away and comes back.

use std::time::{Duration, Instant};

use runwire::dev::{Options, Postgres, StopMode};
use runwire::server::Settings;
use tokio::net::TcpListener;

use super::walsender::assert_must_refetch_once;
use crate::support::cluster::database_in;
use crate::support::gateway::{Gateway, eventually, settings};
use crate::support::program::Serving;
use crate::support::runs::set_metadata;

async fn cluster() -> Postgres {
    Postgres::start(Options::default()).await.expect("start Postgres")
}

#[tokio::test]
async fn a_restart_of_postgres_is_survived_with_either_kind_of_slot() {
    let mut postgres = cluster().await;
    let database = database_in(&postgres).await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let key = database.seeded.production.secret_key;
    for kind in ["temporary", "permanent"] {
        let gateway = Gateway::start(&database.url, &["--slot-kind", kind]).await;
        set_metadata(pool, run, 1).await;
        let open = gateway.open(run, key).await;
        postgres.stop(StopMode::Fast).await.unwrap();
        eventually("readiness to go", || async { !gateway.is_ready() }).await;
        let probe = gateway.request("GET", "/readyz").send().await.unwrap();
        assert_eq!(probe.status(), 503);
        postgres.start_again().await.unwrap();
        gateway.ready().await;
        set_metadata(pool, run, 2).await;
        let next = gateway.live(run, key, &open).await;
        if kind == "temporary" {
            assert_must_refetch_once(&gateway, run, key, &next, &open, pool).await;
        } else {
            assert_eq!(next.status, 200, "{}", next.text);
            assert_eq!(next.row().1["metadata"], r#"{"v":2}"#);
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_waited_for() {
    let mut postgres = cluster().await;
    let database = database_in(&postgres).await;
    postgres.stop(StopMode::Fast).await.unwrap();
    let gateway = Gateway::start_unready(&database.url, &[]).await;
    assert!(!gateway.is_ready());
    postgres.start_again().await.unwrap();
    gateway.ready().await;
    let open = gateway.open(database.seeded.run, database.seeded.production.secret_key).await;
    assert_eq!(open.status, 200, "{}", open.text);
    gateway.stop().await;
}

#[tokio::test]
async fn an_outage_is_logged_once_and_not_for_every_try() {
    let mut postgres = cluster().await;
    let database = database_in(&postgres).await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    postgres.stop(StopMode::Immediate).await.unwrap();
    // In Postgres' place: whoever connects is counted and hung up on.
    let listener = TcpListener::bind(("127.0.0.1", postgres.port())).await.unwrap();
    let enough = async {
        for _ in 0..12 {
            drop(listener.accept().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), enough).await.expect("tries to connect");
    drop(listener);
    postgres.start_again().await.unwrap();
    serving.until_said("the stream is back").await;
    let log = serving.stop().await;
    let lines_with = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert_eq!(lines_with("the stream is lost"), 1, "{log}");
    assert_eq!(lines_with("the stream is back"), 1, "{log}");
    let troubles = lines_with(r#""level":"WARN""#) + lines_with(r#""level":"ERROR""#);
    assert_eq!(troubles, 1, "{log}");
}

#[tokio::test]
async fn a_stream_that_is_lost_again_at_once_is_one_outage() {
    let postgres = cluster().await;
    let database = database_in(&postgres).await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    for _ in 0..4 {
        eventually("a walsender to kill", || async {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication
                        WHERE state = 'streaming'";
            sqlx::query(kill).fetch_all(&database.pool).await.unwrap().len() == 1
        })
        .await;
    }
    serving.until_said("the stream is back").await;
    let log = serving.stop().await;
    let lines_with = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert_eq!(lines_with("the stream is lost"), 1, "{log}");
    assert_eq!(lines_with("the stream is back"), 1, "{log}");
    database.pool.close().await;
}

#[tokio::test]
async fn postgres_stops_fast_while_polls_are_held_and_a_permanent_slot_trails() {
    let mut postgres = cluster().await;
    let database = database_in(&postgres).await;
    let (pool, run) = (&database.pool, database.seeded.run);
    let key = database.seeded.production.secret_key;
    let Settings { replication, .. } = settings(&database.url, &[]);
    assert!(replication.trail > Duration::from_secs(20), "it trails for all of this test");
    let gateway = Gateway::start(&database.url, &["--slot-kind=permanent"]).await;
    let open = gateway.open(run, key).await;
    set_metadata(pool, run, 1).await;
    let first = gateway.live(run, key, &open).await;
    let (confirmed, written): (bool, bool) = sqlx::query_as(
        "SELECT confirmed_flush_lsn < pg_current_wal_flush_lsn(), active FROM pg_replication_slots",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    assert!(confirmed && written, "the slot is read, and trails");
    let stop = async {
        let began = Instant::now();
        postgres.stop(StopMode::Fast).await.unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        postgres.start_again().await.unwrap();
        set_metadata(pool, run, 2).await;
    };
    let (held, ()) = tokio::join!(gateway.live(run, key, &first), stop);
    assert_eq!(held.status, 200, "{}", held.text);
    assert_eq!(held.row().1["metadata"], r#"{"v":2}"#, "the poll was held all the while");
    gateway.stop().await;
}
