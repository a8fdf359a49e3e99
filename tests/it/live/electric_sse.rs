//! The Electric clients by events, on all three feeds: every version once and in order, through
//! reconnects, restarts and a 409.

use std::collections::BTreeMap;

use runwire::dev::run::set_metadata;
use runwire::server::Settings;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::{SOON, of_run, of_tag, trigger};
use crate::support::cluster::{Database, drop_slot, fresh_database};
use crate::support::gateway::{Gateway, settings};
use crate::support::npm::{Client, Target};

const CLIENTS: [&str; 2] = ["electric-1.0.14", "electric-1.5.28"];

/// A client of events, what it was told of each run, and what it asked.
struct Tab {
    client: Client,
    name: &'static str,
    rows: BTreeMap<String, Value>,
    asked: Vec<Value>,
    refetches: usize,
}

impl Tab {
    async fn open(name: &'static str, target: &Target, feed: &str) -> Tab {
        let env = [
            ("BASE_URL", target.base_url.as_str()),
            ("ACCESS_TOKEN", &target.access_token),
            ("FEED", feed),
        ];
        let client = Client::start("electric-sse.mjs", &[name], &env).await;
        Tab { client, name, rows: BTreeMap::new(), asked: Vec::new(), refetches: 0 }
    }

    /// Reads until a batch brings rows; gives the metadata in it, as the messages come.
    async fn told(&mut self) -> Vec<String> {
        loop {
            let said = self.client.next(SOON).await.expect("the client goes on");
            match said["type"].as_str() {
                Some("response") => self.asked.push(said),
                Some("messages") => {
                    let told = self.take(said["messages"].as_array().unwrap());
                    if !told.is_empty() {
                        return told;
                    }
                }
                _ => panic!("{}: {said} after {:?}", self.name, self.asked),
            }
        }
    }

    fn take(&mut self, messages: &[Value]) -> Vec<String> {
        let mut told = Vec::new();
        for message in messages {
            let Some(key) = message["key"].as_str() else {
                if message["headers"]["control"] == "must-refetch" {
                    self.rows.clear();
                    self.refetches += 1;
                }
                continue;
            };
            let known = self.rows.contains_key(key);
            let operation = &message["headers"]["operation"];
            // A row whose former state the gateway has not seen comes whole once more.
            assert!(known || operation == "insert", "{}: {message}", self.name);
            let row = self.rows.entry(key.to_owned()).or_insert_with(|| json!({}));
            for (column, value) in message["value"].as_object().unwrap() {
                row[column] = value.clone();
            }
            told.push(row["metadata"].as_str().unwrap_or_default().to_owned());
        }
        told
    }

    /// How many live requests were made, all of which asked for events.
    fn connections(&self) -> usize {
        let live: Vec<_> = self.asked.iter().filter(|asked| asked["live"] == true).collect();
        for asked in &live {
            let (new, old) =
                (&asked["query"]["live_sse"], &asked["query"]["experimental_live_sse"]);
            assert_eq!(old, "true", "{}: {asked}", self.name);
            assert_eq!(new == "true", self.name == "electric-1.5.28", "{asked}");
        }
        live.len()
    }
}

async fn feeds(database: &Database) -> (String, [String; 3]) {
    let (environment, pool) = (database.seeded.production, &database.pool);
    let batch = runwire::dev::trigger_batch(pool, &environment, Vec::new()).await.unwrap();
    let run = trigger(pool, &environment, Some(&batch.id)).await;
    let of_batch = format!("/realtime/v1/batches/{}", batch.friendly_id);
    let feeds = [of_run(&run), of_tag(), of_batch];
    (run, feeds)
}

