//! A completion and the metadata that is written right after it are one version to those who stop
//! listening at the completion.

use std::time::{Duration, Instant};

use runwire::dev::run::{complete, set_metadata};
use serde_json::json;
use sqlx::PgPool;

use super::{OUTPUT, SOON, follow, held, metadata, of_run, of_tag, open, trigger};
use crate::support::cluster::{drop_slot, fresh_database};
use crate::support::gateway::{Gateway, Shape, eventually};
use crate::support::npm::Client;
use crate::support::process::signal;

const FINAL: &str = r#"{"v":"final"}"#;
/// Longer than any test, so that what is not held back comes before it and what is held back does not.
const LONG: &str = "--completion-fold=10min";

fn is_whole(answer: &Shape) {
    let (_, row) = answer.row();
    assert_eq!(row["status"], "COMPLETED_SUCCESSFULLY", "{}", answer.text);
    assert_eq!((&row["output"], &row["metadata"]), (&json!(OUTPUT), &json!(FINAL)));
    assert!(row["completedAt"].is_string());
}

/// What the newest SDK ends with when the metadata commits this long after the completion; `None` if
/// the machine was too slow for that.
async fn ends_with(
    gateway: &Gateway,
    pool: &PgPool,
    key: &str,
    run: &str,
    after: Duration,
) -> Option<serde_json::Value> {
    let mut client = Client::subscribe_run("sdk-4.8.3", &gateway.target(key), run).await;
    client.next_run(SOON).await;
    // Both connections are there already, that nothing but the commits takes time.
    let (mut first, mut second) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let start = Instant::now();
    complete(&mut *first, run, OUTPUT).await.unwrap();
    tokio::time::sleep_until((start + after).into()).await;
    set_metadata(&mut *second, run, FINAL).await.unwrap();
    let in_time = start.elapsed() < Duration::from_millis(90);
    let last = client.next_run(SOON).await;
    assert_eq!((&last["status"], &last["output"]), (&json!("COMPLETED"), &json!({ "ok": true })));
    let rest = client.rest(SOON).await;
    assert!(rest.iter().all(|said| said["type"] != "run"), "{rest:?}");
    in_time.then(|| last["metadata"].clone())
}

