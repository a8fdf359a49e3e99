//! The feed of one run, at the outside: requests, headers and bodies.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::feed::assert_complete;
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{insert_run, set_metadata, update};

const SCHEMA: &str = r#"{"id":{"type":"text"},"taskIdentifier":{"type":"text"},"createdAt":{"type":"timestamp"},"updatedAt":{"type":"timestamp"},"startedAt":{"type":"timestamp"},"delayUntil":{"type":"timestamp"},"queuedAt":{"type":"timestamp"},"expiredAt":{"type":"timestamp"},"completedAt":{"type":"timestamp"},"friendlyId":{"type":"text"},"number":{"type":"int4"},"isTest":{"type":"bool"},"status":{"type":"text"},"usageDurationMs":{"type":"int4"},"costInCents":{"type":"float8"},"baseCostInCents":{"type":"float8"},"ttl":{"type":"text"},"payload":{"type":"text"},"payloadType":{"type":"text"},"metadata":{"type":"text"},"metadataType":{"type":"text"},"output":{"type":"text"},"outputType":{"type":"text"},"runTags":{"type":"text","dims":1},"error":{"type":"jsonb"},"realtimeStreams":{"type":"text","dims":1}}"#;

/// A run whose every cell is known.
async fn known_run(pool: &PgPool, environment: &str, run: &str) {
    insert_run(pool, environment, run).await;
    let known = r#""createdAt" = '2026-09-01 08:15:30.12', "updatedAt" = '2026-09-01 08:15:31',
        "startedAt" = '2026-09-01 08:15:30.9', "queuedAt" = '2026-09-01 08:15:30.121',
        status = 'DEQUEUED', number = 7, "isTest" = true, payload = '{"file":"ä.png"}',
        "costInCents" = 0.1::float8 + 0.2::float8, "baseCostInCents" = 0.0025,
        "runTags" = ARRAY['plain', 'it''s "q" \ {x}, y'], error = '{"b": 1, "a": "xé"}'"#;
    update(pool, run, known).await;
}

fn known_body(run: &str) -> String {
    let id = &run["run_".len()..];
    format!(
        r#"[{{"key":"\"public\".\"TaskRun\"/\"{id}\"","value":{{"id":"{id}","taskIdentifier":"hello","createdAt":"2026-09-01T08:15:30.120","updatedAt":"2026-09-01T08:15:31.000","startedAt":"2026-09-01T08:15:30.900","delayUntil":null,"queuedAt":"2026-09-01T08:15:30.121","expiredAt":null,"completedAt":null,"friendlyId":"{run}","number":"7","isTest":"t","status":"DEQUEUED","usageDurationMs":"0","costInCents":"0.30000000000000004","baseCostInCents":"0.0025","ttl":null,"payload":"{{\"file\":\"ä.png\"}}","payloadType":"application/json","metadata":null,"metadataType":"application/json","output":null,"outputType":"application/json","runTags":"{{\"plain\",\"it's \\\"q\\\" \\\\ {{x}}, y\"}}","error":"{{\"a\": \"xé\", \"b\": 1}}","realtimeStreams":"{{}}"}},"headers":{{"operation":"insert"}}}},{{"headers":{{"control":"up-to-date"}}}}]"#
    )
}

