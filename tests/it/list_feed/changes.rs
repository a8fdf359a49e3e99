//! What a list's follower is told of: whole rows of runs that enter, changed columns of those that
//! it holds, and the end of those that go (`runs-and-auth.md`, 8.4 and 10.1).

use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::{RUNS, tagged};
use crate::support::cluster::{Database, fresh_database};
use crate::support::feed::{Feed, assert_complete, members, told};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{delete, insert_with, set_metadata, update};

pub const IDENTITIES: [&str; 2] = ["DEFAULT", "FULL"];
/// A payload that is stored out of line, so that the stream sends it with its own changes alone.
const LARGE: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i)";

pub async fn database_of(identity: &str) -> Database {
    let database = fresh_database().await;
    let sql = format!(r#"ALTER TABLE "TaskRun" REPLICA IDENTITY {identity}"#);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.pool).await.unwrap();
    database
}

pub async fn add_tag(pool: &PgPool, run: &str, tag: &str) {
    update(pool, run, &format!(r#""runTags" = array_append("runTags", '{tag}')"#)).await;
}

/// Polls until something is told; at most a few answers may say nothing.
pub async fn news(feed: &Feed<'_>, from: &Shape) -> Shape {
    let mut last = feed.live(from).await;
    for _ in 0..5 {
        if !last.is_bare() {
            return last;
        }
        last = feed.live(&last).await;
    }
    panic!("nothing was told");
}

pub fn row_of(opened: &Shape, id: &str) -> Map<String, Value> {
    let rows = opened.rows().into_iter();
    let row = rows.map(|(_, row)| row).find(|row| row["id"] == id);
    row.unwrap_or_else(|| panic!("no row of {id}")).as_object().expect("an object").clone()
}

#[tokio::test]
async fn a_run_that_is_created_later_enters_with_its_whole_row() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let gateway = Gateway::start(&database.url, &[]).await;
        for (run, payload) in [("run_small", "'{}'"), ("run_large", LARGE)] {
            let feed = Feed::new(&gateway, &format!("{RUNS}?tags=fresh"), environment.secret_key);
            let from = feed.anew().await;
            let columns = [
                ("runTags", "ARRAY['other', 'fresh']"),
                ("output", payload),
                ("error", r#"'{"type":"STRING_ERROR","raw":"x"}'"#),
            ];
            let insert = insert_with(pool, environment.id, run, &columns);
            let (live, ()) = tokio::join!(feed.live(&from), insert);
            assert_complete(&live, true);
            assert_eq!(live.handle(), from.handle(), "a handle lives as long as its subscription");
            let (operation, entered) = live.row();
            assert_eq!(operation, "insert", "{identity} {run}");
            let id = &run["run_".len()..];
            assert_eq!(entered.as_object(), Some(&row_of(&feed.anew().await, id)));
            assert_eq!(entered.as_object().map(Map::len), Some(26));

            // From then on the changed columns alone.
            let change = update(pool, run, r#"number = 5, status = 'EXECUTING'"#);
            let (live, ()) = tokio::join!(feed.live(&live), change);
            let changed = json!({"id": id, "number": "5", "status": "EXECUTING"});
            assert_eq!(live.row(), ("update".to_owned(), changed), "{identity} {run}");
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_run_that_gains_its_last_missing_tag_enters_with_its_whole_row() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let create = async |name: &str, payload: &str| {
            let columns = [("runTags", "'{a}'"), ("payload", payload)];
            insert_with(pool, environment.id, name, &columns).await;
        };
        create("run_before", "'{}'").await;
        create("run_before_large", LARGE).await;
        let gateway = Gateway::start(&database.url, &[]).await;
        let pair = Feed::new(&gateway, &format!("{RUNS}?tags=a,b"), environment.secret_key);
        let single = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
        let (mut pair_at, mut single_at) = (pair.open().await, single.open().await);
        assert_eq!(members(&pair_at), [""; 0]);
        for (run, payload) in [("run_after", "'{}'"), ("run_after_large", LARGE)] {
            create(run, payload).await;
            single_at = news(&single, &single_at).await;
        }
        for run in ["run_before", "run_before_large", "run_after", "run_after_large"] {
            let id = &run["run_".len()..];
            let known = run.starts_with("run_after");
            add_tag(pool, run, "b").await;
            let entered = news(&pair, &pair_at).await;
            let changed = news(&single, &single_at).await;
            let whole = row_of(&pair.anew().await, id);
            let (operation, row) = entered.row();
            assert_eq!(operation, "insert", "{identity} {run}");
            assert_eq!(row.as_object(), Some(&whole), "{identity} {run}");

            let (operation, row) = changed.row();
            // Whether the run had been in the feed before is known when the stream brought the row
            // before. If not, the whole row serves whoever asks.
            if known || identity == "FULL" {
                let tags = json!({"id": id, "runTags": r#"{"a","b"}"#});
                assert_eq!((operation.as_str(), row), ("update", tags), "{identity} {run}");
            } else {
                assert_eq!(operation, "insert");
                assert_eq!(row.as_object(), Some(&whole), "{identity} {run}");
            }

            set_metadata(pool, run, 1).await;
            pair_at = news(&pair, &entered).await;
            single_at = news(&single, &changed).await;
            for answer in [&pair_at, &single_at] {
                let metadata = json!({"id": id, "metadata": r#"{"v":1}"#});
                assert_eq!(answer.row(), ("update".to_owned(), metadata), "{identity} {run}");
            }
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_run_of_before_the_gateways_start_is_changed_without_losing_what_the_stream_leaves_out() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let columns = [("runTags", "'{a}'"), ("payload", LARGE), ("output", LARGE)];
        insert_with(pool, environment.id, "run_1", &columns).await;
        let gateway = Gateway::start(&database.url, &[]).await;
        let feeds =
            ["?tags=a", "?tags=a&skipColumns=payload", "?tags=a&skipColumns=payload,output"];
        for (version, query) in feeds.iter().enumerate() {
            let path = format!("{RUNS}{query}");
            let feed = Feed::new(&gateway, &path, environment.secret_key);
            let mut from = feed.open().await;
            let mut held = row_of(&from, "1");
            let columns: Vec<String> = held.keys().cloned().collect();
            for step in 0..3 {
                set_metadata(pool, "run_1", (10 * version + step) as i64).await;
                from = news(&feed, &from).await;
                let (operation, row) = from.row();
                let row = row.as_object().unwrap().clone();
                if operation == "insert" {
                    assert_eq!(row.keys().cloned().collect::<Vec<_>>(), columns, "a whole row");
                    held = row;
                } else {
                    assert!(!row.contains_key("payload") && !row.contains_key("output"), "{row:?}");
                    held.extend(row);
                }
            }
            assert_eq!(held, row_of(&feed.anew().await, "1"), "{identity} {query}");
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn what_happens_between_two_polls_is_one_message_for_each_run() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let gateway = Gateway::start(&database.url, &[]).await;
        let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
        let other = Feed::new(&gateway, &format!("{RUNS}?tags=last"), environment.secret_key);
        let from = feed.open().await;
        tagged(pool, environment.id, "run_old", &["a"]).await;
        let from = news(&feed, &from).await;
        let marker = other.open().await;

        tagged(pool, environment.id, "run_new", &["a"]).await;
        set_metadata(pool, "run_new", 7).await;
        // Created without, and given the tag later.
        tagged(pool, environment.id, "run_late", &["b"]).await;
        set_metadata(pool, "run_late", 7).await;
        add_tag(pool, "run_late", "a").await;
        // Of no consequence to whoever never held it.
        tagged(pool, environment.id, "run_brief", &["a"]).await;
        delete(pool, "run_brief").await;
        set_metadata(pool, "run_old", 6).await;
        update(pool, "run_old", "number = 8").await;
        set_metadata(pool, "run_old", 7).await;
        // All of one transaction comes together.
        let sql = r#"UPDATE "TaskRun" SET "isTest" = true WHERE "runTags" @> '{a}'"#;
        sqlx::raw_sql(sql).execute(pool).await.unwrap();
        tagged(pool, environment.id, "run_marker", &["last"]).await;
        assert_eq!(told(&news(&other, &marker).await), ["insert marker"]);

        let answer = feed.live(&from).await;
        let mut told = told(&answer);
        told.retain(|told| told != "delete brief");
        told.sort();
        assert_eq!(told, ["insert late", "insert new", "update old"], "{identity}");
        let opened = feed.anew().await;
        for (operation, row) in answer.rows() {
            let row = row.as_object().unwrap();
            match row["id"].as_str().unwrap() {
                "old" => assert_eq!(
                    Value::from(row.clone()),
                    json!({"id": "old", "number": "8", "isTest": "t", "metadata": r#"{"v":7}"#})
                ),
                "brief" => assert_eq!(operation, "delete"),
                id => assert_eq!(row, &row_of(&opened, id)),
            }
        }
        assert_eq!(members(&opened), ["late", "new", "old"]);
        gateway.stop().await;
    }
}
