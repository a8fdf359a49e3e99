//! How much an environment may have live at once.

use std::collections::HashSet;
use std::time::Duration;

use reqwest::Client;
use runwire::dev::Environment;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{assert_refused, refused, until_used, wait};
use crate::consistency::node::{Kind, Node, client};
use crate::network::{address, live_poll, opened};
use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{API_VERSION, Shape, eventually};
use crate::support::npm::{Client as Npm, Target};
use crate::support::runs::{insert_run, set_metadata};

/// One request that goes on from an answer.
async fn ask(client: &Client, node: &Node, key: &str, from: (&str, &Shape), more: &str) -> Shape {
    let (name, version) = API_VERSION;
    let url = format!("{}{}{more}", node.url, from.1.next(from.0));
    let request = client.get(url).bearer_auth(key).header(name, version);
    Shape::read(request.send().await.expect("an answer")).await
}

/// Holds a poll until it is aborted.
async fn hold(polls: &mut JoinSet<Shape>, node: &Node, key: &str, from: (&str, &Shape)) {
    let (name, version) = API_VERSION;
    let url = format!("{}{}&live=true", node.url, from.1.next(from.0));
    let request = client().get(url).bearer_auth(key).header(name, version);
    let before = node.metric("runwire_holds").await;
    polls.spawn(async move { Shape::read(request.send().await.expect("an answer")).await });
    eventually("it to be held", || async { node.metric("runwire_holds").await == before + 1.0 })
        .await;
}

async fn opened_in(node: &Node, database: &Database, environment: Environment) -> (String, Shape) {
    let run = format!("run_{}", environment.id);
    insert_run(&database.pool, environment.id, &run).await;
    let open = node.get(environment.secret_key, &run, "offset=-1").await;
    (run, open)
}

#[tokio::test]
async fn the_poll_beyond_the_limit_gets_a_429_and_one_that_ends_makes_room_at_once() {
    let database = fresh_database().await;
    let seeded = &database.seeded;
    let (key, other) = (seeded.production.secret_key, seeded.rival);
    let override_ = format!("--live-environments={}=1,nobody=7", seeded.development.id);
    let arguments = ["--hold=60s", "--live=3", &override_];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let opened = opened(&node, &database, 1).await;
    let (run, open) = &opened[0];
    let mut polls = JoinSet::new();
    for _ in 0..3 {
        hold(&mut polls, &node, key, (run, open)).await;
    }
    let client = client();
    let mut waits = HashSet::new();
    for more in ["&live=true", "&live=true&live_sse=true"].repeat(20) {
        let answer = ask(&client, &node, key, (run, open), more).await;
        assert_refused(&answer, 429, "Too many concurrent requests");
        waits.insert(wait(&answer));
    }
    assert!(waits.len() > 1 && waits.iter().all(|wait| (1..=6).contains(wait)), "{waits:?}");
    assert_eq!(refused(&node, "live").await, 40.0);
    until_used(&node, "live", 3.0).await;

    // What is not live does not count, nor does what another environment has.
    assert_eq!(ask(&client, &node, key, (run, open), "").await.status, 200);
    assert_eq!(node.get(key, run, "offset=-1").await.status, 200);
    let (of_other, open_other) = opened_in(&node, &database, other).await;
    hold(&mut polls, &node, other.secret_key, (&of_other, &open_other)).await;

    // One environment has a limit of its own.
    let development = seeded.development;
    let (own, open_own) = opened_in(&node, &database, development).await;
    hold(&mut polls, &node, development.secret_key, (&own, &open_own)).await;
    let answer = ask(&client, &node, development.secret_key, (&own, &open_own), "&live=true").await;
    assert_refused(&answer, 429, "Too many concurrent requests");

    // An answer makes room, and so does a client that goes.
    set_metadata(&database.pool, run, 1).await;
    for _ in 0..3 {
        let answer = polls.join_next().await.expect("a poll").expect("it ends");
        assert_eq!(answer.row().1["metadata"], r#"{"v":1}"#);
    }
    let open = &ask(&client, &node, key, (run, open), "").await;
    for _ in 0..2 {
        hold(&mut polls, &node, key, (run, open)).await;
    }
    let mut third = JoinSet::new();
    hold(&mut third, &node, key, (run, open)).await;
    assert_eq!(ask(&client, &node, key, (run, open), "&live=true").await.status, 429);
    third.shutdown().await;
    eventually("its place to be free", || async { node.metric("runwire_holds").await == 4.0 })
        .await;
    hold(&mut polls, &node, key, (run, open)).await;
    assert_eq!(ask(&client, &node, key, (run, open), "&live=true").await.status, 429);
}

#[tokio::test]
async fn connections_of_events_count_until_their_client_goes() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = Node::start(Kind::Binary, &database.url, &["--hold=60s", "--live=2"]).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let (name, version) = API_VERSION;
    let url = format!("{}{}&live=true&live_sse=true", node.url, open.next(&run));
    let client = client();
    let events = async || {
        let request = client.get(&url).bearer_auth(key).header(name, version);
        request.send().await.expect("an answer")
    };
    let (first, second) = (events().await, events().await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    until_used(&node, "live", 2.0).await;
    assert_eq!(events().await.status(), 429);
    assert_eq!(ask(&client, &node, key, (&run, &open), "&live=true").await.status, 429);
    drop(first);
    until_used(&node, "live", 1.0).await;
    assert_eq!(events().await.status(), 200);
}

#[tokio::test]
async fn polls_on_one_connection_count_one_by_one() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = Node::start(Kind::Binary, &database.url, &["--hold=60s", "--live=4"]).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client");
    let (name, version) = API_VERSION;
    let mut polls = JoinSet::new();
    for _ in 0..7 {
        let url = format!("{}{}&live=true", node.url, open.next(&run));
        let request = http2.get(url).bearer_auth(key).header(name, version);
        polls.spawn(async move { request.send().await.expect("an answer").status() });
    }
    for _ in 0..3 {
        let status = polls.join_next().await.expect("a poll").expect("it ends");
        assert_eq!(status, 429);
    }
    until_used(&node, "live", 4.0).await;
    polls.shutdown().await;
    until_used(&node, "live", 0.0).await;
}