#[tokio::test]
async fn a_snapshot_by_query_and_one_from_the_stream_are_the_same_bytes() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    known_run(&database.pool, environment.id, "run_before").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let queried = gateway.open("run_before", environment.secret_key).await;
    assert_eq!(queried.status, 200);
    assert_complete(&queried, false);
    assert_eq!(queried.header("electric-schema"), SCHEMA);
    assert_eq!(queried.text, known_body("run_before"));

    known_run(&database.pool, environment.id, "run_after").await;
    // Wait until the stream has brought it, by asking for another run's snapshot meanwhile.
    let waited = gateway.live("run_before", environment.secret_key, &queried);
    update(&database.pool, "run_before", "number = 8").await;
    waited.await;
    // Nobody can read the table meanwhile, so the answer comes from memory.
    let mut locked = database.pool.begin().await.unwrap();
    let lock = r#"LOCK TABLE "TaskRun" IN ACCESS EXCLUSIVE MODE"#;
    sqlx::query(lock).execute(&mut *locked).await.unwrap();
    let streamed = gateway.open("run_after", environment.secret_key).await;
    assert_eq!(streamed.text, known_body("run_after"));
    locked.rollback().await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_held_poll_is_answered_with_the_changed_columns_alone() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    known_run(&database.pool, environment.id, "run_1").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let open = gateway.open("run_1", environment.secret_key).await;
    update(&database.pool, "run_1", "status = 'EXECUTING'").await;
    let first = gateway.live("run_1", environment.secret_key, &open).await;
    assert_complete(&first, true);
    assert_eq!(first.handle(), open.handle(), "a handle lives as long as its subscription");

    let held = gateway.live("run_1", environment.secret_key, &first);
    let change = update(&database.pool, "run_1", r#"metadata = '{"v":1}', "metadataVersion" = 2"#);
    let (held, ()) = tokio::join!(held, change);
    assert_eq!(
        held.row(),
        ("update".to_owned(), json!({"id": "1", "metadata": "{\"v\":1}"})),
        "nothing else changed"
    );
    assert_eq!(held.messages().len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_poll_that_nothing_happens_to_ends_with_a_bare_up_to_date_after_the_hold() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let run = database.seeded.run;
    let gateway = Gateway::start(&database.url, &["--hold=400ms"]).await;
    let open = gateway.open(run, environment.secret_key).await;
    let start = std::time::Instant::now();
    let bare = gateway.live(run, environment.secret_key, &open).await;
    let held = start.elapsed();
    assert!(bare.is_bare(), "{}", bare.text);
    assert_complete(&bare, true);
    assert!(held >= Duration::from_millis(340), "{held:?}");
    // Repeating it is held again: never an answer at once that says nothing.
    let start = std::time::Instant::now();
    gateway.live(run, environment.secret_key, &bare).await;
    assert!(start.elapsed() >= Duration::from_millis(340));
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_offset_gives_the_same_news_as_often_as_it_is_asked() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let run = database.seeded.run;
    let gateway = Gateway::start(&database.url, &[]).await;
    let open = gateway.open(run, environment.secret_key).await;
    for value in 1..=3 {
        set_metadata(&database.pool, run, value).await;
    }
    let value = async || {
        let live = gateway.live(run, environment.secret_key, &open).await;
        let (operation, row) = live.row();
        assert_eq!(operation, "update");
        assert_complete(&gateway.catch_up(run, environment.secret_key, &live).await, false);
        row["metadata"].as_str().unwrap().to_owned()
    };
    let mut last = value().await;
    while last != r#"{"v":3}"# {
        let next = value().await;
        assert!(next >= last, "{next} after {last}");
        last = next;
    }
    for _ in 0..3 {
        assert_eq!(value().await, last);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_older_api_version_sees_dequeued_as_executing() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    known_run(&database.pool, environment.id, "run_1").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let path = "/realtime/v1/runs/run_1?offset=-1";
    let old = gateway.request("GET", path).bearer_auth(environment.secret_key);
    let old = Shape::read(old.send().await.unwrap()).await;
    assert_eq!(old.row().1["status"], "EXECUTING");
    let new = gateway.open("run_1", environment.secret_key).await;
    assert_eq!(new.row().1["status"], "DEQUEUED");
    gateway.stop().await;
}

#[tokio::test]
async fn skipped_columns_are_neither_sent_nor_in_the_schema_nor_a_reason_to_answer() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let run = database.seeded.run;
    let gateway = Gateway::start(&database.url, &["--hold=400ms"]).await;
    let path = format!("/realtime/v1/runs/{run}?offset=-1&skipColumns=metadata,%20payload,id,nope");
    let open = Shape::read(gateway.get(&path, environment.secret_key).send().await.unwrap()).await;
    let row = open.row().1;
    assert!(
        row.get("metadata").is_none() && row.get("payload").is_none() && row.get("id").is_some()
    );
    assert!(!open.header("electric-schema").contains("metadata\""));
    set_metadata(&database.pool, run, 1).await;
    // The first update after the start may send columns anew, as the row before is not known.
    set_metadata(&database.pool, run, 2).await;
    let skip = "&skipColumns=metadata,payload";
    let first = gateway.get(&format!("{}{skip}&live=true", open.next(run)), environment.secret_key);
    let first = Shape::read(first.send().await.unwrap()).await;
    let next = format!("{}{skip}&live=true", first.next(run));
    let held = async {
        Shape::read(gateway.get(&next, environment.secret_key).send().await.unwrap()).await
    };
    let (held, ()) = tokio::join!(held, set_metadata(&database.pool, run, 3));
    assert!(held.is_bare(), "{}", held.text);
    assert_ne!(held.offset(), first.offset(), "the offset moves on");
    // Without the same columns it is another feed.
    let other = gateway.live(run, environment.secret_key, &held).await;
    assert_eq!(other.status, 409);
    gateway.stop().await;
}

