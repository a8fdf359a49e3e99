//! Lists that are longer than one answer, and lists that are longer than any (`runs-and-auth.md`, 6.2
//! and 10.3).

use std::collections::BTreeSet;

use sqlx::PgPool;

use super::RUNS;
use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, assert_complete, assert_continued, members, place, told};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{insert_with, set_metadata};

pub const MANY: usize = 80;

/// Inserts runs `run_00`, `run_01` and so on with tag `a`, together some MiB, each created a second
/// before the former; every other pair at the same time.
pub async fn many(pool: &PgPool, environment: &str) {
    for i in 0..MANY {
        let created = format!("now() AT TIME ZONE 'utc' - interval '{} s'", i / 2 * 2);
        let blob = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1200) i)";
        let columns = [("runTags", "'{a}'"), ("payload", blob), ("createdAt", &created)];
        insert_with(pool, environment, &format!("run_{i:02}"), &columns).await;
    }
}

/// Every part of an opening answer.
async fn parts(feed: &Feed<'_>) -> Vec<Shape> {
    let mut parts = vec![feed.open().await];
    while !parts.last().expect("a part").headers.contains_key("electric-up-to-date") {
        assert!(parts.len() < 20, "it does not end");
        let next = feed.catch_up(parts.last().expect("a part")).await;
        assert_eq!(next.status, 200, "{}", next.text);
        parts.push(next);
    }
    parts
}