async fn tabs(target: &Target, feeds: &[String], names: &[&'static str]) -> Vec<Tab> {
    let mut tabs = Vec::new();
    for name in names {
        for feed in feeds {
            let mut tab = Tab::open(name, target, feed).await;
            assert_eq!(tab.told().await, [""], "{name}: {feed}");
            tabs.push(tab);
        }
    }
    tabs
}

/// Each version is written after all have been told of the one before, and is told alone and once.
async fn paced(tabs: &mut [Tab], pool: &PgPool, run: &str, versions: std::ops::Range<u32>) {
    for version in versions {
        let metadata = json!({ "v": version }).to_string();
        set_metadata(pool, run, &metadata).await.unwrap();
        for tab in &mut *tabs {
            assert_eq!(tab.told().await, [metadata.as_str()], "{}", tab.name);
        }
    }
}

#[tokio::test]
async fn both_clients_follow_every_feed_by_one_connection_of_events() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let (run, feeds) = feeds(&database).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let target = gateway.target(environment.secret_key);
    let mut tabs = tabs(&target, &feeds, &CLIENTS).await;
    paced(&mut tabs, pool, &run, 1..6).await;
    // Another run comes to the lists, and is told to none of the run's own feeds.
    let other = trigger(pool, &environment, None).await;
    for tab in tabs.iter_mut().skip(1).step_by(3) {
        assert_eq!(tab.told().await, [""]);
        assert_eq!(tab.rows.len(), 2);
    }
    set_metadata(pool, &other, r#"{"v":"other"}"#).await.unwrap();
    for tab in tabs.iter_mut().skip(1).step_by(3) {
        assert_eq!(tab.told().await, [r#"{"v":"other"}"#]);
    }
    for tab in &tabs {
        assert_eq!(tab.connections(), 1, "{}: {:?}", tab.name, tab.asked);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn every_version_is_told_once_over_many_connections_and_nobody_gives_events_up() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let (run, feeds) = feeds(&database).await;
    let gateway = Gateway::start(&database.url, &["--sse-life=2s"]).await;
    let mut tabs = tabs(&gateway.target(environment.secret_key), &feeds, &CLIENTS).await;
    let mut version = 1;
    // More connections than it takes a client to lose its trust in short ones.
    while tabs.iter().any(|tab| tab.connections() < 5) {
        paced(&mut tabs, pool, &run, version..version + 1).await;
        version += 1;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_of_the_gateway_loses_and_doubles_nothing() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let (run, feeds) = feeds(&database).await;
    let slot = ["--slot=sse_restart", "--slot-kind=permanent"];
    let settings = settings(&database.url, &slot);
    let mut gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    let mut tabs = tabs(&gateway.target(environment.secret_key), &feeds, &CLIENTS).await;
    for restart in 0..2 {
        let version = 10 * restart;
        paced(&mut tabs, pool, &run, version + 1..version + 3).await;
        let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
        gateway.stop().await;
        // Nobody is there, so only the last of these is told.
        set_metadata(pool, &run, r#"{"v":"lost"}"#).await.unwrap();
        let metadata = json!({ "v": version + 3 }).to_string();
        set_metadata(pool, &run, &metadata).await.unwrap();
        gateway = Gateway::start_with(Settings { listen, ..settings.clone() }).await;
        for tab in &mut tabs {
            let mut told = tab.told().await;
            // What has been read of the stream so far is told, were it the first of the two alone.
            if told == [r#"{"v":"lost"}"#] {
                told = tab.told().await;
            }
            assert_eq!(told, [metadata.as_str()], "{}", tab.name);
        }
        paced(&mut tabs, pool, &run, version + 4..version + 6).await;
    }
    for tab in &tabs {
        assert_eq!(tab.refetches, 0, "{}", tab.name);
        tab.connections();
    }
    gateway.stop().await;
    drop_slot(pool, "sse_restart").await;
}

#[tokio::test]
async fn a_connection_whose_place_is_forgotten_is_answered_by_one_409_and_goes_on_by_events() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let (run, feeds) = feeds(&database).await;
    let gateway = Gateway::start(&database.url, &["--window-bytes=512KiB"]).await;
    let mut tabs = tabs(&gateway.target(environment.secret_key), &feeds, &CLIENTS).await;
    paced(&mut tabs, pool, &run, 1..3).await;
    let large = trigger(pool, &environment, None).await;
    for tab in tabs.iter_mut().skip(1).step_by(3) {
        assert_eq!(tab.told().await, [""]);
    }
    // More than the window carries, so that everything before it is forgotten at once.
    let sql = r#"UPDATE "TaskRun" SET payload = (SELECT string_agg(md5(i::text), '') FROM
        generate_series(1, 20000) i) WHERE "friendlyId" = $1"#;
    sqlx::query(AssertSqlSafe(sql)).bind(&large).execute(pool).await.unwrap();
    let (mine, other) = (r#"{"v":2}"#.to_owned(), String::new());
    for (n, tab) in tabs.iter_mut().enumerate() {
        let mut told = tab.told().await;
        told.sort();
        let lists_both = n % 3 == 1;
        let expected =
            if lists_both { vec![other.clone(), mine.clone()] } else { vec![mine.clone()] };
        assert_eq!(told, expected, "{}", tab.name);
        assert_eq!(tab.refetches, 1, "{}", tab.name);
    }
    paced(&mut tabs, pool, &run, 3..6).await;
    for tab in &tabs {
        let refused = tab.asked.iter().filter(|asked| asked["status"] == 409).count();
        assert_eq!(refused, 1, "{}: {:?}", tab.name, tab.asked);
        assert_eq!(tab.connections(), 3, "{}: {:?}", tab.name, tab.asked);
    }
    gateway.stop().await;
}
