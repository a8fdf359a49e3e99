//! The feed of a batch, at the outside: requests, headers and bodies.

use std::time::Duration;

use runwire::dev::run::{add_tag, complete, set_status};
use runwire::dev::{RunSpec, Seeded, trigger_batch, trigger_run};
use serde_json::json;
use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, assert_complete, members, told};
use crate::support::gateway::{Gateway, Shape};
use crate::support::runs::{delete, insert_with, set_metadata, update};
use crate::support::token::{claims, public, sign};

fn path(batch: &str) -> String {
    format!("/realtime/v1/batches/{batch}")
}

/// Makes a batch without runs, of internal id `b`-something other than its friendly one.
async fn insert_batch(pool: &PgPool, environment: &str, id: &str) -> String {
    let friendly = format!("batch_of_{id}");
    let sql = r#"INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", "updatedAt")
                 VALUES ($1, $2, $3, now() AT TIME ZONE 'utc')"#;
    let insert = sqlx::query(sql).bind(id).bind(&friendly).bind(environment);
    insert.execute(pool).await.expect("insert a batch");
    friendly
}

async fn insert_member(pool: &PgPool, environment: &str, run: &str, batch: &str) {
    insert_with(pool, environment, run, &[("batchId", &format!("'{batch}'"))]).await;
}

