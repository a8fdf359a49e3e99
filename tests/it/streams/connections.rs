//! The connections of readers over HTTP/1.1: what else is asked on them.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::streams::{SOON, Stand};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// A request for a run's stream that is quiet for a second.
fn asking(stand: &Stand, run: &str, version: &str, more: &str) -> String {
    let key = stand.key();
    format!(
        "GET /realtime/v1/streams/{run}/ai {version}\r\nhost: x\r\ntimeout-seconds: 1\r\n{more}authorization: Bearer {key}\r\n\r\n"
    )
}

async fn connect(stand: &Stand, text: &str) -> TcpStream {
    let address = stand.gateway.url.strip_prefix("http://").expect("a url");
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.write_all(text.as_bytes()).await.expect("ask");
    stream
}

/// Reads until it has this.
async fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(end) {
            assert_ne!(stream.read_buf(&mut read).await.expect("it goes on"), 0, "no {end}");
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("it in time");
    String::from_utf8(read).expect("UTF-8")
}

/// Reads until the server closes.
async fn read_all(mut stream: TcpStream) -> String {
    let mut read = String::new();
    let reading = stream.read_to_string(&mut read);
    tokio::time::timeout(SOON, reading).await.expect("an end in time").expect("a clean end");
    read
}

#[tokio::test]
async fn a_connection_is_used_again_when_a_stream_has_ended() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "x").await;
    let ask = asking(&stand, &run, "HTTP/1.1", "");
    let mut stream = connect(&stand, &ask).await;
    for _ in 0..2 {
        let first = read_to(&mut stream, "event: ping").await;
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert!(first.contains("\r\ntransfer-encoding: chunked\r\n"), "{first}");
        assert!(first.contains("\r\ndate: ") && first.contains("event: batch\n"), "{first}");
        // What is asked meanwhile is answered after it.
        stream.write_all(HEALTH.as_bytes()).await.expect("ask");
        let rest = read_to(&mut stream, "ok").await;
        let end = "data: [DONE]\n\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert!(rest.contains(end), "{rest}");
        stream.write_all(ask.as_bytes()).await.expect("ask");
    }
}

#[tokio::test]
async fn readers_whose_connection_ends_with_the_stream_are_served_as_all_are() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "x").await;
    let old = read_all(connect(&stand, &asking(&stand, &run, "HTTP/1.0", "")).await).await;
    assert!(!old.contains("chunked") && old.ends_with("data: [DONE]\n\n"), "{old}");
    let closing = asking(&stand, &run, "HTTP/1.1", "connection: close\r\n");
    let closed = read_all(connect(&stand, &closing).await).await;
    assert!(closed.contains("\r\nconnection: close\r\n"), "{closed}");
    assert!(closed.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{closed}");
    // A body that nobody reads.
    let with_body = asking(&stand, &run, "HTTP/1.1", "content-length: 2\r\n") + "{}" + HEALTH;
    let mut with_body = connect(&stand, &with_body).await;
    read_to(&mut with_body, "data: [DONE]\n\n\r\n0\r\n\r\n").await;
    // One that asks again before it has heard anything.
    let twice = asking(&stand, &run, "HTTP/1.1", "") + HEALTH;
    let twice = read_to(&mut connect(&stand, &twice).await, "ok").await;
    assert!(twice.contains("data: [DONE]\n\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n"), "{twice}");
}
