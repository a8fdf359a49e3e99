//! `runs.subscribeToRun` of the real SDKs, through a real gateway, from trigger to completion.

mod electric;
mod electric_lists;
mod interrupted;
mod lists;
mod lists_interrupted;
mod lists_scopes;
mod lists_unpaced;
mod shape;

use std::time::Duration;

use runwire::dev::run::{add_tag, built_in_error, complete, fail, set_metadata, set_status};
use runwire::dev::{Environment, RunSpec, trigger_run};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::gateway::Gateway;
use crate::support::npm::{Client, Target, public_token};

const SOON: Duration = Duration::from_secs(60);
const SDKS: [&str; 3] = ["sdk-4.8.3", "sdk-4.1", "sdk-3.3.17"];
const OUTPUT: &str = r#"{"ok":true,"text":"snowman ☃"}"#;

/// More than 100 KB that do not compress, so that they are stored out of line and later updates
/// stream them as "unchanged".
fn large_payload() -> Value {
    use sha2::{Digest, Sha256};
    let digest = |n: u32| Sha256::digest(n.to_be_bytes()).into_iter().map(char::from);
    let printable = |c: &char| (' '..='~').contains(c);
    json!({ "blob": (0..10_000).flat_map(digest).filter(printable).collect::<String>() })
}

async fn trigger(pool: &PgPool, environment: &Environment) -> String {
    let spec = RunSpec {
        payload: large_payload().to_string(),
        tags: Some(vec!["user:1".to_owned(), "comma, \"quote\"".to_owned()]),
        ..RunSpec::new("hello")
    };
    trigger_run(pool, environment, spec).await.unwrap().friendly_id
}

/// How an SDK names a status of the database.
fn shown(sdk: &str, status: &str) -> &'static str {
    match (status, sdk) {
        ("PENDING", _) => "QUEUED",
        // It sends no API version, so it is not told of this status.
        ("DEQUEUED", "sdk-3.3.17") | ("EXECUTING", _) => "EXECUTING",
        ("DEQUEUED", _) => "DEQUEUED",
        ("WAITING_TO_RESUME", "sdk-3.3.17") => "FROZEN",
        ("WAITING_TO_RESUME", _) => "WAITING",
        _ => panic!("no test has {status}"),
    }
}