#[tokio::test]
async fn a_long_list_comes_in_parts_of_one_snapshot() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    many(pool, environment.id).await;
    let gateway = Gateway::start(&database.url, &["--hold=5s"]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
    let parts = parts(&feed).await;
    assert!(parts.len() > 2, "{} parts", parts.len());
    let (last, first) = parts.split_last().unwrap();
    first.iter().for_each(assert_continued);
    assert_complete(last, false);
    let offsets: BTreeSet<&str> = parts.iter().map(Shape::offset).collect();
    assert_eq!(offsets.len(), parts.len(), "each names its own continuation");
    assert!(parts.iter().all(|part| part.handle() == last.handle()));
    assert!(parts.iter().all(|part| part.header("x-runwire-truncated").is_empty()));
    let schema = last.header("electric-schema");
    assert!(parts.iter().all(|part| part.header("electric-schema") == schema));

    let rows: Vec<_> = parts.iter().flat_map(Shape::rows).collect();
    assert!(rows.iter().all(|(operation, _)| operation == "insert"));
    let ids: BTreeSet<&str> = rows.iter().map(|(_, row)| row["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), rows.len()), (MANY, MANY), "each once");
    let created: Vec<&str> =
        rows.iter().map(|(_, row)| row["createdAt"].as_str().unwrap()).collect();
    assert!(created.is_sorted_by(|a, b| a >= b), "the newest first: {created:?}");

    // What changes meanwhile is none of the snapshot's, and comes behind it.
    set_metadata(pool, "run_79", 1).await;
    set_metadata(pool, "run_00", 1).await;
    insert_with(pool, environment.id, "run_more", &[("runTags", "'{a}'")]).await;
    // Asked again, in any order.
    for at in (1..parts.len()).rev().chain(1..parts.len()) {
        let again = feed.catch_up(&parts[at - 1]).await;
        assert_eq!(again.text, parts[at].text, "part {at}");
        assert_eq!(again.offset(), parts[at].offset());
        assert_eq!(again.handle(), last.handle());
    }
    let mut found = Vec::new();
    let mut at = last.clone();
    while found.len() < 3 {
        at = feed.live(&at).await;
        assert_complete(&at, true);
        found.extend(told(&at));
    }
    found.sort();
    // The first changes since the start, of rows that the stream did not bring before, come whole.
    let whole = |told: &String| told.ends_with(" 00") || told.ends_with(" 79");
    assert_eq!(found.iter().filter(|told| whole(told)).count(), 2, "{found:?}");
    assert!(found.contains(&"insert more".to_owned()), "{found:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_part_that_is_not_held_is_a_409_with_a_handle_that_works() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    many(pool, environment.id).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let other = Gateway::start(&database.url, &["--slot=other"]).await;
    let path = format!("{RUNS}?tags=a");
    let feed = Feed::new(&gateway, &path, environment.secret_key);
    let first = feed.open().await;
    assert_continued(&first);
    let elsewhere = Feed::new(&other, &path, environment.secret_key);
    let skipping = format!("{path}&skipColumns=output");
    let skipping = Feed::new(&gateway, &skipping, environment.secret_key);
    let foreign = Feed::new(&gateway, &path, database.seeded.rival.secret_key);
    let beyond = format!("handle={}&offset=0_99", first.handle());
    for (feed, query) in [
        (&elsewhere, place(&first)),
        (&skipping, place(&first)),
        (&foreign, place(&first)),
        (&feed, beyond),
    ] {
        for live in ["", "&live=true"] {
            let gone = feed.ask(&format!("{query}{live}")).await;
            assert_eq!(gone.text, r#"[{"headers":{"control":"must-refetch"}}]"#, "{query}{live}");
            let again = feed.reopen(&gone).await;
            assert_eq!(again.status, 200);
            assert_ne!(again.handle(), first.handle());
            assert_ne!(again.handle(), gone.handle());
        }
    }
    // It is still there for those whom it was made for.
    assert_eq!(feed.catch_up(&first).await.status, 200);
    gateway.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn who_comes_to_another_node_for_each_request_is_sent_away_once_and_gets_the_list_in_one() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    many(pool, environment.id).await;
    let nodes = [
        Gateway::start(&database.url, &[]).await,
        Gateway::start(&database.url, &["--slot=long_node"]).await,
    ];
    for first in [0, 1] {
        let path = format!("{RUNS}?tags=a");
        let feeds =
            [0, 1].map(|n| Feed::new(&nodes[(first + n) % 2], &path, environment.secret_key));
        let begun = feeds[0].open().await;
        assert_continued(&begun);
        let gone = feeds[1].catch_up(&begun).await;
        let again = feeds[0].reopen(&gone).await;
        assert_complete(&again, false);
        assert_eq!(members(&again).len(), MANY);
        assert!(!again.headers.contains_key("x-runwire-truncated"));
        // It goes on as any other, on either node.
        set_metadata(pool, "run_07", first as i64 + 1).await;
        let changed = feeds[1].live(&again).await;
        assert_eq!(told(&changed).len(), 1, "{}", changed.text);
        assert_eq!(feeds[0].catch_up(&changed).await.status, 200);
        // Who begins anew later gets parts again, as they are less at once.
        let later = feeds[0].anew().await;
        assert_continued(&later);
    }
    for node in nodes {
        node.stop().await;
    }
}

async fn aged(pool: &PgPool, environment: &str, run: &str, seconds: u32) {
    let created = format!("now() AT TIME ZONE 'utc' - interval '{seconds} s'");
    let columns = [("runTags", "'{a}'"), ("createdAt", &created), ("batchId", "'b1'")];
    insert_with(pool, environment, run, &columns).await;
}

#[tokio::test]
async fn of_more_runs_than_the_cap_the_newest_are_kept_and_a_header_says_so() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let batch = r#"INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", "updatedAt")
                   VALUES ('b1', 'batch_b1', 'env_prod', now())"#;
    sqlx::raw_sql(batch).execute(pool).await.unwrap();
    for i in 0..5 {
        aged(pool, environment.id, &format!("run_{i}"), 10 * i).await;
    }
    let gateway = Gateway::start(&database.url, &["--list-max=5", "--hold=5s"]).await;
    for path in [format!("{RUNS}?tags=a"), "/realtime/v1/batches/batch_b1".to_owned()] {
        let feed = Feed::new(&gateway, &path, environment.secret_key);
        let open = feed.open().await;
        assert_eq!(members(&open).len(), 5);
        assert!(!open.headers.contains_key("x-runwire-truncated"), "just as many as fit");
    }
    for i in 5..8 {
        aged(pool, environment.id, &format!("run_{i}"), 10 * i).await;
    }
    for path in [format!("{RUNS}?tags=a"), "/realtime/v1/batches/batch_b1".to_owned()] {
        let feed = Feed::new(&gateway, &path, environment.secret_key);
        let open = feed.anew().await;
        assert_complete(&open, false);
        assert_eq!(told(&open), ["insert 0", "insert 1", "insert 2", "insert 3", "insert 4"]);
        assert!(open.headers.contains_key("x-runwire-truncated"));
        // One of those beyond that changes arrives whole, as often as it takes.
        let mut at = open;
        for version in 1..=2 {
            let change = set_metadata(pool, "run_6", version);
            let (live, ()) = tokio::join!(feed.live(&at), change);
            let (operation, row) = live.row();
            assert_eq!(operation, "insert");
            assert_eq!(row.as_object().unwrap().len(), 26, "{row}");
            assert_eq!(row["metadata"], format!(r#"{{"v":{version}}}"#));
            at = live;
        }
        // A new one enters, and those that are held are changed in part.
        let new = format!("run_new{}", path.len());
        let (live, ()) = tokio::join!(feed.live(&at), aged(pool, environment.id, &new, 0));
        assert_eq!(told(&live), [format!("insert new{}", path.len())]);
        let (live, ()) = tokio::join!(feed.live(&live), set_metadata(pool, &new, 1));
        assert_eq!(told(&live), [format!("update new{}", path.len())]);
        crate::support::runs::delete(pool, &new).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn where_many_runs_were_created_at_the_same_time_no_partial_change_reaches_who_lacks_the_run()
{
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let gateway = Gateway::start(&database.url, &["--list-max=5"]).await;
    let columns =
        [("runTags", "'{a}'"), ("createdAt", "date_trunc('hour', now() AT TIME ZONE 'utc')")];
    for i in 0..9 {
        insert_with(pool, environment.id, &format!("run_{i}"), &columns).await;
    }
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
    let open = feed.open().await;
    let mut held = members(&open);
    assert_eq!(held.len(), 5);
    let mut at = open;
    for i in 0..9 {
        let run = format!("run_{i}");
        let (live, ()) = tokio::join!(feed.live(&at), set_metadata(pool, &run, 1));
        let (operation, row) = live.row();
        let id = row["id"].as_str().unwrap().to_owned();
        assert_eq!(id, i.to_string());
        assert!(operation == "insert" || held.contains(&id), "{operation} {id} of {held:?}");
        held.push(id);
        at = live;
    }
    // More than a list holds at once: a new list serves the client better.
    let all = r#"UPDATE "TaskRun" SET metadata = '{"v":2}' WHERE "runTags" = '{a}'"#;
    let (gone, done) = tokio::join!(feed.live(&at), sqlx::raw_sql(all).execute(pool));
    done.unwrap();
    let again = feed.reopen(&gone).await;
    assert_eq!(members(&again).len(), 5);
    assert!(again.rows().iter().all(|(_, row)| row["metadata"] == r#"{"v":2}"#));
    gateway.stop().await;
}
