//! The Electric clients on the raw feed: resuming, and starting again exactly once.

use runwire::server::Settings;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::SOON;
use crate::support::cluster::{drop_slot, fresh_database};
use crate::support::gateway::{Gateway, Shape, eventually, settings};
use crate::support::npm::Client;
use crate::support::runs::{insert_run, set_metadata, update};

/// The feeds of which `run_1` is the one member.
const RUN: &str = "/realtime/v1/runs/run_1";
const LIST: &str = "/realtime/v1/runs?tags=a,b";

/// The next batch, and what was asked for until then: status, `live`, and the query.
pub async fn next_batch(client: &mut Client, asked: &mut Vec<(u64, bool, Value)>) -> Value {
    loop {
        let said = client.next(SOON).await.expect("the client goes on");
        match said["type"].as_str() {
            Some("messages") => return said,
            Some("response") => asked.push((
                said["status"].as_u64().unwrap(),
                said["live"].as_bool().unwrap(),
                said["query"].clone(),
            )),
            Some("storage") => {}
            _ => panic!("{said}"),
        }
    }
}

/// The row messages of a batch: operation and value.
pub fn rows(batch: &Value) -> Vec<(&str, &Value)> {
    let messages = batch["messages"].as_array().unwrap().iter();
    messages
        .filter(|message| !message["value"].is_null())
        .map(|message| (message["headers"]["operation"].as_str().unwrap(), &message["value"]))
        .collect()
}

pub fn place(batch: &Value) -> (String, String) {
    let text = |field: &str| batch[field].as_str().unwrap().to_owned();
    (text("handle"), text("offset"))
}

/// What a batch holds that brings one change of the metadata and nothing else.
fn only_metadata(batch: &Value, version: u64) {
    let metadata = json!({ "v": version }).to_string();
    assert_eq!(rows(batch), [("update", &json!({ "id": "1", "metadata": metadata }))]);
}

#[tokio::test]
async fn a_stored_handle_and_offset_bring_only_what_changed_also_after_a_restart() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let slot = ["--slot=sdk_resume", "--slot-kind=permanent"];
    let settings = settings(&database.url, &slot);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    // Inserted while the stream is read, so that it is known whole from it.
    insert_run(pool, environment.id, "run_1").await;
    let target = gateway.target(environment.secret_key);
    let resume = async |(handle, offset): &(String, String)| {
        let from = Some((handle.as_str(), offset.as_str()));
        Client::electric("electric-1.0.14", &target, RUN, from).await
    };

    let mut asked = Vec::new();
    let mut client = Client::electric("electric-1.0.14", &target, RUN, None).await;
    let batch = next_batch(&mut client, &mut asked).await;
    let [("insert", row)] = rows(&batch)[..] else { panic!("{batch}") };
    assert_eq!((&row["friendlyId"], &row["isTest"]), (&json!("run_1"), &json!(false)));
    set_metadata(pool, "run_1", 1).await;
    let batch = next_batch(&mut client, &mut asked).await;
    only_metadata(&batch, 1);
    let stored = place(&batch);
    drop(client);

    set_metadata(pool, "run_1", 2).await;
    let batch = next_batch(&mut resume(&stored).await, &mut asked).await;
    only_metadata(&batch, 2);
    let stored = place(&batch);

    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    set_metadata(pool, "run_1", 3).await;
    gateway.stop().await;
    set_metadata(pool, "run_1", 4).await;
    let gateway = Gateway::start_with(Settings { listen, ..settings }).await;
    gateway.ready().await;
    let mut client = resume(&stored).await;
    only_metadata(&next_batch(&mut client, &mut asked).await, 4);
    set_metadata(pool, "run_1", 5).await;
    only_metadata(&next_batch(&mut client, &mut asked).await, 5);
    assert!(asked.iter().all(|(status, ..)| *status == 200), "{asked:?}");
    gateway.stop().await;
    drop_slot(pool, "sdk_resume").await;
}

