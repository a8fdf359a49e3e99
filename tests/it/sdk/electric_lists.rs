//! The Electric clients on raw lists: what is sent of a run when, and resuming.

use std::collections::BTreeSet;

use runwire::server::Settings;
use serde_json::{Value, json};

use super::electric::{next_batch, place, rows};
use crate::list_feed::long::{MANY, many};
use crate::support::balancer::Balancer;
use crate::support::cluster::{drop_slot, fresh_database};
use crate::support::gateway::{Gateway, settings};
use crate::support::npm::Client;
use crate::support::runs::{insert_run, set_metadata, update};

const BATCH: &str = "cseedbatch000000000000001";
/// How many columns a whole row has.
const ALL: usize = 26;

/// The one row that a batch brings: operation, run, and how many columns.
fn one(batch: &Value) -> (&str, &str, usize) {
    let [(operation, row)] = rows(batch)[..] else { panic!("{batch}") };
    (operation, row["id"].as_str().unwrap(), row.as_object().unwrap().len())
}

/// A feed that `run_1` is in from the start and `run_2` comes into by this change, then `run_1` changes
/// while the client is away, and `run_2` while the gateway is, too.
async fn resumes(electric: &str, feed: &str, member: &str) {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    // Slots belong to the cluster, which other tests share.
    let slot = format!("{}_lists", electric.replace(['-', '.'], "_"));
    let kept = [&format!("--slot={slot}"), "--slot-kind=permanent"];
    let settings = settings(&database.url, &kept);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    // Nobody else is in the batch.
    sqlx::query(r#"UPDATE "TaskRun" SET "batchId" = NULL"#).execute(pool).await.unwrap();
    insert_run(pool, environment.id, "run_1").await;
    insert_run(pool, environment.id, "run_2").await;
    update(pool, "run_1", member).await;
    let target = gateway.target(environment.secret_key);
    let resume = async |(handle, offset): &(String, String)| {
        let from = Some((handle.as_str(), offset.as_str()));
        Client::electric(electric, &target, feed, from).await
    };

    let mut asked = Vec::new();
    let mut client = Client::electric(electric, &target, feed, None).await;
    let batch = next_batch(&mut client, &mut asked).await;
    assert_eq!(one(&batch), ("insert", "1", ALL), "{electric}");
    // What it changes besides its membership is in the row, and the rest is, too.
    set_metadata(pool, "run_2", 1).await;
    update(pool, "run_2", member).await;
    let batch = next_batch(&mut client, &mut asked).await;
    assert_eq!(one(&batch), ("insert", "2", ALL), "{electric}");
    assert_eq!(rows(&batch)[0].1["metadata"], r#"{"v":1}"#);
    set_metadata(pool, "run_2", 2).await;
    let batch = next_batch(&mut client, &mut asked).await;
    let changed = json!({ "id": "2", "metadata": r#"{"v":2}"# });
    assert_eq!(rows(&batch), [("update", &changed)], "{electric}");
    let stored = place(&batch);
    drop(client);

    set_metadata(pool, "run_1", 3).await;
    let batch = next_batch(&mut resume(&stored).await, &mut asked).await;
    assert_eq!(one(&batch).1, "1", "{electric}");
    let stored = place(&batch);

    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    gateway.stop().await;
    set_metadata(pool, "run_2", 4).await;
    let gateway = Gateway::start_with(Settings { listen, ..settings }).await;
    gateway.ready().await;
    let mut client = resume(&stored).await;
    let batch = next_batch(&mut client, &mut asked).await;
    let [(_, row)] = rows(&batch)[..] else { panic!("{electric}: {batch}") };
    assert_eq!((&row["id"], &row["metadata"]), (&json!("2"), &json!(r#"{"v":4}"#)), "{electric}");
    assert!(asked.iter().all(|(status, ..)| *status == 200), "{electric}: {asked:?}");
    gateway.stop().await;
    drop_slot(pool, &slot).await;
}

#[tokio::test]
async fn electric_1_0_14_resumes_a_list_that_a_run_came_into() {
    resumes("electric-1.0.14", "/realtime/v1/runs?tags=a,b", r#""runTags" = '{b,c,a}'"#).await;
}

#[tokio::test]
async fn electric_1_5_28_resumes_a_batch_that_a_run_came_into() {
    let feed = format!("/realtime/v1/batches/batch_{BATCH}");
    resumes("electric-1.5.28", &feed, &format!(r#""batchId" = '{BATCH}'"#)).await;
}

#[tokio::test]
async fn electric_clients_load_a_long_list_through_a_balancer_without_stickiness() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    many(pool, environment.id).await;
    let here = Gateway::start(&database.url, &[]).await;
    let other = Gateway::start(&database.url, &["--slot=other_node"]).await;
    let balancer = Balancer::start(&[&here.url, &other.url]).await;
    let target = balancer.target(environment.secret_key);
    for (nth, electric) in ["electric-1.0.14", "electric-1.5.28"].into_iter().enumerate() {
        let mut client =
            Client::electric(electric, &target, "/realtime/v1/runs?tags=a", None).await;
        let (mut asked, mut held) = (Vec::new(), BTreeSet::new());
        loop {
            let batch = next_batch(&mut client, &mut asked).await;
            assert!(asked.len() <= 5, "{electric}: {asked:?}");
            let messages = batch["messages"].as_array().unwrap();
            if messages.iter().any(|message| message["headers"]["control"] == "must-refetch") {
                held.clear();
            }
            for (operation, row) in rows(&batch) {
                assert_eq!(operation, "insert", "{electric}");
                let id = row["id"].as_str().unwrap().to_owned();
                assert!(held.insert(id), "{electric}: twice {row}");
            }
            if batch["upToDate"] == true {
                break;
            }
        }
        assert_eq!(held.len(), MANY, "{electric}");
        let sent_away = asked.iter().filter(|(status, ..)| *status == 409).count();
        assert!(sent_away <= 1, "{electric}: {asked:?}");
        set_metadata(pool, "run_07", nth as i64 + 1).await;
        let batch = next_batch(&mut client, &mut asked).await;
        let (_, id, _) = one(&batch);
        assert_eq!(id, "07", "{electric}");
    }
    drop(balancer);
    here.stop().await;
    other.stop().await;
}
