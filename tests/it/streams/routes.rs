//! The routes' checks, statuses and texts (`streams-and-sessions.md`, 1, 2 and 4).

use std::time::Duration;

use reqwest::{Method, StatusCode};
use runwire::dev::run::complete;
use serde_json::json;

use crate::support::gateway::eventually;
use crate::support::runs::{insert_with, update};
use crate::support::streams::{Stand, records};
use crate::support::token;

async fn ask(stand: &Stand, method: &str, path: &str, key: &str) -> (StatusCode, String) {
    let answer = stand.gateway.request(method, path).bearer_auth(key).body("x").send().await;
    let answer = answer.expect("an answer");
    (answer.status(), answer.text().await.expect("a body"))
}

#[tokio::test]
async fn a_created_stream_names_where_it_is_written() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    let answer = stand.gateway.request("PUT", &path).bearer_auth(stand.key()).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let headers = answer.headers().clone();
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "application/json; charset=utf-8");
    assert_eq!(header("x-s2-basin"), "trigger-realtime");
    assert_eq!(header("x-s2-stream-name"), format!("org/org_acme/env/prod/env_prod/runs/{run}/ai"));
    assert_eq!(header("x-s2-endpoint"), format!("{}/s2/v1", stand.gateway.url));
    assert_eq!(header("x-s2-max-retries"), "10");
    assert!(headers.get("access-control-allow-origin").is_none());
    assert_eq!(answer.text().await.unwrap(), r#"{"version":"v2"}"#);
    assert_eq!(stand.keys(&run).await, ["ai"]);
}

#[tokio::test]
async fn an_organization_s_own_basin_names_its_streams_without_the_organization() {
    let stand = Stand::start(&["--s2-public-endpoint=https://s2.example/x/v1"]).await;
    let run = stand.run().await;
    update(&stand.database.pool, &run, r#""streamBasinName" = 'acme-own-basin'"#).await;
    let headers = stand.create(&run, "ai").await;
    assert_eq!(headers["x-s2-basin"], "acme-own-basin");
    assert_eq!(headers["x-s2-stream-name"], format!("env/prod/env_prod/runs/{run}/ai"));
    assert_eq!(headers["x-s2-endpoint"], "https://s2.example/x/v1");
    stand.append(&run, "ai", "x").await;
    assert_eq!(records(&stand.read(&run, "ai", None, 0).await).len(), 1);
}

#[tokio::test]
async fn a_key_is_pushed_once_however_many_create_at_once() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let all = (0..20).map(|_| stand.create(&run, "ai"));
    futures_util::future::join_all(all).await;
    assert_eq!(stand.keys(&run).await, ["ai"]);
    stand.create(&run, "other").await;
    assert_eq!(stand.keys(&run).await, ["ai", "other"]);
}

