//! Lists that something comes between: a gateway that goes on from its slot, and one that knows nothing.

use runwire::dev::run::set_metadata;
use runwire::dev::{RunSpec, TriggeredBatch, trigger_batch};
use runwire::feed::position::Position;
use runwire::server::Settings;
use serde_json::json;

use super::SDKS;
use super::lists::{Lists, TAG};
use crate::support::cluster::{Database, drop_slot, fresh_database};
use crate::support::gateway::{Gateway, eventually, settings};

/// Two runs in both lists.
async fn members(database: &Database) -> TriggeredBatch {
    let spec = RunSpec { tags: Some(vec![TAG.to_owned()]), ..RunSpec::new("child") };
    let specs = vec![spec; 2];
    trigger_batch(&database.pool, &database.seeded.production, specs).await.unwrap()
}

/// Waits until the stream has come to all that any query has seen so far: a client that still skips
/// what its query showed cannot go on by another connection.
async fn passes_what_was_read(gateway: &Gateway, database: &Database, run: &str) {
    let end = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
    let end: i64 = sqlx::query_scalar(end).fetch_one(&database.pool).await.unwrap();
    let key = database.seeded.production.secret_key;
    eventually("the stream to pass what was read", || async {
        let open = gateway.open(run, key).await;
        let at: Position = open.offset().parse().unwrap();
        at.lsn.0 >= end as u64
    })
    .await;
}

/// Stops the gateway, changes a run, and starts the gateway again at the same address.
async fn replace(gateway: Gateway, settings: Settings, database: &Database, run: &str) -> Gateway {
    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    gateway.stop().await;
    set_metadata(&database.pool, run, r#"{"v":1}"#).await.unwrap();
    let gateway = Gateway::start_with(Settings { listen, ..settings }).await;
    gateway.ready().await;
    gateway
}

#[tokio::test]
async fn a_gateway_that_goes_on_from_its_slot_sends_only_what_changed_to_every_sdk() {
    let database = fresh_database().await;
    let slot = ["--slot=sdk_lists", "--slot-kind=permanent"];
    let settings = settings(&database.url, &slot);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    let target = gateway.target(database.seeded.production.secret_key);
    // Triggered while the stream is read, so that they are known whole from it.
    let batch = members(&database).await;
    let [first, second] = [0, 1].map(|n| batch.runs[n].friendly_id.as_str());
    let feeds =
        json!([{ "feed": "tag", "tags": TAG }, { "feed": "batch", "batch": batch.friendly_id }]);
    let mut following = Vec::new();
    for sdk in SDKS {
        let mut lists = Lists::follow(sdk, &target, &feeds).await;
        lists.show([("tag", first), ("tag", second), ("batch", first), ("batch", second)]).await;
        following.push((sdk, lists));
    }
    passes_what_was_read(&gateway, &database, first).await;
    let gateway = replace(gateway, settings, &database, first).await;
    for (sdk, lists) in &mut following {
        for run in lists.show([("tag", first), ("batch", first)]).await {
            assert_eq!(run["metadata"], json!({ "v": 1 }), "{sdk}");
        }
    }
    set_metadata(&database.pool, second, r#"{"v":2}"#).await.unwrap();
    for (sdk, mut lists) in following {
        lists.show([("tag", second), ("batch", second)]).await;
        let opened = lists.answers.iter().filter(|(_, query)| query["offset"] == "-1");
        assert_eq!(opened.count(), 2, "{sdk}: {:?}", lists.answers);
        // A 503 is tried again.
        let refused = lists.answers.iter().find(|(status, _)| !matches!(status, 200 | 503));
        assert!(refused.is_none(), "{sdk}: {refused:?}");
    }
    gateway.stop().await;
    drop_slot(&database.pool, "sdk_lists").await;
}

#[tokio::test]
async fn a_gateway_that_knows_nothing_makes_every_sdk_refetch_each_list_once() {
    let database = fresh_database().await;
    let settings = settings(&database.url, &[]);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    let target = gateway.target(database.seeded.production.secret_key);
    let batch = members(&database).await;
    let [first, second] = [0, 1].map(|n| batch.runs[n].friendly_id.as_str());
    let feeds =
        json!([{ "feed": "tag", "tags": TAG }, { "feed": "batch", "batch": batch.friendly_id }]);
    let all = [("tag", first), ("tag", second), ("batch", first), ("batch", second)];
    let mut following = Vec::new();
    for sdk in SDKS {
        let mut lists = Lists::follow(sdk, &target, &feeds).await;
        lists.show(all).await;
        following.push((sdk, lists));
    }
    let gateway = replace(gateway, settings, &database, first).await;
    for (sdk, lists) in &mut following {
        let [run, ..] = lists.show(all).await;
        assert_eq!(run["metadata"], json!({ "v": 1 }), "{sdk}");
    }
    set_metadata(&database.pool, second, r#"{"v":2}"#).await.unwrap();
    for (sdk, mut lists) in following {
        lists.show([("tag", second), ("batch", second)]).await;
        let of = |wanted: u64| lists.answers.iter().filter(|(status, _)| *status == wanted).count();
        assert_eq!(of(409), 2, "{sdk}: {:?}", lists.answers);
        let opened = lists.answers.iter().filter(|(_, query)| query["offset"] == "-1");
        assert_eq!(opened.count(), 4, "{sdk}: {:?}", lists.answers);
    }
    gateway.stop().await;
}
