//! Limits of environments across gateways, with a real Redis between them.

use std::time::Duration;

use reqwest::Client;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{until_used, used};
use crate::consistency::node::{Kind, Node, client};
use crate::network::opened;
use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{API_VERSION, Shape, eventually};
use crate::support::program::{Serving, run};
use crate::support::redis::Redis;
use crate::support::runs::set_metadata;

/// A gateway of a fleet whose environments may have six live.
async fn gateway(database: &Database, slot: &str, redis: &str) -> Node {
    let slot = format!("--slot=fleet_{slot}");
    let arguments = ["--hold=60s", "--live=6", &slot, redis];
    Node::start(Kind::Binary, &database.url, &arguments).await
}

struct Polls<'a> {
    key: &'static str,
    run: &'a str,
    open: &'a Shape,
    client: Client,
}

impl Polls<'_> {
    fn request(&self, node: &Node) -> reqwest::RequestBuilder {
        let (name, version) = API_VERSION;
        let url = format!("{}{}&live=true", node.url, self.open.next(self.run));
        self.client.get(url).bearer_auth(self.key).header(name, version)
    }

    /// Has this many more held.
    async fn hold(&self, polls: &mut JoinSet<()>, node: &Node, count: usize) {
        let before = node.metric("runwire_holds").await;
        for _ in 0..count {
            let request = self.request(node);
            polls.spawn(async move { drop(request.send().await) });
        }
        let all = before + count as f64;
        eventually("all to be held", || async { node.metric("runwire_holds").await == all }).await;
    }

    async fn is_refused(&self, node: &Node) -> bool {
        let poll = tokio::time::timeout(Duration::from_millis(300), self.request(node).send());
        poll.await.is_ok_and(|answer| answer.expect("an answer").status() == 429)
    }
}

fn connected(node: &Node) -> impl Future<Output = f64> {
    node.metric("runwire_fleet_connected")
}

#[tokio::test]
async fn a_limit_holds_across_gateways_and_outlives_neither_a_gateway_nor_redis() {
    let database = fresh_database().await;
    let mut redis = Redis::start().await;
    let url = format!("--redis-url={}", redis.url());
    let mut first = gateway(&database, "a", &url).await;
    let second = gateway(&database, "b", &url).await;
    let key = database.seeded.production.secret_key;
    let (run, open) = opened(&first, &database, 1).await.remove(0);
    let polls = Polls { key, run: &run, open: &open, client: client() };
    let (mut at_first, mut at_second) = (JoinSet::new(), JoinSet::new());
    eventually("them to see each other", || async {
        second.metric("runwire_fleet_gateways").await == 2.0
    })
    .await;

    polls.hold(&mut at_first, &first, 4).await;
    until_used(&second, "live_elsewhere", 4.0).await;
    polls.hold(&mut at_second, &second, 2).await;
    assert!(polls.is_refused(&second).await, "four there and two here are six");
    until_used(&first, "live_elsewhere", 2.0).await;
    assert!(polls.is_refused(&first).await);
    // Others than this environment are not concerned, and nothing else is written.
    assert!(redis.keys().await.iter().all(|key| key.starts_with("runwire:")));

    // A gateway that dies takes its counts with it.
    first.kill().await;
    until_used(&second, "live_elsewhere", 0.0).await;
    polls.hold(&mut at_second, &second, 4).await;
    assert!(polls.is_refused(&second).await, "six here");
    first.start_again().await;
    first.ready().await;
    until_used(&first, "live_elsewhere", 6.0).await;
    // Its window is new, and so are its clients.
    let open = first.get(key, &run, "offset=-1").await;
    let polls = Polls { key, run: &run, open: &open, client: client() };
    assert!(polls.is_refused(&first).await);

    // Without Redis each counts for itself, and goes on to deliver.
    redis.kill();
    until_used(&first, "live_elsewhere", 0.0).await;
    eventually("the outage to be seen", || async { connected(&first).await == 0.0 }).await;
    let mut at_first = JoinSet::new();
    polls.hold(&mut at_first, &first, 6).await;
    assert!(polls.is_refused(&first).await, "its own count still stands");
    set_metadata(&database.pool, &run, 1).await;
    eventually("all to be told", || async {
        first.metric("runwire_holds").await + second.metric("runwire_holds").await == 0.0
    })
    .await;

    // And when it is back, they find each other by themselves.
    redis.start_again().await;
    eventually("both to be back", || async {
        connected(&first).await + connected(&second).await == 2.0
    })
    .await;
    let open = first.next(key, &run, &open, "").await;
    let polls = Polls { key, run: &run, open: &open, client: client() };
    polls.hold(&mut at_first, &first, 6).await;
    until_used(&second, "live_elsewhere", 6.0).await;
    assert!(polls.is_refused(&second).await);

    // Who leaves in good order is gone at once, and leaves nothing behind.
    at_first.shutdown().await;
    at_second.shutdown().await;
    first.stop().await;
    let keys = redis.keys().await;
    assert_eq!(keys.len(), 2, "one gateway, and the list of them: {keys:?}");
}

#[tokio::test]
async fn a_redis_that_hangs_is_waited_for_by_nobody() {
    let database = fresh_database().await;
    let redis = Redis::start().await;
    let url = format!("--redis-url={}", redis.url());
    let node = gateway(&database, "hang", &url).await;
    let key = database.seeded.production.secret_key;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    eventually("it to be connected", || async { connected(&node).await == 1.0 }).await;
    redis.stop();
    eventually("the outage to be seen", || async { connected(&node).await == 0.0 }).await;
    let polls = Polls { key, run: &run, open: &open, client: client() };
    let mut held = JoinSet::new();
    polls.hold(&mut held, &node, 6).await;
    assert!(polls.is_refused(&node).await);
    redis.go_on();
    eventually("it to be back", || async { connected(&node).await == 1.0 }).await;
    assert_eq!(used(&node, "live_elsewhere").await, 0.0);
}

#[tokio::test]
async fn a_url_that_names_no_redis_is_refused_and_not_repeated() {
    let ended = run(&[
        "serve",
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
        "--database-url=postgresql://nobody@127.0.0.1:1/none",
        "--redis-url=http://user:sesame-4711@127.0.0.1:1",
    ])
    .await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.complaint().starts_with("RUNWIRE_REDIS_URL: is no Redis"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("sesame"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_outage_of_redis_is_logged_once_and_no_start_waits_for_it() {
    let database = fresh_database().await;
    let mut redis = Redis::unstarted().await;
    // As Trigger.dev names it.
    let port = format!("--redis-port={}", redis.port());
    let arguments = [
        "--slot=fleet_log",
        "--redis-host=127.0.0.1",
        "--redis-tls-disabled=true",
        "--redis-username=gate",
        "--redis-password=sesame-4711",
        &port,
    ];
    let gateway = Serving::start_ready(&database.url, &arguments).await;
    gateway.until_said("no redis").await;
    // It tries again and again.
    let nobody = TcpListener::bind(("127.0.0.1", redis.port())).await.expect("bind");
    for _ in 0..3 {
        drop(nobody.accept().await.expect("accept"));
    }
    drop(nobody);
    redis.start_with(&["--user", "gate", "on", ">sesame-4711", "~runwire:*", "+@all"]).await;
    gateway.until_said("redis is back").await;
    let log = gateway.stop().await;
    assert_eq!(log.matches("no redis").count(), 1, "{log}");
    assert!(!log.contains("sesame"), "{log}");
}