#[tokio::test]
async fn thousands_that_come_and_go_at_the_limit_leave_the_counts_at_nothing() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let node = Node::start(Kind::Binary, &database.url, &["--hold=60s", "--live=20"]).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let to = address(&node);
    let mut clients = JoinSet::new();
    for i in 0..3_000 {
        let text = live_poll(to, environment, &run, &open);
        let stay = Duration::from_millis([0, 1, 5, 20][i % 4]);
        clients.spawn(async move {
            let mut stream = TcpStream::connect(to).await.expect("connect");
            stream.write_all(text.as_bytes()).await.expect("ask");
            tokio::time::sleep(stay).await;
        });
        if clients.len() >= 60 {
            clients.join_next().await.expect("a client").expect("it ends");
        }
    }
    while clients.join_next().await.is_some() {}
    assert!(refused(&node, "live").await > 0.0, "the limit was met");
    until_used(&node, "live", 0.0).await;
    until_used(&node, "admission", 0.0).await;
    // All places are free again. Who was not looked at before he left may still take one for a moment.
    let mut polls = JoinSet::new();
    for _ in 0..20 {
        let url = format!("{}{}&live=true", node.url, open.next(&run));
        polls.spawn(async move {
            loop {
                let request = client().get(&url).bearer_auth(environment.secret_key);
                let answer = request.send().await.expect("an answer");
                if answer.status() != 429 {
                    return;
                }
            }
        });
    }
    eventually("all to be held", || async { node.metric("runwire_holds").await == 20.0 }).await;
    let over = ask(&client(), &node, environment.secret_key, (&run, &open), "&live=true").await;
    assert_eq!(over.status, 429);
}

/// Both Electric clients take a 429 for something that passes: they come back, and are told all.
async fn comes_back(electric: &str) {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = Node::start(Kind::Binary, &database.url, &["--hold=60s", "--live=1"]).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let mut polls = JoinSet::new();
    hold(&mut polls, &node, key, (&run, &open)).await;
    let target = Target { base_url: node.url.clone(), access_token: key.to_owned() };
    let feed = format!("/realtime/v1/runs/{run}");
    let soon = Duration::from_secs(60);
    let mut client = Npm::electric(electric, &target, &feed, None).await;
    assert_eq!(client.until_refused(soon).await, 429, "{electric}");
    polls.shutdown().await;
    eventually("it to be let in", || async { node.metric("runwire_holds").await == 1.0 }).await;
    set_metadata(&database.pool, &run, 7).await;
    loop {
        let said = client.next(soon).await.expect("it goes on");
        if said["messages"].to_string().contains(r#"{\"v\":7}"#) {
            break;
        }
    }
}

#[tokio::test]
async fn electric_1_0_14_comes_back_after_a_429() {
    comes_back("electric-1.0.14").await;
}

#[tokio::test]
async fn electric_1_5_28_comes_back_after_a_429() {
    comes_back("electric-1.5.28").await;
}
