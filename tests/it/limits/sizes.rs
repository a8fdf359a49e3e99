//! How large a request may be.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::assert_refused;
use crate::consistency::node::{Kind, Node, client};
use crate::network::address;
use crate::support::cluster::fresh_database;
use crate::support::gateway::Shape;

#[tokio::test]
async fn what_is_too_large_is_refused_by_its_own_status_and_what_just_fits_is_not() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = Node::start(Kind::Binary, &database.url, &[]).await;
    let plain = client();
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
    let http2 = http2.build().expect("a client");
    for client in [&plain, &http2] {
        let ask = async |path: &str, padding: usize| {
            let request = client.get(format!("{}{path}", node.url)).bearer_auth(key);
            let request = request.header("x-padding", "x".repeat(padding));
            let request = request.header("origin", "https://app.example");
            Shape::read(request.send().await.expect("an answer")).await
        };
        let path = |length: usize| {
            let start = "/realtime/v1/runs?offset=-1&x=";
            format!("{start}{}", "y".repeat(length - start.len()))
        };
        assert_eq!(ask(&path(16 * 1024), 0).await.status, 200);
        let long = ask(&path(16 * 1024 + 1), 0).await;
        assert_refused(&long, 414, "URI too long");
        assert_eq!(long.header("access-control-allow-origin"), "https://app.example");
        assert_eq!(ask(&path(40), 23 * 1024).await.status, 200);
        assert_refused(&ask(&path(40), 24 * 1024).await, 431, "Request headers too large");
        // Far beyond, no more is read than is needed to refuse it.
        assert_eq!(ask(&path(40), 60 * 1024).await.status, 431);
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_unread() {
    let database = fresh_database().await;
    let node = Node::start(Kind::Binary, &database.url, &[]).await;
    for path in ["/api/v1/auth/public-tokens", "/realtime/v1/runs"] {
        let mut stream = TcpStream::connect(address(&node)).await.expect("connect");
        let length = 2 * 1024 * 1024 + 1;
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and its end");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.ends_with(r#"{"error":"Request body too large"}"#), "{answer}");
    }
}

#[tokio::test]
async fn a_preflight_of_any_realtime_path_is_answered_as_one() {
    let database = fresh_database().await;
    let node = Node::start(Kind::Binary, &database.url, &[]).await;
    for (path, status) in [
        ("/realtime/v1/runs/run_1", 200),
        ("/realtime/v1/runs/", 200),
        ("/realtime/v1/streams/run_1/out", 200),
        ("/realtime/v9", 200),
        ("/elsewhere", 404),
    ] {
        let request = client().request(reqwest::Method::OPTIONS, format!("{}{path}", node.url));
        let request = request
            .header("origin", "https://app.example")
            .header("access-control-request-headers", "authorization,x-trigger-branch");
        let answer = Shape::read(request.send().await.expect("an answer")).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
        if status == 200 {
            assert_eq!(answer.text, "{}");
            let allowed = answer.header("access-control-allow-headers");
            assert_eq!(allowed, "authorization,x-trigger-branch", "{path}");
            assert_eq!(answer.header("access-control-max-age"), "300");
        }
    }
}