#[tokio::test]
async fn sdk_4_8_3_ends_with_the_metadata_that_commits_up_to_50_ms_after_the_completion() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let gateway = Gateway::start(&database.url, &[]).await;
    for after in [0, 20, 50].map(Duration::from_millis) {
        let mut tries = 0;
        loop {
            let run = trigger(&database.pool, &environment, None).await;
            let key = environment.secret_key;
            match ends_with(&gateway, &database.pool, key, &run, after).await {
                Some(metadata) => break assert_eq!(metadata, json!({ "v": "final" }), "{after:?}"),
                None => tries += 1,
            }
            assert!(tries < 10, "two commits never came within 90 ms");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn sdk_4_8_3_ends_with_the_metadata_that_commits_before_and_when_none_follows() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    let run = trigger(pool, &environment, None).await;
    let target = gateway.target(environment.secret_key);
    let mut client = Client::subscribe_run("sdk-4.8.3", &target, &run).await;
    client.next_run(SOON).await;
    set_metadata(pool, &run, FINAL).await.unwrap();
    complete(pool, &run, OUTPUT).await.unwrap();
    let said = client.rest(SOON).await;
    let last = said.iter().rfind(|said| said["type"] == "run").unwrap();
    assert_eq!((&last["status"], &last["metadata"]["v"]), (&json!("COMPLETED"), &json!("final")));
    assert_eq!(said.last().unwrap()["type"], "end");
    gateway.stop().await;
}

#[tokio::test]
async fn a_completion_waits_on_its_runs_feed_alone() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let batch = runwire::dev::trigger_batch(pool, &environment, Vec::new()).await.unwrap();
    let run = trigger(pool, &environment, Some(&batch.id)).await;
    let gateway = Gateway::start(&database.url, &[LONG]).await;
    let of_batch = format!("/realtime/v1/batches/{}", batch.friendly_id);
    let (run_feed, lists) = (of_run(&run), [of_tag(), of_batch]);
    let from = open(&gateway, &run_feed, key).await;
    let of_the_run = held(follow(&gateway, &run_feed, key, &from, "live=true"));
    let mut others = Vec::new();
    for feed in &lists {
        let from = open(&gateway, feed, key).await;
        others.push(held(follow(&gateway, feed, key, &from, "live=true")));
    }
    // By events and without a hold as well.
    let events = follow(&gateway, &run_feed, key, &from, "live=true&live_sse=true");
    complete(pool, &run, OUTPUT).await.unwrap();
    for other in others {
        let (_, row) = other.await.unwrap().row();
        assert_eq!(row["status"], "COMPLETED_SUCCESSFULLY");
    }
    let events = tokio::spawn(async move {
        let mut events = events.send().await.unwrap();
        let mut said = String::new();
        while !said.contains("up-to-date") {
            let chunk = events.chunk().await.unwrap().expect("it goes on");
            said.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        said
    });
    let no_hold = held(follow(&gateway, &run_feed, key, &from, ""));
    let opened = {
        let run_feed = run_feed.clone();
        let path = format!("{run_feed}?offset=-1");
        held(gateway.get(&path, key))
    };
    // The lists have been told since, and so has another reader of theirs.
    let list = open(&gateway, &lists[0], key).await;
    assert_eq!(list.row().1["status"], "COMPLETED_SUCCESSFULLY");
    assert!(!of_the_run.is_finished() && !no_hold.is_finished() && !opened.is_finished());
    set_metadata(pool, &run, FINAL).await.unwrap();
    for answer in [of_the_run, no_hold, opened] {
        is_whole(&answer.await.unwrap());
    }
    let events = events.await.unwrap();
    assert!(events.contains("COMPLETED_SUCCESSFULLY") && events.contains("final"), "{events}");
    gateway.stop().await;
}

/// Follows a feed until the stream has passed all that its snapshot can have seen: before that a
/// restart costs a refetch.
async fn beyond_its_snapshot(
    gateway: &Gateway,
    feed: &str,
    key: &str,
    mut from: Shape,
    pool: &PgPool,
) -> Shape {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8";
    let seen: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    let is_behind = |from: &Shape| {
        let (lsn, _) = from.offset().split_once('_').unwrap();
        lsn.parse::<i64>().unwrap() < seen
    };
    let start = Instant::now();
    while is_behind(&from) {
        assert!(start.elapsed() < SOON, "the stream stands still");
        let next = follow(gateway, feed, key, &from, "").send().await.unwrap();
        from = Shape::read(next).await;
        assert_eq!(from.status, 200, "{}", from.text);
    }
    from
}

#[tokio::test]
async fn what_is_replayed_or_opened_later_is_not_held_again() {
    const FOLD: Duration = Duration::from_secs(3);
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let run = trigger(pool, &environment, None).await;
    let slot = ["--slot=fold_replay", "--slot-kind=permanent", "--completion-fold=3s"];
    let gateway = Gateway::start(&database.url, &slot).await;
    let feed = of_run(&run);
    let opened = open(&gateway, &feed, key).await;
    let from = beyond_its_snapshot(&gateway, &feed, key, opened, pool).await;
    let start = Instant::now();
    let poll = held(follow(&gateway, &feed, key, &from, "live=true"));
    complete(pool, &run, OUTPUT).await.unwrap();
    let first = poll.await.unwrap();
    assert!(start.elapsed() >= FOLD, "nothing ended it earlier");
    let replays = async |gateway: &Gateway| {
        for more in ["live=true", ""] {
            let start = Instant::now();
            let again = follow(gateway, &feed, key, &from, more).send().await.unwrap();
            let again = Shape::read(again).await;
            assert_eq!(again.row().1["status"], "COMPLETED_SUCCESSFULLY", "{more}");
            assert!(start.elapsed() < FOLD / 2, "{more}: held for {:?}", start.elapsed());
        }
        let start = Instant::now();
        let opened = open(gateway, &feed, key).await;
        assert_eq!(opened.row().1["status"], "COMPLETED_SUCCESSFULLY");
        assert!(start.elapsed() < FOLD / 2, "opening took {:?}", start.elapsed());
    };
    replays(&gateway).await;
    gateway.stop().await;
    // The same changes come once more, and are as old as they were.
    let gateway = Gateway::start(&database.url, &slot).await;
    replays(&gateway).await;
    let next = held(follow(&gateway, &feed, key, &first, "live=true"));
    set_metadata(pool, &run, FINAL).await.unwrap();
    assert_eq!(metadata(&next.await.unwrap()).as_deref(), Some(FINAL), "and nothing is told twice");
    gateway.stop().await;
    drop_slot(pool, "fold_replay").await;
}

#[tokio::test]
async fn a_query_that_sees_the_completion_before_the_stream_does_waits_as_well() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let run = trigger(pool, &environment, None).await;
    // Its row is not in the window, so that it is opened by a query.
    let slot = ["--slot=fold_query", "--slot-kind=permanent", "--completion-fold=4s"];
    let gateway = Gateway::start(&database.url, &slot).await;
    let sender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'fold_query'";
    let sender: i32 = sqlx::query_scalar(sender).fetch_one(pool).await.unwrap();
    let sender = u32::try_from(sender).unwrap();
    signal(sender, "STOP");
    complete(pool, &run, OUTPUT).await.unwrap();
    let path = format!("{}?offset=-1", of_run(&run));
    let opened = held(gateway.get(&path, key));
    // Another run is opened by a query meanwhile.
    let other = open(&gateway, &of_run(database.seeded.run), key).await;
    assert_eq!(other.rows().len(), 1);
    assert!(!opened.is_finished());
    set_metadata(pool, &run, FINAL).await.unwrap();
    let answer = opened.await.unwrap();
    signal(sender, "CONT");
    is_whole(&answer);
    eventually("the gateway to be ready", || async { gateway.is_ready() }).await;
    gateway.stop().await;
    drop_slot(pool, "fold_query").await;
}

