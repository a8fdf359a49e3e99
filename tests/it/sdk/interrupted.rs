//! Subscriptions that something comes between: a gateway that is away, a token that ends.

use std::time::{Duration, Instant};

use runwire::dev::Environment;
use runwire::dev::run::{complete, set_metadata, set_status};
use runwire::server::Settings;
use serde_json::json;

use super::{OUTPUT, SDKS, SOON, trigger};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, settings};
use crate::support::npm::Client;
use crate::support::token;

#[tokio::test]
async fn a_gateway_that_is_gone_for_two_seconds_is_waited_for_by_every_sdk() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let settings = settings(&database.url, &[]);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    let target = gateway.target(environment.secret_key);
    let mut subscribers = Vec::new();
    for sdk in SDKS {
        let run = trigger(pool, &environment).await;
        subscribers.push((sdk, Client::subscribe_run(sdk, &target, &run).await, run));
    }
    for (sdk, client, run) in &mut subscribers {
        assert_eq!(client.next_run(SOON).await["status"], "QUEUED", "{sdk}");
        set_status(pool, run, "EXECUTING").await.unwrap();
        assert_eq!(client.next_run(SOON).await["status"], "EXECUTING", "{sdk}");
    }

    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    gateway.stop().await;
    for (_, _, run) in &subscribers {
        set_metadata(pool, run, r#"{"v":1}"#).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let gateway = Gateway::start_with(Settings { listen, ..settings }).await;
    for (sdk, mut client, run) in subscribers {
        let seen = client.next_run(SOON).await;
        let facts = (&seen["status"], &seen["metadata"]);
        assert_eq!(facts, (&json!("EXECUTING"), &json!({ "v": 1 })), "{sdk}");
        complete(pool, &run, OUTPUT).await.unwrap();
        assert_eq!(client.next_run(SOON).await["status"], "COMPLETED", "{sdk}");
        let rest = client.rest(SOON).await;
        assert!(rest.iter().all(|said| said["type"] != "run"), "{sdk}: {rest:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_token_that_expires_ends_the_next_poll_with_a_401_and_clients_report_it() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let gateway = Gateway::start(&database.url, &["--hold=60s"]).await;
    // How long Node takes to start depends on what else the machine does.
    for life in [6, 15, 40] {
        if expires_in_time(&gateway, &environment, database.seeded.run, life).await {
            return gateway.stop().await;
        }
    }
    panic!("the clients did not start within a token's life");
}

/// `false` if the token had ended before a client had begun.
async fn expires_in_time(
    gateway: &Gateway,
    environment: &Environment,
    run: &str,
    life: u64,
) -> bool {
    let mut claims = token::claims(environment.id);
    claims["scopes"] = json!([format!("read:runs:{run}")]);
    claims["exp"] = json!(claims["iat"].as_u64().unwrap() + life);
    let issued = Instant::now();
    let target = gateway.target(token::sign(&claims, environment.secret_key));
    let feed = format!("/realtime/v1/runs/{run}");
    let mut electric = Client::electric("electric-1.0.14", &target, &feed, None).await;
    let mut sdk = Client::subscribe_run("sdk-4.8.3", &target, run).await;
    for client in [&mut electric, &mut sdk] {
        if client.next_of("response", SOON).await["status"] == 401 {
            return false;
        }
    }
    assert_eq!(sdk.next_run(SOON).await["status"], "EXECUTING");
    let patience = Duration::from_secs(life) + SOON;
    assert_eq!(sdk.until_refused(patience).await, 401);
    // The gateway looks at the token's life before it holds a poll for a minute.
    assert!(issued.elapsed() < Duration::from_secs(50));
    // No exception tells an SDK's user: Node ends as nothing is left that its loop could wait for.
    assert_eq!(sdk.next(SOON).await, None, "it asks no more");
    assert_eq!(electric.until_refused(patience).await, 401);
    let reported = electric.next(SOON).await.expect("a report");
    assert_eq!((&reported["type"], &reported["status"]), (&json!("error"), &json!(401)));
    true
}
