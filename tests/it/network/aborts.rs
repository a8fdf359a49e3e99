//! Clients that come and go faster than anybody answers them.

use std::time::Duration;

use reqwest::Client;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{PUBLIC, address, live_poll, opened, series};
use crate::consistency::node::{Kind, Node};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{API_VERSION, eventually};
use crate::support::runs::set_metadata;

const RUNS: usize = 10;
const AT_ONCE: usize = 100;

/// `RUNWIRE_TEST_ABORTS=100000` makes a load test of it.
fn aborts() -> usize {
    let asked = std::env::var("RUNWIRE_TEST_ABORTS").ok();
    asked.map_or(5_000, |number| number.parse().expect("a number"))
}

#[tokio::test]
async fn polls_aborted_over_both_protocols_leave_nothing_behind() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    // The offsets that all go on from are to stay good for as long as this takes.
    let arguments = ["--hold=60s", "--window=1h"];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let opened = opened(&node, &database, RUNS).await;
    let to = address(&node);
    let http2 = || Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client");
    let mut client = http2();
    let mut polls = JoinSet::new();
    for i in 0..aborts() {
        let (run, open) = opened[i % RUNS].clone();
        // Some before they are held, some while they are, some while a change wakes them.
        let stay = Duration::from_millis([0, 1, 5, 30][i / 2 % 4]);
        if i % 2 == 0 {
            let text = live_poll(to, environment, &run, &open);
            polls.spawn(async move {
                let mut stream = TcpStream::connect(to).await.expect("connect");
                stream.write_all(text.as_bytes()).await.expect("ask");
                tokio::time::sleep(stay).await;
            });
        } else {
            let (name, version) = API_VERSION;
            let url = format!("http://{to}{}&live=true", open.next(&run));
            let request = client.get(url).bearer_auth(environment.secret_key);
            let poll = request.header(name, version).send();
            // What the future does not finish, its end resets. An answer may be faster.
            polls.spawn(async move {
                let _ = tokio::time::timeout(stay, poll).await;
            });
        }
        if polls.len() >= AT_ONCE {
            polls.join_next().await.expect("a poll").expect("it ends");
        }
        if i % 200 == 0 {
            set_metadata(&database.pool, &run, i as i64).await;
        }
        if i % 1_000 == 999 {
            // Not the stream this time but the whole connection.
            client = http2();
        }
    }
    while let Some(poll) = polls.join_next().await {
        poll.expect("it ends");
    }
    drop(client);
    eventually("nothing to be left", || async {
        node.metric("runwire_holds").await == 0.0
            && node.metric("runwire_waited_topics").await == 0.0
            && node.metric("runwire_sockets_stalled").await == 0.0
            // The connection that opened the feeds may still be there.
            && series(&node, "runwire_connections", PUBLIC).await <= RUNS as f64
    })
    .await;
    let (run, open) = &opened[0];
    let answer = node.next(environment.secret_key, run, open, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}