/// One change, and how the run looks then.
enum Step {
    Status(&'static str),
    Metadata(u64),
    Tag(&'static str),
}

const STEPS: [Step; 12] = [
    Step::Status("DEQUEUED"),
    Step::Status("EXECUTING"),
    Step::Metadata(1),
    Step::Metadata(2),
    Step::Tag("late"),
    Step::Metadata(3),
    Step::Status("WAITING_TO_RESUME"),
    Step::Status("EXECUTING"),
    Step::Metadata(4),
    Step::Metadata(5),
    Step::Metadata(6),
    Step::Metadata(7),
];

/// Takes each step after the subscriber has shown the one before, and the run as a whole each time:
/// one that is left out, doubled or out of order is not what comes next.
async fn paced(sdk: &str, target: Target, pool: &PgPool, run: &str, succeeds: bool) {
    let mut client = Client::subscribe_run(sdk, &target, run).await;
    let (mut status, mut metadata, payload) = ("QUEUED", Value::Null, large_payload());
    let mut tags = vec!["user:1", "comma, \"quote\""];
    let check = |seen: &Value, status: &str, metadata: &Value, tags: &[&str]| {
        let facts = (&seen["id"], &seen["status"], &seen["metadata"], &seen["tags"]);
        assert_eq!(facts, (&json!(run), &json!(status), metadata, &json!(tags)), "{sdk}");
        assert!(seen["payload"] == payload, "{sdk}: the payload stays as it is");
    };
    check(&client.next_run(SOON).await, status, &metadata, &tags);
    for step in STEPS {
        match step {
            Step::Status(next) => {
                status = shown(sdk, next);
                set_status(pool, run, next).await.unwrap();
            }
            Step::Metadata(v) => {
                metadata = json!({ "v": v });
                set_metadata(pool, run, &metadata.to_string()).await.unwrap();
            }
            Step::Tag(tag) => {
                tags.push(tag);
                add_tag(pool, run, tag).await.unwrap();
            }
        }
        check(&client.next_run(SOON).await, status, &metadata, &tags);
    }
    let last = if succeeds {
        complete(pool, run, OUTPUT).await.unwrap();
        let last = client.next_run(SOON).await;
        check(&last, "COMPLETED", &metadata, &tags);
        assert_eq!(last["output"], serde_json::from_str::<Value>(OUTPUT).unwrap(), "{sdk}");
        last
    } else {
        let error = built_in_error("TypeError", "x is not a \"function\"");
        fail(pool, run, &error).await.unwrap();
        let last = client.next_run(SOON).await;
        check(&last, "FAILED", &metadata, &tags);
        for field in ["name", "message", "stackTrace"] {
            assert_eq!(last["error"][field], error[field], "{sdk}");
        }
        last
    };
    assert!(last["finishedAt"].is_string() && last["durationMs"].is_number(), "{sdk}: {last}");
    let rest = client.rest(SOON).await;
    let of = |kind: &str| rest.iter().filter(|said| said["type"] == kind).count();
    assert_eq!((of("run"), of("error")), (0, 0), "{sdk}: {rest:?}");
    // The newest loop ends by itself; the others are left by the script.
    assert_eq!(of("end"), usize::from(sdk == "sdk-4.8.3"), "{sdk}: {rest:?}");
}

async fn with_key_and_with_token(sdk: &str) {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    let of_key = trigger(pool, &environment).await;
    let of_token = trigger(pool, &environment).await;
    let scope = format!("read:runs:{of_token}");
    let token = public_token(environment.id, environment.secret_key, &scope).await;
    tokio::join!(
        paced(sdk, gateway.target(environment.secret_key), pool, &of_key, true),
        paced(sdk, gateway.target(token), pool, &of_token, false),
    );
    gateway.stop().await;
}

#[tokio::test]
async fn sdk_4_8_3_shows_every_change_of_a_paced_run_once_and_in_order() {
    with_key_and_with_token("sdk-4.8.3").await;
}

#[tokio::test]
async fn sdk_4_1_shows_every_change_of_a_paced_run_once_and_in_order() {
    with_key_and_with_token("sdk-4.1").await;
}

#[tokio::test]
async fn sdk_3_3_17_shows_every_change_of_a_paced_run_once_and_in_order() {
    with_key_and_with_token("sdk-3.3.17").await;
}

/// Writes as fast as the database takes it; what the subscriber shows never goes back.
async fn unpaced(sdk: &str, target: Target, pool: &PgPool, run: &str) {
    const WRITES: u64 = 300;
    let mut client = Client::subscribe_run(sdk, &target, run).await;
    let mut last = client.next_run(SOON).await;
    let write = async {
        set_status(pool, run, "DEQUEUED").await.unwrap();
        for v in 1..=WRITES {
            if v == 10 {
                set_status(pool, run, "EXECUTING").await.unwrap();
            }
            set_metadata(pool, run, &json!({ "v": v }).to_string()).await.unwrap();
        }
        complete(pool, run, OUTPUT).await.unwrap();
    };
    let read = async {
        let place = |run: &Value| {
            let order = ["QUEUED", "DEQUEUED", "EXECUTING", "COMPLETED"];
            let status = order.iter().position(|status| run["status"] == *status);
            (run["metadata"]["v"].as_u64().unwrap_or(0), status.expect("a status of ours"))
        };
        while last["finishedAt"].is_null() {
            let next = client.next_run(SOON).await;
            let (before, now) = (place(&last), place(&next));
            assert!(before.0 <= now.0 && before.1 <= now.1, "{sdk}: {now:?} after {before:?}");
            last = next;
        }
        assert_eq!(place(&last), (WRITES, 3), "{sdk}: {last}");
        assert_eq!(last["output"], serde_json::from_str::<Value>(OUTPUT).unwrap(), "{sdk}");
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn an_unpaced_run_never_goes_back_and_its_last_state_arrives_in_every_sdk() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    for sdk in SDKS {
        let run = trigger(pool, &environment).await;
        unpaced(sdk, gateway.target(environment.secret_key), pool, &run).await;
    }
    gateway.stop().await;
}