#[tokio::test]
async fn a_batch_is_its_runs_of_whatever_age_and_nothing_else() {
    let database = fresh_database().await;
    let (pool, seeded) = (&database.pool, database.seeded);
    let environment = seeded.production;
    let batch = insert_batch(pool, environment.id, "b1").await;
    let empty = insert_batch(pool, environment.id, "b2").await;
    insert_member(pool, environment.id, "run_1", "b1").await;
    insert_member(pool, environment.id, "run_2", "b1").await;
    update(pool, "run_2", r#""createdAt" = '2020-01-01'"#).await;
    insert_with(pool, environment.id, "run_none", &[]).await;
    // Of another environment, although it says that it is a member.
    insert_member(pool, seeded.development.id, "run_foreign", "b1").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = Feed::new(&gateway, &path(&batch), environment.secret_key);
    let open = feed.open().await;
    assert_complete(&open, false);
    assert_eq!(members(&open), ["1", "2"]);
    assert_eq!(open.rows()[0].1.as_object().unwrap().len(), 26);
    assert!(open.header("electric-schema").starts_with(r#"{"id":{"type":"text"},"#));
    let nothing = Feed::new(&gateway, &path(&empty), environment.secret_key).open().await;
    assert_complete(&nothing, false);
    assert!(nothing.is_bare(), "{}", nothing.text);
    // A list's filters mean nothing here, not even wrong ones.
    let filtered = format!("{}?tags=nobody%22,&createdAt=1s", path(&batch));
    let filtered = Feed::new(&gateway, &filtered, environment.secret_key).open().await;
    assert_eq!(members(&filtered), ["1", "2"]);
    let seeded_batch =
        Feed::new(&gateway, &path(seeded.batch), environment.secret_key).open().await;
    assert_eq!(members(&seeded_batch), ["cseedmember00000000000001", "cseedmember00000000000002"]);
    gateway.stop().await;
}

#[tokio::test]
async fn members_enter_whole_change_in_part_and_end() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let batch = insert_batch(pool, environment.id, "b1").await;
    let gateway = Gateway::start(&database.url, &["--hold=5s"]).await;
    let feed = Feed::new(&gateway, &path(&batch), environment.secret_key);
    let at = feed.open().await;
    let create = async {
        insert_with(pool, environment.id, "run_other", &[]).await;
        insert_member(pool, environment.id, "run_1", "b1").await;
    };
    let (entered, ()) = tokio::join!(feed.live(&at), create);
    assert_complete(&entered, true);
    assert_eq!(told(&entered), ["insert 1"]);
    assert_eq!(entered.row().1, feed.anew().await.row().1);
    let (changed, ()) = tokio::join!(feed.live(&entered), set_metadata(pool, "run_1", 1));
    let metadata = json!({"id": "1", "metadata": r#"{"v":1}"#});
    assert_eq!(changed.row(), ("update".to_owned(), metadata));
    assert_eq!(changed.handle(), at.handle());
    for _ in 0..2 {
        let again = feed.catch_up(&at).await;
        assert_eq!(told(&again), ["insert 1"], "the same offset gives the same news");
    }
    let (ended, ()) = tokio::join!(feed.live(&changed), delete(pool, "run_1"));
    assert_eq!(told(&ended), ["delete 1"]);
    let bare = feed.catch_up(&ended).await;
    assert!(bare.is_bare(), "{}", bare.text);
    assert!(feed.anew().await.is_bare());
    gateway.stop().await;
}

#[tokio::test]
async fn a_batch_is_followed_through_the_life_of_its_runs() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let gateway = Gateway::start(&database.url, &["--hold=2s"]).await;
    let specs = || vec![RunSpec::new("child"), RunSpec::new("child"), RunSpec::new("child")];
    let batch = trigger_batch(pool, &environment, specs()).await.unwrap();
    trigger_batch(pool, &environment, specs()).await.unwrap();
    trigger_run(pool, &environment, RunSpec::new("child")).await.unwrap();
    let feed = Feed::new(&gateway, &path(&batch.friendly_id), environment.secret_key);
    let mut at = feed.open().await;
    let mut expected: Vec<String> = batch.runs.iter().map(|run| run.id.clone()).collect();
    expected.sort();
    assert_eq!(members(&at), expected);
    for run in &batch.runs {
        set_status(pool, &run.friendly_id, "EXECUTING").await.unwrap();
        add_tag(pool, &run.friendly_id, "late").await.unwrap();
        complete(pool, &run.friendly_id, r#"{"ok":true}"#).await.unwrap();
    }
    let mut completed = std::collections::BTreeSet::new();
    while completed.len() < 3 {
        at = feed.live(&at).await;
        assert_eq!(at.status, 200, "{}", at.text);
        for (operation, row) in at.rows() {
            assert_eq!(operation, "update", "{row}");
            if row.get("completedAt").is_some_and(|at| !at.is_null()) {
                // What belongs to an end comes with it.
                assert_eq!(row["status"], "COMPLETED_SUCCESSFULLY");
                assert_eq!(row["output"], r#"{"ok":true}"#);
                completed.insert(row["id"].as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(completed.into_iter().collect::<Vec<_>>(), expected);
    gateway.stop().await;
}

#[tokio::test]
async fn skipped_columns_and_older_api_versions_are_those_of_the_other_feeds() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let batch = insert_batch(pool, environment.id, "b1").await;
    insert_member(pool, environment.id, "run_1", "b1").await;
    update(pool, "run_1", "status = 'DEQUEUED'").await;
    let gateway = Gateway::start(&database.url, &["--hold=400ms"]).await;
    let skipping =
        format!("{}?skipColumns=payload,updatedAt,id,nope&skipColumns=output", path(&batch));
    let feed = Feed::new(&gateway, &skipping, environment.secret_key);
    let open = feed.open().await;
    let (_, row) = open.row();
    assert_eq!(row.as_object().unwrap().len(), 25, "{row}");
    assert!(row.get("payload").is_none() && !open.header("electric-schema").contains("payload\""));
    assert_eq!(row["status"], "DEQUEUED");
    let request = gateway.request("GET", &format!("{skipping}&offset=-1"));
    let old = Shape::read(request.bearer_auth(environment.secret_key).send().await.unwrap()).await;
    assert_eq!(old.row().1["status"], "EXECUTING");
    let mut claims = claims(environment.id);
    claims["scopes"] = json!(["read:batch"]);
    claims["realtime"] = json!({"skipColumns": ["output"]});
    let token = sign(&claims, environment.secret_key);
    let claimed = Feed::new(&gateway, &skipping, &token).open().await.row().1;
    assert!(claimed.get("payload").is_some() && claimed.get("output").is_none(), "{claimed}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_not_there_is_to_be_tried_again_and_is_missing_before_it_is_forbidden() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    let gateway = Gateway::start(&database.url, &[]).await;
    let nothing = public(seeded.production, &[]);
    let other = public(seeded.production, &["read:batch:batch_other"]);
    let forbidden = r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#;
    let missing = r#"{"error":"Not found"}"#;
    let elsewhere = insert_batch(&database.pool, seeded.development.id, "b_dev").await;
    let cases = [
        ("batch_never", seeded.production.secret_key, 404, missing),
        ("batch_never", nothing.as_str(), 404, missing),
        // By its internal id, and of another environment.
        ("cseedbatch000000000000001", seeded.production.secret_key, 404, missing),
        (elsewhere.as_str(), seeded.production.secret_key, 404, missing),
        (seeded.batch, seeded.rival.secret_key, 404, missing),
        (seeded.batch, nothing.as_str(), 403, forbidden),
        (seeded.batch, other.as_str(), 403, forbidden),
        (seeded.batch, "", 401, r#"{"error":"Invalid or Missing API key"}"#),
    ];
    // At once, since each that is missing is waited for.
    let asked = cases.map(|(batch, token, status, body)| {
        let request = gateway
            .request("GET", &format!("{}?offset=-1", path(batch)))
            .header("origin", "https://app.example");
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        async move {
            let refusal = Shape::read(request.send().await.unwrap()).await;
            assert_eq!((refusal.status.as_u16(), refusal.text.as_str()), (status, body), "{batch}");
            assert_eq!(refusal.header("x-should-retry"), if status == 404 { "true" } else { "" });
            assert_eq!(refusal.header("content-type"), "application/json; charset=utf-8");
            assert_eq!(refusal.header("access-control-allow-origin"), "https://app.example");
        }
    });
    futures_util::future::join_all(asked).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_created_while_it_is_asked_for_is_waited_for() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let gateway = Gateway::start(&database.url, &["--hold=5s"]).await;
    let feed = Feed::new(&gateway, &path("batch_of_soon"), environment.secret_key);
    let created = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        insert_batch(&database.pool, environment.id, "soon").await;
    };
    let (open, ()) = tokio::join!(feed.open(), created);
    assert_complete(&open, false);
    assert!(open.is_bare(), "{}", open.text);
    let member = insert_member(&database.pool, environment.id, "run_1", "soon");
    let (live, ()) = tokio::join!(feed.live(&open), member);
    assert_eq!(told(&live), ["insert 1"]);
    gateway.stop().await;
}

#[tokio::test]
async fn scopes_open_batches_as_the_table_says() {
    let database = fresh_database().await;
    let seeded: Seeded = database.seeded;
    let gateway = Gateway::start(&database.url, &["--hold=50ms"]).await;
    let own = format!("read:batch:{}", seeded.batch);
    let longer = format!("{own}1");
    let cases = [
        ("admin", 200),
        ("read:all", 200),
        ("*:all", 200),
        ("read:runs", 200),
        ("*:runs", 200),
        ("read:runs:", 200),
        ("read:batch", 200),
        ("read:batch:", 200),
        (own.as_str(), 200),
        (longer.as_str(), 403),
        ("read:batch:batch_other", 403),
        ("read:batch:cseedbatch000000000000001", 403),
        ("read:runs:run_cseedmember00000000000001", 403),
        ("read:tasks", 403),
        ("read:tasks:child", 403),
        ("read:tags", 403),
        ("read:tags:user:1", 403),
        ("write:runs", 403),
        ("write:batch", 403),
        ("trigger:tasks:child", 403),
        ("read:sessions", 403),
        ("read", 403),
        ("admin:runs", 403),
        ("all", 403),
    ];
    for (scope, status) in cases {
        let token = public(seeded.production, &[scope]);
        let feed = Feed::new(&gateway, &path(seeded.batch), &token);
        let answer = feed.open().await;
        assert_eq!(answer.status, status, "{scope}: {}", answer.text);
        if status == 200 {
            assert_eq!(feed.live(&answer).await.status, 200, "a poll with {scope}");
        }
    }
    // A poll is asked who sends it, whatever its handle says.
    let from = Feed::new(&gateway, &path(seeded.batch), seeded.production.secret_key).open().await;
    for (token, status) in [
        (public(seeded.production, &[own.as_str()]), 200),
        (public(seeded.production, &["read:tags"]), 403),
        (public(seeded.rival, &["read:all"]), 404),
    ] {
        let feed = Feed::new(&gateway, &path(seeded.batch), &token);
        assert_eq!(feed.live(&from).await.status, status);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn preflights_and_trailing_slashes_are_those_of_the_other_feeds() {
    let database = fresh_database().await;
    let gateway = Gateway::start_unready(&database.url, &[]).await;
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = client.build().unwrap();
    for path in ["/realtime/v1/runs", "/realtime/v1/batches/batch_1"] {
        let request = gateway.request("OPTIONS", &format!("{path}?live=true"));
        let request = request
            .header("origin", "https://app.example")
            .header("access-control-request-headers", "authorization");
        let answer = Shape::read(request.send().await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "{}"));
        assert_eq!(answer.header("access-control-allow-methods"), "GET,HEAD,PUT,PATCH,POST,DELETE");
        assert_eq!(answer.header("access-control-allow-headers"), "authorization");
        assert_eq!(answer.header("access-control-max-age"), "300");
        let moved = client.get(format!("{}{path}/?tags=a&offset=-1", gateway.url)).send().await;
        let moved = moved.unwrap();
        assert_eq!(moved.status(), 301);
        assert_eq!(moved.headers()["location"], format!("{path}?tags=a&offset=-1").as_str());
    }
    gateway.stop().await;
}
