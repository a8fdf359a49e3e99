//! Held polls that end otherwise than by a change.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::node::{Kind, Node, exit, signal};
use super::standby::Cluster;
use crate::support::gateway::{API_VERSION, eventually};
use crate::support::runs::{insert_run, set_metadata};

const HELD: usize = 20;

/// Polls a run on a connection of its own and leaves without a word.
async fn poll_and_leave(url: String, key: &str, path: String, after: Duration) {
    let host = url.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&host).await.expect("connect");
    let (name, version) = API_VERSION;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n{name}: {version}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("ask");
    tokio::time::sleep(after).await;
}

#[tokio::test]
async fn aborted_polls_leave_nothing_behind() {
    let cluster = Cluster::start().await;
    let environment = cluster.seeded.production;
    let node = Node::start(Kind::Binary, &cluster.url, &["--hold=60s"]).await;
    let mut paths = Vec::new();
    for i in 0..HELD {
        let run = format!("run_{i}");
        insert_run(&cluster.pool, environment.id, &run).await;
        let open = node.get(environment.secret_key, &run, "offset=-1").await;
        paths.push(format!("{}&live=true", open.next(&run)));
    }
    let path = |i: usize| paths[i % HELD].clone();

    // First some that stay, which shows that they are counted.
    let mut polls = JoinSet::new();
    for i in 0..HELD {
        let stay = Duration::from_secs(60);
        polls.spawn(poll_and_leave(node.url.clone(), environment.secret_key, path(i), stay));
    }
    eventually("the holds to be counted", || async {
        node.metric("runwire_holds").await == HELD as f64
            && node.metric("runwire_waited_topics").await == HELD as f64
    })
    .await;
    polls.shutdown().await;

    // Then 2,000 that leave, some before they are held and some while a change wakes them.
    let mut polls = JoinSet::new();
    for i in 0..2_000 {
        let after = Duration::from_millis([0, 1, 5, 30][i % 4]);
        polls.spawn(poll_and_leave(node.url.clone(), environment.secret_key, path(i), after));
        if polls.len() >= 50 {
            polls.join_next().await.expect("a poll").expect("it ends");
        }
        if i % 100 == 0 {
            set_metadata(&cluster.pool, &format!("run_{}", i % HELD), i as i64).await;
        }
    }
    while let Some(poll) = polls.join_next().await {
        poll.expect("it ends");
    }
    eventually("nothing to be left", || async {
        node.metric("runwire_holds").await == 0.0
            && node.metric("runwire_waited_topics").await == 0.0
            // This connection asks.
            && node.metric("runwire_connections").await <= 1.0
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_process_answers_them_first() {
    let cluster = Cluster::start().await;
    let environment = cluster.seeded.production;
    let (key, run) = (environment.secret_key, cluster.seeded.run);
    let mut node = Node::start(Kind::Binary, &cluster.url, &["--hold=60s"]).await;
    let open = node.get(key, run, "offset=-1").await;
    let mut polls = JoinSet::new();
    for _ in 0..HELD {
        let url = node.url.clone();
        let query = format!("handle={}&offset={}&live=true", open.handle(), open.offset());
        polls.spawn(async move {
            super::node::get(&super::node::client(), &url, key, run, &query).await
        });
    }
    eventually("the polls to be held", || async {
        node.metric("runwire_holds").await == HELD as f64
    })
    .await;
    let start = Instant::now();
    signal("TERM", node.process().id());
    while let Some(answer) = polls.join_next().await {
        let answer = answer.unwrap().expect("an answer, not a broken connection");
        assert_eq!(answer.status, 200);
        assert!(answer.is_bare(), "{}", answer.text);
        assert!(!answer.handle().is_empty() && !answer.offset().is_empty());
    }
    let status = exit(node.process()).await;
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // The slot was temporary and is gone.
    let slots: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_replication_slots")
        .fetch_one(&cluster.pool)
        .await
        .unwrap();
    assert_eq!(slots, 0);
}
