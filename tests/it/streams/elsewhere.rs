//! Streams that another S2 keeps: written there by the real clients, read here.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{Gateway, eventually};
use crate::support::program::Serving;
use crate::support::s2::{Lite, SERVICE};
use crate::support::streams::{SOON, Stand, expect_numbers, order, records, records_of, scratch};

/// A Runwire whose store others use.
async fn home() -> (Gateway, Database, crate::support::scratch::Scratch) {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let service = format!("--s2-service-token={SERVICE}");
    (Gateway::start(&database.url, &[&directory, &service]).await, database, data)
}

/// A gateway whose streams are there.
async fn stand(endpoint: &str) -> Stand {
    let endpoint = format!("--s2-endpoint={endpoint}");
    Stand::start(&[&endpoint, &format!("--s2-access-token={SERVICE}")]).await
}

async fn use_basin(stand: &Stand, run: &str, basin: &str) {
    let sql = r#"UPDATE "TaskRun" SET "streamBasinName" = $1 WHERE "friendlyId" = $2"#;
    sqlx::query(sql).bind(basin).bind(run).execute(&stand.database.pool).await.unwrap();
}

#[tokio::test]
async fn what_the_sdk_writes_there_is_read_here_in_order_whichever_basin_it_is_in() {
    let (home, _database, _data) = home().await;
    let endpoint = format!("{}/s2/v1", home.url);
    let stand = stand(&endpoint).await;
    for (basin, tenant) in
        [(None, "org/org_acme/env/prod/env_prod"), (Some("basin-of-acme"), "env/prod/env_prod")]
    {
        let run = stand.run().await;
        if let Some(basin) = basin {
            use_basin(&stand, &run, basin).await;
        }
        let headers = stand.create(&run, "ai").await;
        let header = |name: &str| headers[name].to_str().unwrap();
        assert_eq!(header("x-s2-endpoint"), endpoint);
        assert_eq!(header("x-s2-basin"), basin.unwrap_or("trigger-realtime"));
        assert_eq!(header("x-s2-stream-name"), format!("/runs/{run}/ai"));
        assert_eq!(header("x-s2-access-token").split('.').count(), 3, "one of its own");
        let mut reader = stand.task("sdk-4.8.3", &run).await;
        let read = json!({ "order": "read", "key": "ai", "timeoutInSeconds": 5 });
        reader.tell(&read).await;
        let mut writer = stand.task("sdk-4.8.3", &run).await;
        order(&mut writer, json!({ "order": "pipe", "key": "ai", "count": 300 })).await;
        expect_numbers(&mut reader, 0..300).await;
        reader.next_of("end", SOON).await;
        let late =
            json!({ "order": "read", "key": "ai", "startIndex": 250, "timeoutInSeconds": 1 });
        reader.tell(&late).await;
        expect_numbers(&mut reader, 250..300).await;
        reader.next_of("end", SOON).await;
        // The gateway's own append, and what it is like there.
        stand.append(&run, "ai", "plain ☃").await;
        let read = records(&stand.read(&run, "ai", Some("299"), 0).await);
        assert_eq!(read, [(300, r#"{"data":"plain ☃","id":"p"}"#.to_owned())]);
        let name = format!("{tenant}/runs/{run}/ai");
        let path = format!("/s2/v1{}/tail", records_of(&name));
        let tail = home.request("GET", &path).bearer_auth(SERVICE);
        let tail = tail.header("s2-basin", header("x-s2-basin")).send().await.unwrap();
        let tail: Value = serde_json::from_str(&tail.text().await.unwrap()).unwrap();
        assert_eq!(tail["tail"]["seq_num"], 301);
    }
    // Nobody is served S2's routes here, whatever they show.
    let answer = stand.gateway.request("GET", "/s2/v1/basins").bearer_auth(SERVICE).send().await;
    assert_eq!(answer.unwrap().status(), 501);
}

#[tokio::test]
async fn control_records_and_trims_are_shown_as_s2_shows_them() {
    let (home, _database, _data) = home().await;
    let stand = stand(&format!("{}/s2/v1", home.url)).await;
    let run = stand.run().await;
    let headers = stand.create(&run, "ai").await;
    let header = |name: &str| headers[name].to_str().unwrap();
    let env = [
        ("ENDPOINT", header("x-s2-endpoint")),
        ("TOKEN", header("x-s2-access-token")),
        ("BASIN", header("x-s2-basin")),
        ("STREAM", header("x-s2-stream-name")),
    ];
    let mut client = crate::support::npm::Client::start("s2.mjs", &[], &env).await;
    client.next_of("trim", SOON).await;
    // The same text as the gateway that keeps them gives of them. What is trimmed goes meanwhile.
    let name = format!("org/org_acme/env/prod/env_prod/runs/{run}/ai");
    let path = format!("/s2/v1{}?seq_num=0&wait=0&clamp=true", records_of(&name));
    eventually("both to show the same", || async {
        let here = stand.read(&run, "ai", None, 0).await;
        let request = home.request("GET", &path).bearer_auth(SERVICE).header("s2-format", "raw");
        let request = request.header("s2-basin", "trigger-realtime");
        let there = request.header("accept", "text/event-stream").send().await.unwrap();
        here.contains(r#""headers":[["","trim"]]"#) && here == there.text().await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_token_is_asked_for_once_for_an_environment_and_ends_with_who_asked() {
    let (home, _database, _data) = home().await;
    let stand = stand(&format!("{}/s2/v1", home.url)).await;
    let (first, second) = (stand.run().await, stand.run().await);
    let token = async |run: &str, key: &str| {
        let path = format!("/realtime/v1/streams/{run}/self/ai");
        let answer = stand.gateway.request("PUT", &path).bearer_auth(key).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        answer.headers()["x-s2-access-token"].to_str().unwrap().to_owned()
    };
    let shared = token(&first, stand.key()).await;
    // One that is made in another second is another one.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(token(&second, stand.key()).await, shared);
    use_basin(&stand, &second, "basin-of-acme").await;
    assert_ne!(token(&second, stand.key()).await, shared, "another basin's");
    let sql = "UPDATE api_keys SET expires_at = now() AT TIME ZONE 'utc' + interval '1 hour'";
    sqlx::query(sql).execute(&stand.database.pool).await.unwrap();
    let admin = stand.database.seeded.admin_key;
    eventually("a token that ends with its key", || async {
        expiry(&token(&first, admin).await) < expiry(&shared) - 20 * 60 * 60
    })
    .await;
    assert_eq!(token(&first, stand.key()).await, shared);
}

#[tokio::test]
async fn a_writer_is_told_where_the_operator_says_and_of_s2_dev_nothing() {
    let (home, _database, _data) = home().await;
    let account = format!("--s2-account-url={}/s2/v1", home.url);
    let token = format!("--s2-access-token={SERVICE}");
    let stand = Stand::start(&[&account, &token]).await;
    let headers = stand.create(&stand.run().await, "ai").await;
    assert!(!headers.contains_key("x-s2-endpoint"));
    assert_eq!(headers["x-s2-access-token"].to_str().unwrap().split('.').count(), 3);
    let endpoint = format!("--s2-endpoint={}/s2/v1", home.url);
    let outside = "--s2-public-endpoint=https://s2.example.com/v1";
    let stand = Stand::start(&[&endpoint, &token, outside]).await;
    let headers = stand.create(&stand.run().await, "ai").await;
    assert_eq!(headers["x-s2-endpoint"], "https://s2.example.com/v1");
}

/// When one of Runwire's tokens ends, in seconds since 1970.
fn expiry(token: &str) -> u64 {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["exp"].as_u64().unwrap()
}

#[tokio::test]
async fn s2_lite_asks_for_no_token_and_the_setting_that_says_so_is_named() {
    let lite = Lite::start().await;
    let stand = Stand::start(&[
        &format!("--s2-endpoint={}", lite.endpoint),
        "--s2-skip-access-tokens=true",
    ])
    .await;
    let run = stand.run().await;
    let headers = stand.create(&run, "ai").await;
    assert_eq!(headers["x-s2-access-token"], "s2-skip-access-tokens");
    let name = format!("org/org_acme/env/prod/env_prod/runs/{run}/ai");
    assert_eq!(headers["x-s2-stream-name"], name);
    assert_eq!(headers["x-s2-endpoint"], lite.endpoint);
    let mut reader = stand.task("sdk-4.8.3", &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 30 })).await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "pipe", "key": "ai", "count": 1_500 })).await;
    expect_numbers(&mut reader, 0..1_500).await;

    // Without the setting it would have to issue tokens. The row is not touched.
    let other =
        Stand::start(&[&format!("--s2-endpoint={}", lite.endpoint), "--s2-access-token=t"]).await;
    let run = other.run().await;
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    let answer = other.gateway.request("PUT", &path).bearer_auth(other.key()).send().await.unwrap();
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.headers()["x-should-retry"], "false");
    let text = answer.text().await.unwrap();
    assert!(text.contains("REALTIME_STREAMS_S2_SKIP_ACCESS_TOKENS=true"), "{text}");
    assert!(other.keys(&run).await.is_empty());
}