#[tokio::test]
async fn creating_and_appending_check_in_the_contract_s_order() {
    let stand = Stand::start(&[]).await;
    let (run, key) = (stand.run().await, stand.key());
    let seeded = stand.database.seeded;
    let done = stand.run().await;
    complete(&stand.database.pool, &done, "{}").await.unwrap();
    let public = token::public(seeded.production, &["write:all", "read:all"]);
    let cases: [(&str, String, &str, u16, &str); 12] = [
        ("PUT", format!("{run}/self/ai"), &public, 401, r#"{"error":"Invalid API key"}"#),
        (
            "PUT",
            format!("{run}/self/ai"),
            seeded.restricted_key,
            403,
            r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#,
        ),
        ("PUT", "run_nope/self/ai".to_owned(), key, 404, "Run not found"),
        ("PUT", format!("{run}/parent/ai"), key, 404, "Target not found"),
        ("PUT", format!("{run}/root/ai"), key, 404, "Target not found"),
        (
            "PUT",
            format!("{done}/self/ai"),
            key,
            400,
            "Cannot initialize a realtime stream on a completed run",
        ),
        ("PUT", format!("{}/self/ai", seeded.rival_run), key, 404, "Run not found"),
        ("POST", "run_nope/self/ai/append".to_owned(), key, 404, "Run not found"),
        (
            "POST",
            format!("{done}/self/ai/append"),
            key,
            400,
            "Cannot append to a realtime stream on a completed run",
        ),
        ("POST", format!("{run}/self/ai/append"), &public, 401, r#"{"error":"Invalid API key"}"#),
        (
            "GET",
            format!("{run}/self/ai"),
            key,
            405,
            "Only HEAD requests are allowed for this endpoint",
        ),
        ("POST", format!("{run}/self/ai"), key, 500, r#"{"error":"Internal Server Error"}"#),
    ];
    for (method, path, key, status, text) in cases {
        let path = format!("/realtime/v1/streams/{path}");
        let (got, body) = ask(&stand, method, &path, key).await;
        assert_eq!((got.as_u16(), &*body), (status, text), "{method} {path}");
    }
    let path = format!("/realtime/v1/streams/{run}/sibling/ai");
    let (status, body) = ask(&stand, "PUT", &path, key).await;
    assert_eq!(status, 400);
    assert!(body.starts_with(r#"{"error":"Params Error","details":["#), "{body}");
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    assert_eq!(ask(&stand, "HEAD", &path, key).await.0, 500);
    let bare = stand.gateway.request("PUT", &path).send().await.unwrap();
    assert_eq!(bare.status(), 401);
    assert_eq!(bare.text().await.unwrap(), r#"{"error":"Invalid or Missing API key"}"#);
    assert!(stand.keys(&run).await.is_empty());
}

#[tokio::test]
async fn a_parent_s_stream_is_the_parent_s() {
    let stand = Stand::start(&[]).await;
    let (parent, run) = (stand.run().await, stand.run().await);
    let id = parent.trim_start_matches("run_");
    let set = format!(r#""parentTaskRunId" = '{id}', "rootTaskRunId" = '{id}'"#);
    update(&stand.database.pool, &run, &set).await;
    for target in ["parent", "root"] {
        let path = format!("/realtime/v1/streams/{run}/{target}/{target}/append");
        let request = stand.gateway.request("POST", &path).bearer_auth(stand.key());
        assert_eq!(request.body("x").send().await.unwrap().status(), 200);
    }
    assert_eq!(stand.keys(&parent).await, ["parent", "root"]);
    assert!(stand.keys(&run).await.is_empty());
    assert_eq!(records(&stand.read(&parent, "root", None, 0).await).len(), 1);
}

#[tokio::test]
async fn a_chunk_that_is_too_large_is_refused_with_figures() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let path = format!("/realtime/v1/streams/{run}/self/ai/append");
    let post = |body: reqwest::Body| {
        stand.gateway.request("POST", &path).bearer_auth(stand.key()).body(body).send()
    };
    let answer = post("x".repeat(600 << 10).into()).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.text().await.unwrap(), r#"{"error":"Request body too large"}"#);
    // Without a length.
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
    let answer = post(reqwest::Body::wrap_stream(pieces)).await.unwrap();
    assert_eq!(answer.status(), 413);
    // Short enough, but not as JSON.
    let answer = post("\u{1}".repeat(200 << 10).into()).await.unwrap();
    assert_eq!(answer.status(), 413);
    let text = answer.text().await.unwrap();
    let figures = r#"{"ok":false,"error":"Record metered size 1228834 bytes exceeds the S2 per-record limit of 1048576 bytes. Reduce tool-output size or split into smaller parts."}"#;
    assert_eq!(text, figures);
    let answer = post("x".repeat(512 << 10).into()).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_v1_run_is_told_which_setting_is_missing_and_nothing_is_pushed() {
    let stand = Stand::start(&[]).await;
    let production = stand.database.seeded.production;
    let run = "run_vone0000000000000000000001";
    let version = ("realtimeStreamsVersion", "'v1'");
    insert_with(&stand.database.pool, production.id, run, &[version]).await;
    for (method, path) in [
        ("PUT", "self/ai"),
        ("POST", "self/ai/append"),
        ("POST", "self/ai"),
        ("HEAD", "self/ai"),
        ("GET", "ai"),
    ] {
        let path = format!("/realtime/v1/streams/{run}/{path}");
        let (status, body) = ask(&stand, method, &path, stand.key()).await;
        assert_eq!(status, 422, "{method} {path}: {body}");
        assert!(method == "HEAD" || body.contains("REALTIME_STREAMS_REDIS_HOST"), "{body}");
    }
    assert!(stand.keys(run).await.is_empty());
}

#[tokio::test]
async fn a_key_that_names_no_stream_is_refused_and_not_pushed() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    for key in ["a%00b".to_owned(), "x".repeat(500), "line%0Abreak".to_owned()] {
        let path = format!("/realtime/v1/streams/{run}/self/{key}");
        let (status, body) = ask(&stand, "PUT", &path, stand.key()).await;
        assert_eq!((status.as_u16(), &*body), (400, "Invalid stream key"), "{key}");
    }
    for key in ["a%00b".to_owned(), "x".repeat(500)] {
        let path = format!("/realtime/v1/streams/{run}/self/{key}/append");
        assert_eq!(ask(&stand, "POST", &path, stand.key()).await.0, 400, "{key}");
        let path = format!("/realtime/v1/streams/{run}/{key}");
        assert_eq!(ask(&stand, "GET", &path, stand.key()).await.0, 400, "{key}");
    }
    assert!(stand.keys(&run).await.is_empty());
    // What is none of these may be anything.
    stand.append(&run, "%C3%A4%20%2F%25", "x").await;
    assert_eq!(stand.keys(&run).await, ["ä /%"]);
    assert_eq!(records(&stand.read(&run, "%C3%A4%20%2F%25", None, 0).await).len(), 1);
}

#[tokio::test]
async fn a_missing_grant_is_named() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let pool = &stand.database.pool;
    let role = format!("reader_{:08x}", rand::random::<u32>());
    let sql = format!(
        r#"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"#
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
    let mut url = url::Url::parse(&stand.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let data = crate::support::streams::scratch();
    let argument = format!("--data-dir={}", data.0.display());
    let other = crate::support::gateway::Gateway::start_unready(url.as_str(), &[&argument]).await;
    let path = format!("/realtime/v1/streams/{run}/self/ai");
    let put = || other.request("PUT", &path).bearer_auth(stand.key()).send();
    let answer = put().await.unwrap();
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.headers()["x-should-retry"], "false");
    let text = answer.text().await.unwrap();
    assert!(
        text.contains(r#"GRANT UPDATE (\"realtimeStreams\", \"updatedAt\") ON \"TaskRun\""#),
        "{text}"
    );
    // That and nothing else is needed.
    let grant = format!(r#"GRANT UPDATE ("realtimeStreams", "updatedAt") ON "TaskRun" TO {role}"#);
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(pool).await.unwrap();
    assert_eq!(put().await.unwrap().status(), 202);
    assert_eq!(stand.keys(&run).await, ["ai"]);
    other.stop().await;
}

#[tokio::test]
async fn events_have_the_form_that_upstream_s_have() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    for chunk in [r#"{"i":0}"#, "two"] {
        stand.append(&run, "ai", chunk).await;
    }
    let path = format!("/realtime/v1/streams/{run}/ai");
    let request = stand.gateway.request("GET", &path).bearer_auth(stand.key());
    let request = request.header("timeout-seconds", "1").header("origin", "https://app.example");
    let answer = request.send().await.unwrap();
    let headers = answer.headers().clone();
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert_eq!(header("x-stream-version"), "v2");
    assert_eq!(header("access-control-allow-origin"), "https://app.example");
    let exposed = header("access-control-expose-headers");
    assert!(exposed.split(", ").any(|name| name == "x-stream-version"), "{exposed}");
    let text = answer.text().await.unwrap();
    let mut events = text.split("\n\n");
    let batch: Vec<&str> = events.next().unwrap().lines().collect();
    assert_eq!(batch[..2], ["event: batch", "id: 1,2,68"]);
    let data: serde_json::Value =
        serde_json::from_str(batch[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(data["records"][0]["body"], r#"{"data":"{\"i\":0}","id":"p"}"#);
    assert_eq!(data["records"][1]["seq_num"], json!(1));
    let ping: Vec<&str> = events.next().unwrap().lines().collect();
    assert_eq!(ping[0], "event: ping");
    let ping: serde_json::Value =
        serde_json::from_str(ping[1].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(ping["tail"], json!({ "seq_num": 2, "timestamp": data["records"][1]["timestamp"] }));
    assert_eq!(events.collect::<Vec<_>>(), ["data: [DONE]", ""]);
    // Nothing is waited for, so nothing shows that it lives.
    let empty = stand.read(&run, "nothing", None, 0).await;
    assert_eq!(empty, "data: [DONE]\n\n");
    let pinged = stand.read(&run, "nothing", None, 1).await;
    assert!(
        pinged.ends_with("\"tail\":{\"seq_num\":0,\"timestamp\":0}}\n\ndata: [DONE]\n\n"),
        "{pinged}"
    );
}

#[tokio::test]
async fn readers_may_say_how_long_they_wait() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let path = format!("/realtime/v1/streams/{run}/ai");
    let get = |path: &str, wait: &str| {
        let request = stand.gateway.request("GET", path).bearer_auth(stand.key());
        request.header("timeout-seconds", wait).send()
    };
    for (wait, status, text) in [
        ("601", 400, "Timeout seconds must be less than 600"),
        ("-1", 400, "Timeout seconds must be greater than 0"),
        ("soon", 500, r#"{"error":"Internal Server Error"}"#),
    ] {
        let answer = get(&path, wait).await.unwrap();
        assert_eq!(answer.status(), status);
        assert!(answer.headers().contains_key("access-control-expose-headers"));
        assert_eq!(answer.text().await.unwrap(), text);
    }
    let missing = get("/realtime/v1/streams/run_nope/ai", "1").await.unwrap();
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.headers()["x-should-retry"], "false");
    assert_eq!(missing.text().await.unwrap(), r#"{"error":"Not found"}"#);
}

#[tokio::test]
async fn a_public_token_reads_what_its_scopes_name() {
    let stand = Stand::start(&[]).await;
    let production = stand.database.seeded.production;
    let run = "run_scoped00000000000000000001";
    let columns = [("realtimeStreamsVersion", "'v2'"), ("runTags", "ARRAY['t']")];
    insert_with(&stand.database.pool, production.id, run, &columns).await;
    let path = format!("/realtime/v1/streams/{run}/ai");
    for (scope, status) in [
        (format!("read:runs:{run}"), 200),
        ("read:runs".to_owned(), 200),
        ("read:tasks:hello".to_owned(), 200),
        ("read:tags:t".to_owned(), 200),
        ("read:all".to_owned(), 200),
        ("read:tags:u".to_owned(), 403),
        ("write:runs".to_owned(), 403),
        ("read:runs:run_other".to_owned(), 403),
    ] {
        let token = token::public(production, &[&scope]);
        let request = stand.gateway.request("GET", &path).bearer_auth(token);
        let answer = request.header("timeout-seconds", "0").send().await.unwrap();
        assert_eq!(answer.status(), status, "{scope}");
    }
    let rival = token::public(stand.database.seeded.rival, &["read:all"]);
    let answer = stand.gateway.request("GET", &path).bearer_auth(rival).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn browsers_may_read_and_not_write() {
    let stand = Stand::start(&[]).await;
    let ask = |path: &'static str| {
        let request = stand.gateway.request(Method::OPTIONS.as_str(), path);
        request.header("origin", "https://app.example").send()
    };
    let read = ask("/realtime/v1/streams/run_1/ai").await.unwrap();
    assert_eq!(read.status(), 200);
    assert_eq!(read.headers()["access-control-allow-origin"], "https://app.example");
    let write = ask("/realtime/v1/streams/run_1/self/ai").await.unwrap();
    assert_eq!(write.status(), 405);
    assert!(write.headers().get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn a_reader_that_starts_at_the_latest_gets_what_comes() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "old").await;
    let path = format!("/realtime/v1/streams/{run}/ai");
    let request = stand.gateway.request("GET", &path).bearer_auth(stand.key());
    let request = request.header("timeout-seconds", "2").header("x-trigger-stream-start", "latest");
    let answer = request.send().await.unwrap();
    let reading = tokio::spawn(answer.text());
    stand.append(&run, "ai", "new").await;
    let text = reading.await.unwrap().unwrap();
    let read = records(&text);
    assert_eq!(read, [(1, r#"{"data":"new","id":"p"}"#.to_owned())]);
    // It came while following, so it says what follows.
    assert!(text.contains(r#"}],"tail":{"seq_num":2,"#), "{text}");
}

#[tokio::test]
async fn many_readers_share_one_tail() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let readers: Vec<_> = (0..20).map(|_| stand.read(&run, "ai", None, 4)).collect();
    let all = futures_util::future::join_all(readers);
    let write = async {
        let line = |metrics: &str, name: &str| {
            let line =
                metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            line.unwrap_or(0.0)
        };
        eventually("all to read", || async {
            let metrics = stand.gateway.admin("/metrics").await.text;
            // Other tests of this process read as well.
            line(&metrics, "runwire_stream_readers ") >= 20.0
        })
        .await;
        for n in 0..50 {
            stand.append(&run, "ai", &n.to_string()).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (texts, ()) = futures_util::join!(all, write);
    for text in texts {
        let numbers: Vec<u64> = records(&text).into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
        assert!(text.ends_with("data: [DONE]\n\n"));
    }
}
