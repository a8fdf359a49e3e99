//! HTTP/2 without TLS, as proxies speak it, on the port where others speak HTTP/1.1.

use std::time::{Duration, Instant};

use reqwest::{Client, Response, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::vanished::queues;
use super::{PUBLIC, address, opened, series};
use crate::consistency::node::{self, Kind, Node, exit, signal};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{API_VERSION, Shape, eventually};
use crate::support::runs::set_metadata;

const RUNS: usize = 20;
const POLLS: usize = 400;

/// A client that opens one connection and sends everything on it.
fn http2_client() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client")
}

async fn poll(client: Client, node_url: String, key: &'static str, path: String) -> Response {
    let (name, version) = API_VERSION;
    let url = format!("{node_url}{path}&live=true");
    let request = client.get(url).bearer_auth(key).header(name, version);
    request.send().await.expect("an answer, not a broken connection")
}

#[tokio::test]
async fn one_connection_holds_hundreds_of_polls_and_each_gets_its_change() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = Node::start(Kind::Binary, &database.url, &["--hold=60s"]).await;
    let opened = opened(&node, &database, RUNS).await;
    let before = series(&node, "runwire_connections", PUBLIC).await;

    let client = http2_client();
    let mut polls = JoinSet::new();
    for i in 0..POLLS {
        let (run, open) = opened[i % RUNS].clone();
        let (client, url) = (client.clone(), node.url.clone());
        polls.spawn(async move {
            let answer = poll(client, url, key, open.next(&run)).await;
            assert_eq!(answer.version(), Version::HTTP_2);
            (i % RUNS, Shape::read(answer).await)
        });
    }
    eventually("the polls to be held", || async {
        node.metric("runwire_holds").await == POLLS as f64
    })
    .await;
    // Earlier ones may have been closing still.
    assert!(series(&node, "runwire_connections", PUBLIC).await <= before + 1.0);

    // HTTP/1.1 on the same port meanwhile.
    let (run, open) = &opened[0];
    let first = node.next(key, run, open, "").await;
    assert!(first.is_bare(), "{}", first.text);

    for (i, (run, _)) in opened.iter().enumerate() {
        set_metadata(&database.pool, run, i as i64).await;
    }
    let mut answered = [0; RUNS];
    while let Some(answer) = polls.join_next().await {
        let (run, answer) = answer.expect("a poll");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.row().1["metadata"], format!(r#"{{"v":{run}}}"#));
        assert!(!answer.handle().is_empty() && !answer.header("electric-cursor").is_empty());
        answered[run] += 1;
    }
    assert_eq!(answered, [POLLS / RUNS; RUNS]);
}

#[tokio::test]
async fn the_drain_answers_held_polls_of_both_protocols_and_ends_both_connections() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let mut node = Node::start(Kind::Binary, &database.url, &["--hold=60s"]).await;
    let opened = opened(&node, &database, 1).await;
    let (run, open) = &opened[0];
    let clients = [http2_client(), node::client()];
    let mut polls = JoinSet::new();
    for i in 0..20 {
        let (client, url, path) = (clients[i % 2].clone(), node.url.clone(), open.next(run));
        polls.spawn(async move {
            let answer = poll(client, url, key, path).await;
            (answer.version(), Shape::read(answer).await)
        });
    }
    eventually("the polls to be held", || async { node.metric("runwire_holds").await == 20.0 })
        .await;
    let start = Instant::now();
    signal("TERM", node.process().id());
    let mut versions = Vec::new();
    while let Some(answer) = polls.join_next().await {
        let (version, answer) = answer.expect("an answer");
        assert!(answer.status == 200 && answer.is_bare(), "{}", answer.text);
        versions.push(version);
    }
    let of = |version| versions.iter().filter(|v| **v == version).count();
    assert_eq!((of(Version::HTTP_2), of(Version::HTTP_11)), (10, 10));
    // The clients' connections are still open on their side: GOAWAY and FIN come from here.
    assert_eq!(exit(node.process()).await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn requests_on_one_connection_are_limited_as_connections_are() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let arguments = ["--hold=60s", "--max-connections=20"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let client = http2_client();
    let mut polls = JoinSet::new();
    for _ in 0..30 {
        polls.spawn(poll(client.clone(), node.url.clone(), key, open.next(&run)));
    }
    let refused = polls.join_next().await.expect("a poll").expect("it ends");
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let refusals = || series(&node, "runwire_requests_refused_total", PUBLIC);
    // Those that hold, those that were refused, and no connection of anybody else's.
    eventually("each to be held or refused", || async {
        node.metric("runwire_holds").await + refusals().await == 30.0
    })
    .await;
    assert!(refusals().await >= 10.0);

    // Who goes gives its place back, though the connection stays.
    polls.shutdown().await;
    eventually("the holds to end", || async { node.metric("runwire_holds").await == 0.0 }).await;
    let mut again = JoinSet::new();
    for _ in 0..10 {
        again.spawn(poll(client.clone(), node.url.clone(), key, open.next(&run)));
    }
    eventually("new polls to be held", || async { node.metric("runwire_holds").await == 10.0 })
        .await;
}

#[tokio::test]
async fn events_on_one_connection_take_places_and_keep_it_for_as_long_as_they_flow() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let arguments = ["--max-connections=6", "--idle-timeout=1s", "--sse-life=60s"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let client = http2_client();
    let path = format!("{}&live_sse=true", open.next(&run));
    let events = || poll(client.clone(), node.url.clone(), key, path.clone());
    let mut flowing = Vec::new();
    let mut refused = None;
    for _ in 0..8 {
        let answer = events().await;
        match answer.status().as_u16() {
            200 => flowing.push(answer),
            _ => refused = Some(answer),
        }
    }
    let refused = refused.expect("events beyond the places");
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(flowing.len() <= 6, "{}", flowing.len());

    // A connection on which events flow is not idle: who comes later comes on the same.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let before = series(&node, "runwire_connections", PUBLIC).await;
    drop(flowing.pop());
    eventually("the place to be free again", || async { events().await.status() == 200 }).await;
    assert_eq!(series(&node, "runwire_connections", PUBLIC).await, before);
}

/// Says the preface in pieces, as a network may deliver it, and expects the server's SETTINGS.
#[tokio::test]
async fn the_protocol_is_told_however_the_first_bytes_are_cut() {
    let database = fresh_database().await;
    let node = Node::start(Kind::Binary, &database.url, &[]).await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let http1 = b"PROPFIND /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for cut in [1, 2, 3, 5, 16, 23, 24, 25] {
        for (said, expected) in [(&http2[..], &b"\0\0"[..]), (&http1[..], &b"HTTP/1.1 405"[..])] {
            let mut stream = TcpStream::connect(address(&node)).await.expect("connect");
            stream.set_nodelay(true).expect("no delay");
            stream.write_all(&said[..cut]).await.expect("write");
            // The server has read the first piece when its side of the socket has nothing queued.
            eventually("the piece to be read", || async {
                let queues = queues(address(&node), stream.local_addr().expect("one"));
                queues.is_some_and(|(_, unread)| unread == 0)
            })
            .await;
            stream.write_all(&said[cut..]).await.expect("write");
            let mut answer = vec![0; expected.len()];
            stream.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer, expected, "cut at {cut}: {said:?}");
        }
    }
}