/// A handle that the window no longer holds: one 409, one refetch, and on. Then the same tab comes
/// back, and remembers the handle that was refused.
async fn refetches_once(electric: &str, feed: &str) {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    insert_run(pool, environment.id, "run_1").await;
    update(pool, "run_1", r#""runTags" = '{a,b}'"#).await;
    let gateway = Gateway::start(&database.url, &["--window=1s"]).await;
    let target = gateway.target(key);
    let ask = async |query: &str| {
        let separator = if feed.contains('?') { '&' } else { '?' };
        let request = gateway.get(&format!("{feed}{separator}{query}"), key);
        Shape::read(request.send().await.expect("an answer")).await
    };
    let open = ask("offset=-1").await;
    set_metadata(pool, "run_1", 1).await;
    eventually("the window to forget", || async {
        // Something must commit, that what is old be looked at.
        update(pool, "run_1", "number = number + 1").await;
        ask(&format!("handle={}&offset={}", open.handle(), open.offset())).await.status == 409
    })
    .await;

    let (handle, from) = (open.handle(), Some((open.handle(), open.offset())));
    let mut client = Client::electric_tab(electric, &target, feed, from, &json!({})).await;
    let mut asked = Vec::new();
    let mut storage = json!({});
    let mut batches = Vec::new();
    while batches.last().is_none_or(|batch| rows(batch).is_empty()) {
        let said = client.next(SOON).await.expect("the client goes on");
        match said["type"].as_str() {
            Some("storage") => storage = said["items"].clone(),
            Some("messages") => batches.push(said),
            Some("response") => asked.push(said),
            _ => panic!("{electric}: {said}"),
        }
    }
    let statuses: Vec<_> = asked.iter().map(|said| said["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [409, 200], "{electric}: {asked:?}");
    assert_eq!(asked[1]["query"]["offset"], "-1", "{electric}");
    assert_eq!(asked[1]["query"]["expired_handle"], handle, "{electric}");
    let batch = batches.last().unwrap();
    let [("insert", row)] = rows(batch)[..] else { panic!("{electric}: {batch}") };
    assert_eq!(row["metadata"], r#"{"v":1}"#);

    let offset = goes_on(electric, &mut client, pool, 2).await;
    drop(client);
    assert!(storage["electric_expired_shapes"].as_str().unwrap().contains(handle), "{storage}");

    let tracks = storage["electric_up_to_date_tracker"].is_string();
    assert_eq!(tracks, electric == "electric-1.5.28", "{storage}");
    // The newer one takes what it sees first for a cache's replay if it was up to date here lately.
    if let Some(tracked) = storage["electric_up_to_date_tracker"].as_str() {
        let mut tracked: Value = serde_json::from_str(tracked).unwrap();
        for shape in tracked.as_object_mut().unwrap().values_mut() {
            shape["cursor"] = json!(offset.split_once('_').unwrap().0);
        }
        storage["electric_up_to_date_tracker"] = json!(tracked.to_string());
    }

    let mut tab = Client::electric_tab(electric, &target, feed, None, &storage).await;
    let mut asked = Vec::new();
    let batch = next_batch(&mut tab, &mut asked).await;
    let [("insert", row)] = rows(&batch)[..] else { panic!("{electric}: {batch}") };
    assert_eq!(row["metadata"], r#"{"v":2}"#);
    assert_eq!(asked.len(), 1, "{electric}: {asked:?}");
    let (status, live, query) = &asked[0];
    assert_eq!((*status, *live), (200, false), "{electric}");
    assert_eq!(query["expired_handle"], handle, "{electric}");
    goes_on(electric, &mut tab, pool, 3).await;
    gateway.stop().await;
}

/// The next change comes with the next poll, and that is the only one. Returns where it leads to.
async fn goes_on(electric: &str, client: &mut Client, pool: &PgPool, version: i64) -> String {
    set_metadata(pool, "run_1", version).await;
    let mut asked = Vec::new();
    let batch = next_batch(client, &mut asked).await;
    let metadata = json!({ "v": version }).to_string();
    // In a list it is whole again if the window has forgotten the run meanwhile.
    let [(_, row)] = rows(&batch)[..] else { panic!("{electric}: {batch}") };
    assert_eq!(row["metadata"], metadata, "{electric}");
    let asked: Vec<_> = asked.iter().map(|(status, live, _)| (*status, *live)).collect();
    assert_eq!(asked, [(200, true)], "{electric}");
    batch["offset"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn electric_1_0_14_refetches_once_what_the_window_no_longer_holds() {
    refetches_once("electric-1.0.14", RUN).await;
}

#[tokio::test]
async fn electric_1_5_28_refetches_once_what_the_window_no_longer_holds() {
    refetches_once("electric-1.5.28", RUN).await;
}

#[tokio::test]
async fn electric_1_0_14_refetches_a_list_once_too() {
    refetches_once("electric-1.0.14", LIST).await;
}

#[tokio::test]
async fn electric_1_5_28_refetches_a_list_once_too() {
    refetches_once("electric-1.5.28", LIST).await;
}