#[tokio::test]
async fn what_the_window_does_not_hold_gets_one_409_whose_handle_works() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let run = database.seeded.run;
    let key = environment.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    let open = gateway.open(run, key).await;
    let foreign = ["g-run-cm9k3", "run-cj7lxlsusgqpjufn7kjv78rkj", "%00", open.handle()];
    for handle in foreign {
        for offset in ["5_0", "1795261058668_115041", "garbage", "99999999999999999_0"] {
            for live in ["", "&live=true"] {
                let path = format!("/realtime/v1/runs/{run}?handle={handle}&offset={offset}{live}");
                let gone = Shape::read(gateway.get(&path, key).send().await.unwrap()).await;
                assert_eq!(gone.status, 409, "{path}");
                assert_eq!(gone.text, r#"[{"headers":{"control":"must-refetch"}}]"#);
                assert_eq!(gone.header("content-type"), "application/json");
                assert_eq!(gone.header("cache-control"), "no-store");
                assert_eq!(gone.header("access-control-expose-headers"), "*");
                assert_ne!(gone.handle(), handle);
                assert_eq!(gone.handle(), gone.header("electric-shape-id"));
                let again = format!(
                    "/realtime/v1/runs/{run}?expired_handle={handle}&handle={}&offset=-1",
                    gone.handle()
                );
                let fresh = Shape::read(gateway.get(&again, key).send().await.unwrap()).await;
                assert_eq!(fresh.status, 200);
                assert_eq!(fresh.row().0, "insert");
                assert_ne!(fresh.handle(), gone.handle(), "no handle is issued twice");
            }
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_run_that_is_triggered_while_it_is_asked_for_is_waited_for() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let gateway = Gateway::start(&database.url, &[]).await;
    let asked = gateway.open("run_soon", environment.secret_key);
    let triggered = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        insert_run(&database.pool, environment.id, "run_soon").await;
    };
    let (answer, ()) = tokio::join!(asked, triggered);
    assert_eq!(answer.status, 200, "{}", answer.text);
    gateway.stop().await;
}

#[tokio::test]
async fn refusals_have_the_contracts_status_body_and_headers() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    let gateway = Gateway::start(&database.url, &[]).await;
    let own = format!("/realtime/v1/runs/{}?offset=-1", seeded.run);
    let rival = format!("/realtime/v1/runs/{}?offset=-1", seeded.rival_run);
    let forbidden = r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#;
    let key = seeded.production.secret_key;
    let elsewhere = crate::support::token::public(seeded.production, &["read:runs:run_other"]);
    for (path, token, status, body) in [
        (&own, "", 401, r#"{"error":"Invalid or Missing API key"}"#),
        (&own, "tr_prod_nonsense", 401, r#"{"error":"Invalid API key"}"#),
        (&rival, key, 404, r#"{"error":"Not found"}"#),
        (&own, elsewhere.as_str(), 403, forbidden),
    ] {
        let request = gateway.request("GET", path).header("origin", "https://app.example");
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        let refusal = Shape::read(request.send().await.unwrap()).await;
        assert_eq!((refusal.status.as_u16(), refusal.text.as_str()), (status, body));
        assert_eq!(refusal.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(refusal.header("access-control-allow-origin"), "https://app.example");
        assert_eq!(refusal.header("vary"), "Origin");
        assert_eq!(
            refusal.header("access-control-expose-headers"),
            "x-trigger-jwt,x-trigger-jwt-claims"
        );
        assert_eq!(refusal.header("x-should-retry"), if status == 404 { "false" } else { "" });
    }
    gateway.stop().await;
}

#[tokio::test]
async fn scopes_open_a_run_by_itself_its_task_its_tag_or_its_batch() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    insert_run(&database.pool, seeded.production.id, "run_1").await;
    let batch: String =
        sqlx::query_scalar(r#"SELECT id FROM "BatchTaskRun" WHERE "friendlyId" = $1"#)
            .bind(seeded.batch)
            .fetch_one(&database.pool)
            .await
            .unwrap();
    let facts = format!(r#""runTags" = '{{user:1,b}}', "batchId" = '{batch}'"#);
    update(&database.pool, "run_1", &facts).await;
    let gateway = Gateway::start(&database.url, &["--hold=100ms"]).await;
    let of_batch = format!("read:batch:{}", seeded.batch);
    let cases = [
        ("read:runs:run_1", 200),
        ("read:runs", 200),
        ("read:all", 200),
        ("admin", 200),
        ("read:tasks:hello", 200),
        ("read:tags:user:1", 200),
        (of_batch.as_str(), 200),
        ("read:runs:run_2", 403),
        ("read:tasks:other", 403),
        ("read:tags:user", 403),
        ("read:batch:batch_other", 403),
        ("write:runs:run_1", 403),
        ("read", 403),
        ("", 403),
    ];
    // First from the database; then, once the stream has brought a change, from memory.
    for round in 0..2 {
        for (scope, status) in cases {
            let token = crate::support::token::public(seeded.production, &[scope]);
            let answer = gateway.open("run_1", &token).await;
            assert_eq!(answer.status, status, "{scope} in round {round}");
            if status == 200 {
                let poll = gateway.live("run_1", &token, &answer).await;
                assert_eq!(poll.status, 200, "a poll with {scope} in round {round}");
            }
        }
        let key = seeded.production.secret_key;
        let from = gateway.open("run_1", key).await;
        set_metadata(&database.pool, "run_1", round).await;
        gateway.live("run_1", key, &from).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn preflights_cost_nothing_and_a_trailing_slash_is_redirected() {
    let database = fresh_database().await;
    let gateway = Gateway::start_unready(&database.url, &[]).await;
    let request = gateway
        .request("OPTIONS", "/realtime/v1/runs/run_1?live=true")
        .header("origin", "https://app.example")
        .header("access-control-request-headers", "authorization,trigger-version");
    let answer = Shape::read(request.send().await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "{}"));
    assert_eq!(answer.header("access-control-allow-methods"), "GET,HEAD,PUT,PATCH,POST,DELETE");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization,trigger-version");
    assert_eq!(answer.header("access-control-max-age"), "300");
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    assert_eq!(answer.header("vary"), "Origin, Access-Control-Request-Headers");

    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let url = format!("{}/realtime/v1/runs/run_1/?offset=-1", gateway.url);
    let moved = client.build().unwrap().get(url).send().await.unwrap();
    assert_eq!(moved.status(), 301);
    assert_eq!(moved.headers()["location"], "/realtime/v1/runs/run_1?offset=-1");
    gateway.stop().await;
}
