//! Lists whose runs change faster than they are read.

use std::collections::HashMap;

use runwire::dev::run::set_metadata;
use runwire::dev::{Environment, RunSpec, trigger_batch};
use serde_json::json;
use sqlx::PgPool;

use super::SDKS;
use super::lists::{Lists, metadata};
use crate::support::cluster::fresh_database;
use crate::support::gateway::Gateway;
use crate::support::npm::Target;

/// Writes to several runs of a batch as fast as the database takes it: no run ever goes back, and the
/// last state of each arrives.
async fn unpaced(sdk: &str, target: &Target, pool: &PgPool, environment: &Environment) {
    const RUNS: usize = 5;
    const WRITES: u64 = 60;
    let spec = RunSpec { tags: Some(vec![sdk.to_owned()]), ..RunSpec::new("child") };
    let batch = trigger_batch(pool, environment, vec![spec; RUNS]).await.unwrap();
    let feeds =
        json!([{ "feed": "one", "tags": sdk }, { "feed": "batch", "batch": batch.friendly_id }]);
    let mut lists = Lists::follow(sdk, target, &feeds).await;
    lists.next().await;
    let write = async {
        for v in 1..=WRITES {
            for run in &batch.runs {
                set_metadata(pool, &run.friendly_id, &metadata(v).0).await.unwrap();
            }
        }
    };
    let read = async {
        let mut last = HashMap::new();
        while last.values().filter(|v| **v == WRITES).count() < 2 * RUNS {
            let (feed, run) = lists.next().await;
            let v = run["metadata"]["v"].as_u64().unwrap_or(0);
            let before = last.insert((feed, run["id"].to_string()), v).unwrap_or(0);
            assert!(before <= v, "{sdk}: {v} after {before} of {run}");
        }
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn unpaced_lists_never_go_back_and_their_last_state_arrives_in_every_client() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &[]).await;
    let target = gateway.target(environment.secret_key);
    for sdk in SDKS.into_iter().chain(["core-3.2.0"]) {
        unpaced(sdk, &target, pool, &environment).await;
    }
    gateway.stop().await;
}