#[tokio::test]
async fn a_fold_of_zero_is_none() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let run = trigger(pool, &environment, None).await;
    let gateway = Gateway::start(&database.url, &["--completion-fold=0s"]).await;
    let feed = of_run(&run);
    let from = open(&gateway, &feed, key).await;
    let poll = held(follow(&gateway, &feed, key, &from, "live=true"));
    complete(pool, &run, OUTPUT).await.unwrap();
    let first = poll.await.unwrap();
    assert_eq!(first.row().1["status"], "COMPLETED_SUCCESSFULLY");
    set_metadata(pool, &run, FINAL).await.unwrap();
    let second =
        Shape::read(follow(&gateway, &feed, key, &first, "live=true").send().await.unwrap());
    assert_eq!(metadata(&second.await).as_deref(), Some(FINAL));
    gateway.stop().await;
}

#[tokio::test]
async fn an_output_that_is_stored_out_of_line_is_folded_with_its_completion() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let run = trigger(pool, &environment, None).await;
    let gateway = Gateway::start(&database.url, &[LONG]).await;
    let feed = of_run(&run);
    let from = open(&gateway, &feed, key).await;
    let poll = held(follow(&gateway, &feed, key, &from, "live=true"));
    // Random enough not to be stored in line.
    let output: String = "SELECT json_build_object('o', string_agg(md5(i::text), ''))::text
        FROM generate_series(1, 4000) i"
        .to_owned();
    let output: String =
        sqlx::query_scalar(sqlx::AssertSqlSafe(output)).fetch_one(pool).await.unwrap();
    complete(pool, &run, &output).await.unwrap();
    set_metadata(pool, &run, FINAL).await.unwrap();
    let (_, row) = poll.await.unwrap().row();
    assert_eq!((&row["output"], &row["metadata"]), (&json!(output), &json!(FINAL)));
    gateway.stop().await;
}
