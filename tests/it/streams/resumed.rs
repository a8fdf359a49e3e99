//! What is acknowledged is kept, and who was cut off goes on where they were.

use futures_util::StreamExt as _;
use serde_json::json;

use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::npm::Target;
use crate::support::program::Serving;
use crate::support::streams::{SOON, Stand, expect_numbers, order, records, run, scratch, task};

#[tokio::test]
async fn an_acknowledged_chunk_survives_a_crash_and_resuming_is_exact() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let key = database.seeded.production.secret_key;
    let run = run(&database).await;
    let mut url = "http://127.0.0.1:0".to_owned();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut written = 0;
    for _ in 0..3 {
        let gateway = Serving::start_at(&url, &database.url, &[&directory]).await;
        url = gateway.url.clone();
        for _ in 0..20 {
            let path = format!("{url}/realtime/v1/streams/{run}/self/ai/append");
            eventually("the gateway to take a chunk", || async {
                let request = client.post(&path).bearer_auth(key).header("x-part-id", "p");
                let answer = request.body(written.to_string()).send().await.unwrap();
                answer.status() == 200
            })
            .await;
            written += 1;
        }
        gateway.kill().await;
    }
    let gateway = Serving::start_at(&url, &database.url, &[&directory]).await;
    let read = async |after: Option<u64>| {
        let request = client.get(format!("{url}/realtime/v1/streams/{run}/ai")).bearer_auth(key);
        let request = request.header("timeout-seconds", "0");
        let request = match after {
            Some(after) => request.header("last-event-id", after),
            None => request,
        };
        records(&request.send().await.unwrap().text().await.unwrap())
    };
    let chunk = |n: u64| (n, format!(r#"{{"data":"{n}","id":"p"}}"#));
    assert_eq!(read(None).await, (0..60).map(chunk).collect::<Vec<_>>());
    for after in [0, 19, 20, 41, 58, 59, 60, 1_000] {
        let expected: Vec<_> = (after + 1..60).map(chunk).collect();
        assert_eq!(read(Some(after)).await, expected, "after {after}");
    }
    // The secret is its owner's alone.
    use std::os::unix::fs::PermissionsExt as _;
    let _ = client
        .put(format!("{url}/realtime/v1/streams/{run}/self/ai"))
        .bearer_auth(key)
        .send()
        .await;
    let secret = std::fs::metadata(data.0.join("secret")).expect("a secret");
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    gateway.stop().await;
}

#[tokio::test]
async fn a_reader_and_an_open_writer_outlive_a_crash() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let run = run(&database).await;
    let gateway = Serving::start(&database.url, &[&directory]).await;
    let url = gateway.url.clone();
    let access_token = database.seeded.production.secret_key.to_owned();
    let target = Target { base_url: url.clone(), access_token };
    let mut reader = task("sdk-4.8.3", &target, &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 60 })).await;
    let mut writer = task("sdk-4.8.3", &target, &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }, { "n": 1 }] })).await;
    expect_numbers(&mut reader, 0..2).await;
    gateway.kill().await;
    let gateway = Serving::start_at(&url, &database.url, &[&directory]).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 2 }, { "n": 3 }] })).await;
    expect_numbers(&mut reader, 2..4).await;
    order(&mut writer, json!({ "order": "close" })).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_idle_open_writer_outlives_an_orderly_restart_and_another() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let run = run(&database).await;
    let mut gateway = Serving::start(&database.url, &[&directory]).await;
    let url = gateway.url.clone();
    let access_token = database.seeded.production.secret_key.to_owned();
    let target = Target { base_url: url.clone(), access_token };
    let mut reader = task("sdk-4.8.3", &target, &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 60 })).await;
    let mut writer = task("sdk-4.8.3", &target, &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    for n in 0..3 {
        order(&mut writer, json!({ "order": "write", "values": [{ "n": n }] })).await;
        expect_numbers(&mut reader, n..n + 1).await;
        // It is told to go (GOAWAY), and reset while it has nothing to say.
        gateway.stop().await;
        gateway = Serving::start_at(&url, &database.url, &[&directory]).await;
    }
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 3 }] })).await;
    expect_numbers(&mut reader, 3..4).await;
    order(&mut writer, json!({ "order": "close" })).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_orderly_end_cuts_readers_off_so_that_they_come_back() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "x").await;
    let path = format!("/realtime/v1/streams/{run}/ai");
    let answer = stand.gateway.request("GET", &path).bearer_auth(stand.key()).send().await.unwrap();
    let mut body = answer.bytes_stream();
    assert!(body.next().await.expect("a first event").is_ok());
    let rest = async {
        let mut last = None;
        while let Some(piece) = body.next().await {
            last = Some(piece);
        }
        last
    };
    let (last, ()) = futures_util::join!(rest, stand.gateway.stop());
    assert!(last.expect("an end").is_err(), "a clean end would be the stream's");
}

#[tokio::test]
async fn a_store_that_another_process_uses_is_taken_over_when_that_has_ended() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let key = database.seeded.production.secret_key;
    let run = run(&database).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let append = async |gateway: &Serving| {
        let path = format!("{}/realtime/v1/streams/{run}/self/ai/append", gateway.url);
        let answer = client.post(path).bearer_auth(key).body("x").send().await.unwrap();
        answer.status().as_u16()
    };
    let first = Serving::start(&database.url, &[&directory]).await;
    assert_eq!(append(&first).await, 200);
    let slot = "--slot=runwire_second";
    let second = Serving::start(&database.url, &[&directory, slot]).await;
    assert_eq!(append(&second).await, 503);
    // Run feeds are served meanwhile, and the first one's store is unharmed.
    second.ready().await;
    assert_eq!(append(&first).await, 200);
    first.kill().await;
    eventually("the second to take over", || async { append(&second).await == 200 }).await;
    tokio::time::timeout(SOON, second.stop()).await.expect("an end");
}
