//! Whom the SDK's public tokens let into lists, and the columns that a token leaves out.

use runwire::dev::{RunSpec, trigger_batch};
use serde_json::{Value, json};

use super::SOON;
use super::lists::{BOTH, Lists, TAG, tagged};
use crate::support::cluster::fresh_database;
use crate::support::gateway::Gateway;
use crate::support::npm::{Client, public_token, public_token_skipping};

const SDK: &str = "sdk-4.8.3";

#[tokio::test]
async fn a_token_of_createpublictoken_opens_the_lists_that_it_names() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    let batch = trigger_batch(pool, &environment, vec![RunSpec::new("child")]).await.unwrap();
    let (batch, other) = (batch.friendly_id, database.seeded.batch);
    let feeds = json!([
        { "feed": "tag", "tags": TAG },
        { "feed": "both", "tags": [BOTH, TAG] },
        { "feed": "other tag", "tags": BOTH },
        { "feed": "batch", "batch": batch },
        { "feed": "other batch", "batch": other },
    ]);
    for (scopes, opened) in [
        (format!("read:tags:{TAG}"), [200, 200, 403, 403, 403]),
        (format!("read:batch:{batch}"), [403, 403, 403, 200, 403]),
    ] {
        let token = public_token(environment.id, environment.secret_key, &scopes).await;
        let mut client = Client::subscribe_lists(SDK, &gateway.target(token), &feeds).await;
        let mut found = [None; 5];
        while found.contains(&None) {
            let answer = client.next_of("response", SOON).await;
            let status = answer["status"].as_u64().unwrap();
            // A refusal is the last that is heard of its list.
            let before = found[which(&answer, &batch)].get_or_insert(status);
            assert_eq!((*before, status), (status, status), "{scopes}: {answer}");
        }
        assert_eq!(found, opened.map(Some), "{scopes}");
    }
    gateway.stop().await;
}

/// Which of the five lists an answer belongs to.
fn which(answer: &Value, batch: &str) -> usize {
    match (answer["query"]["tags"].as_str(), answer["path"].as_str()) {
        (Some(TAG), _) => 0,
        (Some(BOTH), _) => 2,
        (Some(_), _) => 1,
        (None, Some(path)) => {
            if path.ends_with(batch) {
                3
            } else {
                4
            }
        }
        (None, None) => panic!("{answer}"),
    }
}

#[tokio::test]
async fn the_columns_that_a_token_leaves_out_win_over_those_of_the_subscription() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    let run = tagged(pool, &environment, &[TAG]).await;
    let (id, key) = (environment.id, environment.secret_key);
    let feeds = json!([{ "feed": "tag", "tags": TAG, "skipColumns": ["runTags"] }]);
    for (skipped, payload, tags) in [("payload", false, json!([TAG])), ("", true, json!([]))] {
        let token = public_token_skipping(id, key, "read:tags", skipped).await;
        let mut lists = Lists::follow(SDK, &gateway.target(token), &feeds).await;
        let [shown] = lists.show([("tag", &run)]).await;
        assert_eq!((shown["payload"].is_object(), &shown["tags"]), (payload, &tags), "{skipped}");
    }
    gateway.stop().await;
}