#[tokio::test]
async fn an_outage_there_is_a_503_here_breaks_readers_off_and_ends_by_itself() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let service = format!("--s2-service-token={SERVICE}");
    let arguments = [&*directory, &service, "--secret=a secret of the tests, long enough"];
    let home = Serving::start(&database.url, &arguments).await;
    let url = home.url.clone();
    let stand = stand(&format!("{url}/s2/v1")).await;
    let run = stand.run().await;
    let append = async |chunk: &str| {
        let path = format!("/realtime/v1/streams/{run}/self/ai/append");
        let request = stand.gateway.request("POST", &path).bearer_auth(stand.key());
        let request = request.header("x-part-id", format!("part-{chunk}"));
        request.body(chunk.to_owned()).send().await.unwrap().status()
    };
    for n in 0..3 {
        assert_eq!(append(&n.to_string()).await, 200);
    }
    let ready = async || stand.gateway.admin("/readyz").await.text;
    eventually("streams to be ready", || async { ready().await == "ready\nstreams: ready\n" })
        .await;
    let mut task = stand.task("sdk-4.8.3", &run).await;
    task.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 60 })).await;
    for n in 0..3 {
        assert_eq!(task.next_of("chunk", SOON).await["chunk"], n.to_string());
    }
    let path = format!("/realtime/v1/streams/{run}/ai");
    let get = || stand.gateway.request("GET", &path).bearer_auth(stand.key());
    let mut body = get().send().await.unwrap().bytes_stream();
    assert!(body.next().await.expect("an event").is_ok());
    home.kill().await;
    let end = async {
        loop {
            match body.next().await {
                Some(Ok(_)) => {}
                end => return end,
            }
        }
    };
    let end = tokio::time::timeout(SOON, end).await.expect("an end");
    assert!(end.expect("a clean end would be the stream's").is_err());
    let began = Instant::now();
    assert_eq!(append("lost").await, 503);
    assert_eq!(get().send().await.unwrap().status(), 503);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Run feeds know nothing of it.
    let says = stand.gateway.admin("/readyz").await;
    assert_eq!(says.status, 200);
    assert!(says.text.starts_with("ready\nstreams: not ready: "), "{}", says.text);
    assert!(stand.gateway.admin("/metrics").await.text.contains("runwire_stream_store_ready "));
    assert_eq!(stand.gateway.open(&run, stand.key()).await.status, 200);

    let home = Serving::start_at(&url, &database.url, &arguments).await;
    eventually("streams to be ready", || async { ready().await == "ready\nstreams: ready\n" })
        .await;
    assert_eq!(append("3").await, 200);
    assert_eq!(task.next_of("chunk", SOON).await["chunk"], "3", "resumed, with nothing twice");
    let read = records(&stand.read(&run, "ai", None, 0).await);
    assert_eq!(read.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2, 3]);
    home.stop().await;
}

#[tokio::test]
async fn an_s2_that_takes_connections_and_says_nothing_is_not_waited_for_for_long() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stand = stand(&format!("http://{}/v1", silent.local_addr().unwrap())).await;
    let run = stand.run().await;
    let began = Instant::now();
    let path = format!("/realtime/v1/streams/{run}/ai");
    let read = stand.gateway.request("GET", &path).bearer_auth(stand.key()).send();
    let path = format!("/realtime/v1/streams/{run}/self/ai/append");
    let append = stand.gateway.request("POST", &path).bearer_auth(stand.key()).body("x").send();
    let path = format!("/realtime/v1/streams/{run}/self/other");
    let create = stand.gateway.request("PUT", &path).bearer_auth(stand.key()).send();
    let (read, append, create) = futures_util::join!(read, append, create);
    for answer in [read, append, create] {
        assert_eq!(answer.unwrap().status(), 503);
    }
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    // The stream that was not made known is not on the row.
    assert_eq!(stand.keys(&run).await, ["ai"]);
}
