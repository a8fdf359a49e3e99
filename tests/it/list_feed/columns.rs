//! The columns that a list's client receives, and the form of one of them (`runs-and-auth.md`, 10.4
//! and 10.5).

use serde_json::json;

use super::{RUNS, tagged};
use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, assert_complete};
use crate::support::gateway::{API_VERSION, Gateway, Shape};
use crate::support::runs::{set_metadata, update};
use crate::support::token::{claims, sign};

const RESERVED: &str = r#"{"id":{"type":"text"},"taskIdentifier":{"type":"text"},"createdAt":{"type":"timestamp"},"updatedAt":{"type":"timestamp"},"friendlyId":{"type":"text"},"status":{"type":"text"}}"#;
const SKIPPABLE: &str = "startedAt,delayUntil,queuedAt,expiredAt,completedAt,number,isTest,usageDurationMs,costInCents,baseCostInCents,ttl,payload,payloadType,metadata,metadataType,output,outputType,runTags,error,realtimeStreams";

#[tokio::test]
async fn skipped_columns_are_neither_sent_nor_in_the_schema_nor_a_reason_to_answer() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let gateway = Gateway::start(&database.url, &["--hold=400ms"]).await;
    // Reserved ones and `updatedAt`, which every client's parser demands, stay.
    let all =
        format!("{SKIPPABLE}, id,taskIdentifier,friendlyId,status,createdAt,%20updatedAt,,nope");
    let path = format!("{RUNS}?tags=a&skipColumns={}", all.replace(' ', "%20"));
    let feed = Feed::new(&gateway, &path, environment.secret_key);
    let open = feed.open().await;
    assert_complete(&open, false);
    assert_eq!(open.header("electric-schema"), RESERVED);
    let create = tagged(pool, environment.id, "run_1", &["a"]);
    let (entered, ()) = tokio::join!(feed.live(&open), create);
    let (operation, row) = entered.row();
    assert_eq!(operation, "insert");
    let names: Vec<&String> = row.as_object().unwrap().keys().collect();
    assert_eq!(names, ["createdAt", "friendlyId", "id", "status", "taskIdentifier", "updatedAt"]);
    let (held, ()) = tokio::join!(feed.live(&entered), set_metadata(pool, "run_1", 1));
    assert!(held.is_bare(), "{}", held.text);
    assert_ne!(held.offset(), entered.offset(), "the offset moves on");
    let both = update(pool, "run_1", r#"number = 3, status = 'EXECUTING'"#);
    let (news, ()) = tokio::join!(feed.live(&held), both);
    assert_eq!(news.row(), ("update".to_owned(), json!({"id": "1", "status": "EXECUTING"})));
    // Without the same columns, or the same tags, it is another feed.
    for path in ["?tags=a", "?tags=b", ""] {
        let path = format!("{RUNS}{path}");
        let other = Feed::new(&gateway, &path, environment.secret_key);
        assert_eq!(other.live(&news).await.status, 409, "{path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_tokens_columns_win_over_the_querys_also_when_there_are_none() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_1", &["a"]).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    for (claim, lacking, having) in [
        (
            json!(["payload", " output", "status"]),
            &["payload", "output"][..],
            &["error", "status"][..],
        ),
        (json!([]), &[], &["payload", "error"]),
    ] {
        let mut claims = claims(environment.id);
        claims["scopes"] = json!(["read:tags:a"]);
        claims["realtime"] = json!({"skipColumns": claim});
        let token = sign(&claims, environment.secret_key);
        let path = format!("{RUNS}?tags=a&skipColumns=error,metadata");
        let open = Feed::new(&gateway, &path, &token).open().await;
        let (_, row) = open.row();
        for name in lacking {
            assert!(row.get(name).is_none(), "{name}");
            assert!(!open.header("electric-schema").contains(&format!("\"{name}\"")));
        }
        for name in having {
            assert!(row.get(name).is_some(), "{name}");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_older_api_version_sees_dequeued_as_executing_in_every_answer() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_1", &["a"]).await;
    tagged(pool, environment.id, "run_2", &["a"]).await;
    update(pool, "run_1", "status = 'DEQUEUED'").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let (name, current) = API_VERSION;
    let ask = async |version: Option<&str>, query: &str| {
        let path = format!("{RUNS}?tags=a&{query}");
        let request = gateway.request("GET", &path).bearer_auth(environment.secret_key);
        let request = version.into_iter().fold(request, |request, v| request.header(name, v));
        Shape::read(request.send().await.unwrap()).await
    };
    let status = |answer: &Shape, id: &str| {
        let rows = answer.rows().into_iter().rev();
        let row = rows.map(|(_, row)| row).find(|row| row["id"] == id).expect("a row");
        row["status"].as_str().unwrap().to_owned()
    };
    let versions =
        [(None, "EXECUTING"), (Some("2024-01-01"), "EXECUTING"), (Some(current), "DEQUEUED")];
    let mut opened = Vec::new();
    for (version, expected) in versions {
        let open = ask(version, "offset=-1").await;
        assert_eq!(status(&open, "1"), expected, "{version:?}");
        assert_eq!(status(&open, "2"), "PENDING");
        opened.push(open);
    }
    update(pool, "run_2", "status = 'DEQUEUED'").await;
    for (open, (version, expected)) in opened.iter().zip(versions) {
        let live = format!("handle={}&offset={}&live=true&cursor=", open.handle(), open.offset());
        let live = ask(version, &live).await;
        assert_eq!(status(&live, "2"), expected, "{version:?}");
    }
    // The version may change from poll to poll.
    let from = &opened[0];
    let live = format!("handle={}&offset={}", from.handle(), from.offset());
    assert_eq!(status(&ask(Some(current), &live).await, "2"), "DEQUEUED");
    gateway.stop().await;
}
