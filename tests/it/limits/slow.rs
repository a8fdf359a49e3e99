//! Clients that take their time to ask.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::consistency::node::{Kind, Node};
use crate::network::{PUBLIC, address, live_poll, opened, series};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{PATIENCE, eventually};

/// Reads until the server closes.
async fn end(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    // A reset is an end as well.
    let _ = end.expect("the server to close");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn who_drips_a_head_is_cut_while_the_silent_and_the_held_stay() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let arguments = ["--hold=60s", "--head-timeout=1s", "--idle-timeout=8s"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let to = address(&node);
    let started = Instant::now();

    let mut held = TcpStream::connect(to).await.expect("connect");
    let poll = live_poll(to, environment, &run, &open);
    held.write_all(poll.as_bytes()).await.expect("ask");
    let mut silent = TcpStream::connect(to).await.expect("connect");
    // One that has asked before, so that its next head is not its first.
    let mut second = TcpStream::connect(to).await.expect("connect");
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("ask");
    let mut answer = [0; 12];
    second.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");

    let drip = async |stream: &mut TcpStream| {
        let start = Instant::now();
        let (mut reader, mut writer) = stream.split();
        let head = b"GET /healthz HTTP/1.1\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x'));
        let dripping = async {
            for byte in head {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut read = Vec::new();
        tokio::select! {
            _ = reader.read_to_end(&mut read) => {}
            () = dripping => {}
        }
        start.elapsed()
    };
    let mut first = TcpStream::connect(to).await.expect("connect");
    let (cut_first, cut_second) = tokio::join!(drip(&mut first), drip(&mut second));
    for cut in [cut_first, cut_second] {
        assert!(cut >= Duration::from_millis(900) && cut < Duration::from_secs(5), "{cut:?}");
    }
    // One that might go on to speak HTTP/2.
    let (mut preface, start) = (TcpStream::connect(to).await.expect("connect"), Instant::now());
    preface.write_all(b"PRI").await.expect("begin");
    end(&mut preface).await;
    let cut = start.elapsed();
    assert!(cut >= Duration::from_millis(900) && cut < Duration::from_secs(5), "{cut:?}");
    assert_eq!(node.metric("runwire_holds").await, 1.0, "what is held is not slow");

    // Who says nothing has longer.
    end(&mut silent).await;
    let silence = started.elapsed();
    assert!(silence >= Duration::from_millis(7_500), "{silence:?}");
    assert_eq!(node.metric("runwire_holds").await, 1.0);
    drop(held);
    eventually("all to be gone", || async {
        // The one that opened the feed is the client's to keep, until it idles.
        series(&node, "runwire_connections", PUBLIC).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn connections_that_ask_nothing_any_more_are_closed_in_both_protocols() {
    let database = fresh_database().await;
    let arguments = ["--idle-timeout=2s"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let mut http1 = TcpStream::connect(address(&node)).await.expect("connect");
    // For longer than it might be silent.
    let mut start = Instant::now();
    let mut each = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..6 {
        each.tick().await;
        http1.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("ask");
        start = Instant::now();
    }
    assert_eq!(end(&mut http1).await.matches("\r\n\r\nok\n").count(), 6);
    assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());

    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
    let http2 = http2.build().expect("a client");
    let url = format!("{}/healthz", node.url);
    assert_eq!(http2.get(url).send().await.expect("an answer").status(), 200);
    let open = || series(&node, "runwire_connections", PUBLIC);
    assert_eq!(open().await, 1.0);
    eventually("it to be closed", || async { open().await == 0.0 }).await;
}
