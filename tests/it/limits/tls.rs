//! TLS, as browsers and servers speak it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::{Client, ClientBuilder, Version};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::consistency::node::{Kind, Node};
use crate::network::{opened, series};
use crate::support::certificate::Certificate;
use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{API_VERSION, PATIENCE, Shape, eventually};
use crate::support::npm::{Client as Npm, Target};
use crate::support::program::{Serving, run as program};
use crate::support::runs::set_metadata;

const TLS: &str = r#"listener="tls""#;

/// A gateway with TLS, and where it speaks it.
async fn started(
    database: &Database,
    certificate: &Certificate,
    arguments: &[&str],
) -> (Node, SocketAddr) {
    let (address, listen) = free_address();
    let files = certificate.arguments();
    let all = [arguments, &["--hold=60s", &listen, &files[0], &files[1]]].concat();
    (Node::start(Kind::Binary, &database.url, &all).await, address)
}

fn free_address() -> (SocketAddr, String) {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = free.local_addr().expect("its address");
    (address, format!("--tls-listen={address}"))
}

fn trusting(certificate: &Certificate) -> ClientBuilder {
    Client::builder().no_proxy().add_root_certificate(certificate.trusted())
}

#[tokio::test]
async fn both_protocols_are_spoken_over_tls_and_http2_carries_many_polls_on_one_connection() {
    let database = fresh_database().await;
    let certificate = Certificate::new("tls-both");
    let (node, address) = started(&database, &certificate, &[]).await;
    let key = database.seeded.production.secret_key;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let http2 = trusting(&certificate).build().expect("a client");
    let http1 = trusting(&certificate).http1_only().build().expect("a client");
    let (name, version) = API_VERSION;
    let ask = |client: &Client| {
        let url = format!("https://{address}{}&live=true", open.next(&run));
        client.get(url).bearer_auth(key).header(name, version).send()
    };
    let mut polls = JoinSet::new();
    for _ in 0..30 {
        polls.spawn(ask(&http2));
    }
    eventually("all to be held", || async { node.metric("runwire_holds").await == 30.0 }).await;
    // A client that does not know yet what is spoken may open more than one, and closes them.
    eventually("one connection to remain", || async {
        series(&node, "runwire_connections", TLS).await == 1.0
    })
    .await;
    polls.spawn(ask(&http1));
    eventually("it to be held", || async { node.metric("runwire_holds").await == 31.0 }).await;
    set_metadata(&database.pool, &run, 1).await;
    let mut versions = Vec::new();
    while let Some(answer) = polls.join_next().await {
        let answer = answer.expect("it ends").expect("an answer");
        versions.push(answer.version());
        assert_eq!(Shape::read(answer).await.row().1["metadata"], r#"{"v":1}"#);
    }
    let of = |version| versions.iter().filter(|v| **v == version).count();
    assert_eq!((of(Version::HTTP_2), of(Version::HTTP_11)), (30, 1));
    // Without trust there is nothing.
    let stranger = Client::builder().no_proxy().build().expect("a client");
    assert!(stranger.get(format!("https://{address}/healthz")).send().await.is_err());
}

#[tokio::test]
async fn an_electric_client_follows_a_run_over_tls() {
    let database = fresh_database().await;
    let certificate = Certificate::new("tls-electric");
    let (node, address) = started(&database, &certificate, &[]).await;
    let key = database.seeded.production.secret_key;
    let (run, _) = opened(&node, &database, 1).await.remove(0);
    let base_url = format!("https://{address}");
    let feed = format!("/realtime/v1/runs/{run}");
    let env = [
        ("BASE_URL", base_url.as_str()),
        ("ACCESS_TOKEN", key),
        ("FEED", &feed),
        ("NODE_EXTRA_CA_CERTS", certificate.path.to_str().expect("UTF-8")),
    ];
    let mut client = Npm::start("electric.mjs", &["electric-1.0.14"], &env).await;
    let soon = Duration::from_secs(60);
    let first = client.next_of("messages", soon).await;
    assert!(first["messages"].to_string().contains(&run), "{first}");
    set_metadata(&database.pool, &run, 5).await;
    let second = client.next_of("messages", soon).await;
    assert!(second["messages"].to_string().contains(r#"{\"v\":5}"#), "{second}");
    // One that does not trust it gets nothing.
    let target = Target { base_url, access_token: key.to_owned() };
    let _stranger = Npm::electric("electric-1.0.14", &target, &feed, None).await;
    eventually("the stranger to be refused", || async {
        series(&node, "runwire_tls_handshakes_failed_total", r#"why="refused""#).await >= 1.0
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_cut_and_counts_as_a_connection_until_then() {
    let database = fresh_database().await;
    let certificate = Certificate::new("tls-slow");
    let arguments = ["--head-timeout=2s", "--max-connections=3"];
    let (node, address) = started(&database, &certificate, &arguments).await;
    // The one that asked whether it is ready was an operator's.
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(TcpStream::connect(address).await.expect("connect"));
    }
    eventually("them to be connected", || async {
        series(&node, "runwire_connections", TLS).await == 3.0
    })
    .await;
    let start = Instant::now();
    let mut fourth = TcpStream::connect(address).await.expect("connect");
    assert_eq!(fourth.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(series(&node, "runwire_connections_refused_total", TLS).await, 1.0);
    for stream in &mut slow {
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await;
        assert_eq!(end.expect("the server to close").unwrap_or(0), 0);
    }
    let timeouts = || series(&node, "runwire_tls_handshakes_failed_total", r#"why="timeout""#);
    eventually("all to be counted", || async { timeouts().await == 3.0 }).await;
    let client = trusting(&certificate).build().expect("a client");
    let answer = client.get(format!("https://{address}/healthz")).send().await;
    assert_eq!(answer.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_and_who_is_connected_stays() {
    let database = fresh_database().await;
    let certificate = Certificate::new("tls-renewed");
    let (address, listen) = free_address();
    let files = certificate.arguments();
    let arguments = ["--hold=60s", &listen, &files[0], &files[1]];
    let gateway = Serving::start_ready(&database.url, &arguments).await;
    let before = trusting(&certificate).http1_only().pool_max_idle_per_host(1);
    let before = before.build().expect("a client");
    let health = format!("https://{address}/healthz");
    let trusts = async |client: &Client| client.get(&health).send().await.is_ok();
    assert!(trusts(&before).await);
    // Half of a renewal changes nothing.
    std::fs::write(&certificate.key, "not a key").expect("write");
    gateway.until_said("the TLS certificate stays as it was").await;
    let still = trusting(&certificate).build().expect("a client");
    assert!(trusts(&still).await);
    certificate.renew();
    let after = || trusting(&certificate).build().expect("a client");
    eventually("the new one to be shown", || async { trusts(&after()).await }).await;
    // It does not trust the new one, so this goes over its old connection.
    assert!(trusts(&before).await);
    gateway.stop().await;
}

#[tokio::test]
async fn a_certificate_that_does_not_work_is_named_in_one_line() {
    let database = fresh_database().await;
    let (one, other) = (Certificate::new("tls-one"), Certificate::new("tls-other"));
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (certificate, key) = (path(&one.path), path(&one.key));
    for (certificate, key, said) in [
        (certificate.clone(), path(&other.key), "do not belong together"),
        (key.clone(), key.clone(), "holds no certificate in PEM"),
        (certificate.clone(), certificate.clone(), "holds no private key in PEM"),
        ("/nowhere.pem".to_owned(), key.clone(), "cannot read /nowhere.pem"),
    ] {
        let ended = program(&[
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--tls-listen=127.0.0.1:0",
            "--database-url",
            &database.url,
            "--tls-certificate",
            &certificate,
            "--tls-key",
            &key,
        ])
        .await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.complaint().contains(said), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn several_addresses_are_served_and_share_the_limit_of_connections() {
    let database = fresh_database().await;
    let ((first, _), (second, _)) = (free_address(), free_address());
    let url = format!("http://{first},{second}");
    let gateway = Serving::start_at(&url, &database.url, &["--max-connections=2"]).await;
    let one = TcpStream::connect(first).await.expect("connect");
    let _two = TcpStream::connect(second).await.expect("connect");
    let mut third = TcpStream::connect(first).await.expect("connect");
    assert_eq!(third.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    drop(one);
    eventually("a place to be free", || async {
        let answer = Client::builder().no_proxy().build().expect("a client");
        let answer = answer.get(format!("http://{second}/healthz")).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    gateway.stop().await;
}
