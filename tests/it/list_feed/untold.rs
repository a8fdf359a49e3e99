//! Runs whose tags are stored out of line, so that the stream brings them with their own changes alone.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use super::RUNS;
use super::changes::{IDENTITIES, add_tag, database_of, news, row_of};
use crate::support::feed::{Feed, members, told};
use crate::support::gateway::{Gateway, eventually};
use crate::support::runs::{insert_with, set_metadata, update};

/// Long enough that what comes only at its end is not taken for news.
const HOLD: &str = "--hold=60s";
const SOON: Duration = Duration::from_secs(20);

/// Letters that do not compress.
fn random_text(length: usize) -> String {
    use rand::Rng as _;
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric);
    letters.take(length).map(char::from).collect()
}

/// As many tags and as long as the API allows.
fn long_tags() -> Vec<String> {
    (0..10u8).map(|i| format!("{i}{}", random_text(120))).collect()
}

/// A run with these tags and another large column, together too much for one row.
async fn insert_large(pool: &PgPool, environment: &str, run: &str, tags: &[String]) {
    let before = stored_out_of_line(pool).await;
    let list = format!("'{{{}}}'", tags.join(","));
    // Shorter than the tags, which are moved first.
    let metadata = format!("'{{\"v\":0,\"text\":\"{}\"}}'", random_text(1_100));
    let columns = [("runTags", list.as_str()), ("metadata", &metadata)];
    insert_with(pool, environment, run, &columns).await;
    assert!(stored_out_of_line(pool).await > before, "{run} is stored in line");
}

/// How many values are.
async fn stored_out_of_line(pool: &PgPool) -> i64 {
    let sql =
        r#"SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = '"TaskRun"'::regclass"#;
    let table: String = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    let sql = format!("SELECT count(DISTINCT chunk_id) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_run_whose_tags_are_stored_out_of_line_is_in_its_lists_all_the_same() {
    for identity in IDENTITIES {
        let database = database_of(identity).await;
        let (pool, environment) = (&database.pool, database.seeded.production);
        let tags = long_tags();
        insert_large(pool, environment.id, "run_1", &tags).await;
        let both = format!("{RUNS}?tags={},{}", tags[3], tags[7]);
        for path in [format!("{RUNS}?tags={}", tags[3]), both, RUNS.to_owned()] {
            // One that has not heard of the run.
            let gateway = Gateway::start(&database.url, &[HOLD]).await;
            let feed = Feed::new(&gateway, &path, environment.secret_key);
            let mut at = feed.open().await;
            assert!(members(&at).contains(&"1".to_owned()));
            let start = Instant::now();
            loop {
                let begin = Instant::now();
                let change = update(pool, "run_1", "number = number + 1");
                let (live, ()) = tokio::join!(feed.live(&at), change);
                let whole = row_of(&feed.anew().await, "1");
                let found = row_of(&live, "1");
                assert_eq!(found["number"], whole["number"], "{identity} {path}: {}", live.text);
                assert!(begin.elapsed() < SOON, "{identity} {path}: at the end of the hold");
                if told(&live) == ["insert 1"] {
                    assert_eq!(found, whole, "{identity} {path}");
                }
                // Once the tags have been learnt, which takes a query and waits for nothing else.
                if told(&live) == ["update 1"] {
                    break;
                }
                assert!(start.elapsed() < SOON, "{identity} {path}: they are not learnt");
                at = live;
            }
            gateway.stop().await;
        }
    }
}

#[tokio::test]
async fn its_changes_and_those_of_its_tags_reach_whom_they_concern_and_nobody_else() {
    let database = database_of("DEFAULT").await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let tags = long_tags();
    insert_large(pool, environment.id, "run_1", &tags).await;
    let gateway = Gateway::start(&database.url, &[HOLD]).await;
    let open = async |tags: String| {
        let feed = Feed::new(&gateway, &format!("{RUNS}?tags={tags}"), environment.secret_key);
        let at = feed.open().await;
        (feed, at)
    };
    let (mine, mine_at) = open(tags[0].clone()).await;
    let (pair, pair_at) = open(format!("{},late", tags[1])).await;
    let mut others = Vec::new();
    for nth in 0..30 {
        others.push(open(format!("other{nth}")).await);
    }
    // Written often, while others wait for what never comes: they are held and are not sent away.
    let writing = async {
        for _ in 0..50 {
            update(pool, "run_1", "number = number + 1").await;
        }
        // What is of theirs comes at once.
        for nth in 0..30 {
            let list = format!("'{{other{nth}}}'");
            let run = format!("run_other{nth}");
            insert_with(pool, environment.id, &run, &[("runTags", &list)]).await;
        }
    };
    let waiting = join_all(others.iter().map(|(feed, at)| feed.live(at)));
    let (answers, ()) = tokio::join!(waiting, writing);
    for (nth, answer) in answers.iter().enumerate() {
        assert_eq!(told(answer), [format!("insert other{nth}")]);
    }
    let mine_at = news(&mine, &mine_at).await;
    assert_eq!(row_of(&mine_at, "1")["number"], row_of(&mine.anew().await, "1")["number"]);

    // It enters a list by a tag that it gains, and leaves one.
    add_tag(pool, "run_1", "late").await;
    let pair_at = news(&pair, &pair_at).await;
    assert_eq!(told(&pair_at), ["insert 1"]);
    assert_eq!(row_of(&pair_at, "1"), row_of(&pair.anew().await, "1"));
    let mine_at = news(&mine, &mine_at).await;
    assert_eq!(told(&mine_at), ["update 1"]);
    let fewer = format!(r#""runTags" = array_remove("runTags", '{}')"#, tags[0]);
    update(pool, "run_1", &fewer).await;
    assert_eq!(told(&news(&mine, &mine_at).await), ["delete 1"]);
    assert_eq!(told(&news(&pair, &pair_at).await), ["update 1"]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_list_does_not_pass_by_what_the_database_has_not_told_yet() {
    let database = database_of("DEFAULT").await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let tags = long_tags();
    insert_large(pool, environment.id, "run_1", &tags).await;
    let gateway = Gateway::start(&database.url, &[HOLD]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags={}", tags[9]), environment.secret_key);
    let at = feed.open().await;
    // Runs are read together with their batches, so that this keeps such reads waiting.
    let mut lock = pool.begin().await.unwrap();
    let sql = r#"LOCK TABLE "BatchTaskRun" IN ACCESS EXCLUSIVE MODE"#;
    sqlx::raw_sql(sql).execute(&mut *lock).await.unwrap();
    update(pool, "run_1", "number = 77").await;
    let reads = async |number: i64| {
        eventually("the tags to be asked for", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap() >= number
        })
        .await;
    };
    // By the gateway, of itself, and then by the poll.
    reads(1).await;
    let release = async {
        reads(2).await;
        lock.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(feed.catch_up(&at), release);
    assert_eq!(row_of(&answer, "1")["number"], json!("77"), "{}", answer.text);
    set_metadata(pool, "run_1", 1).await;
    let row = row_of(&news(&feed, &answer).await, "1");
    assert_eq!(row["metadata"], json!(r#"{"v":1}"#));
    gateway.stop().await;
}
