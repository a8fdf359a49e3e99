//! How many may be at the door at once.

use std::time::{Duration, Instant};

use sqlx::Executor as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{assert_refused, refused, until_used};
use crate::consistency::node::{Kind, Node, client, get};
use crate::network::{address, opened};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::insert_with;

const LIMIT: usize = 5;

#[tokio::test]
async fn who_comes_while_the_door_is_full_is_refused_at_once_and_who_is_inside_does_not_count() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    // The keys are not held in memory, so that each that is not known is looked up.
    let arguments = ["--hold=60s", "--max-at-door=5", "--key-bytes=1KiB"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let mut polls = JoinSet::new();
    for _ in 0..2 * LIMIT {
        let (url, path) = (node.url.clone(), open.next(&run));
        polls.spawn(async move {
            let query = path.split_once('?').expect("a query").1.to_owned();
            get(&client(), &url, key, "run_0", &format!("{query}&live=true")).await
        });
        let held = polls.len() as f64;
        eventually("it to be held", || async { node.metric("runwire_holds").await == held }).await;
    }

    // Nobody can be told from nobody while the table of keys does not answer.
    let mut lock = database.pool.begin().await.expect("begin");
    let sql = r#"LOCK TABLE "RuntimeEnvironment" IN ACCESS EXCLUSIVE MODE"#;
    lock.execute(sql).await.expect("lock");
    let mut at_door = JoinSet::new();
    for i in 0..LIMIT {
        let url = node.url.clone();
        at_door.spawn(async move {
            get(&client(), &url, &format!("tr_prod_{i}"), "run_0", "offset=-1").await
        });
    }
    until_used(&node, "admission", LIMIT as f64).await;
    let start = Instant::now();
    for method in ["GET", "OPTIONS", "POST"] {
        let url = format!("{}/realtime/v1/runs/run_0?offset=-1", node.url);
        let request = client().request(method.parse().expect("a method"), url);
        let request = request.bearer_auth(key).header("origin", "https://app.example");
        let answer = Shape::read(request.send().await.expect("an answer")).await;
        assert_refused(&answer, 503, "Service Unavailable");
        assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    }
    for probe in ["/healthz", "/readyz"] {
        let answer = client().get(format!("{}{probe}", node.url)).send().await;
        assert_eq!(answer.expect("an answer").status(), 200, "{probe}");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(refused(&node, "admission").await, 3.0);

    lock.rollback().await.expect("roll back");
    while let Some(answer) = at_door.join_next().await {
        let answer = answer.expect("it ends").expect("an answer");
        assert!(answer.status == 401 || answer.status == 503, "{}", answer.text);
    }
    until_used(&node, "admission", 0.0).await;
    assert_eq!(node.get(key, &run, "offset=-1").await.status, 200);
    assert_eq!(node.metric("runwire_holds").await, 2.0 * LIMIT as f64);
}

/// A body that never comes is waited for; whoever sends it was let in before.
#[tokio::test]
async fn slow_bodies_of_one_environment_neither_fill_the_door_nor_keep_others_out() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    let node = Node::start(Kind::Binary, &database.url, &["--max-at-door=5"]).await;
    let v2 = [("realtimeStreamsVersion", "'v2'")];
    insert_with(&database.pool, seeded.production.id, "run_1", &v2).await;
    let minting = "/api/v1/auth/public-tokens";
    let appending = "/realtime/v1/streams/run_1/self/key/append";
    let mut slow = Vec::new();
    for path in [minting, appending].into_iter().cycle().take(4 * LIMIT) {
        let mut stream = TcpStream::connect(address(&node)).await.expect("connect");
        let key = seeded.production.secret_key;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 40\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("ask");
        slow.push(stream);
        // One after the other, since the door itself has few places here.
        until_used(&node, "bodies", slow.len() as f64).await;
    }
    until_used(&node, "admission", 0.0).await;
    let mint = client().post(format!("{}{minting}", node.url)).bearer_auth(seeded.rival.secret_key);
    let minted = mint.body(r#"{"scopes":["read:runs"]}"#).send().await.expect("an answer");
    assert_eq!(minted.status(), 200);
    drop(slow);
    until_used(&node, "bodies", 0.0).await;
}
