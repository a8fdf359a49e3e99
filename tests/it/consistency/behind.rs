//! A client that is ahead of the node that it comes to.

use std::time::{Duration, Instant};

use runwire::feed::position::Position;
use runwire::postgres::Lsn;

use super::held::Held;
use super::node::{Kind, Node};
use super::standby::Cluster;
use super::subscriber::{offset, version};
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::{insert_run, set_metadata};

const RUN: &str = "run_1";

struct Scene {
    cluster: Cluster,
    key: &'static str,
    ahead: Node,
    behind: Node,
    held: Held,
    /// What the node ahead said last.
    seen: Shape,
}

/// Two nodes that know version 1 whole, of which one does not get to know version 2.
async fn scene() -> Scene {
    let cluster = Cluster::start().await;
    let environment = cluster.seeded.production;
    let key = environment.secret_key;
    let arguments = |slot| [slot, "--hold=1s"];
    let ahead = Node::start(Kind::Here, &cluster.url, &arguments("--slot=ahead")).await;
    let behind = Node::start(Kind::Here, &cluster.url, &arguments("--slot=behind")).await;
    insert_run(&cluster.pool, environment.id, RUN).await;
    set_metadata(&cluster.pool, RUN, 1).await;
    let mut from = None;
    for node in [&ahead, &behind] {
        eventually("version 1", || async {
            version(&node.get(key, RUN, "offset=-1").await) == Some(1)
        })
        .await;
        from = Some(node.get(key, RUN, "offset=-1").await);
    }
    // The node that stays behind has it by the stream, and a poll in flight.
    let from = from.unwrap();
    let caught_up = behind.next(key, RUN, &from, "&live=true").await;
    assert!(caught_up.is_bare(), "{}", caught_up.text);
    let held = Held::hold(&cluster.pool, "behind").await.expect("a walsender");
    set_metadata(&cluster.pool, RUN, 2).await;
    let seen = ahead.next(key, RUN, &caught_up, "&live=true").await;
    assert_eq!(version(&seen), Some(2));
    Scene { cluster, key, ahead, behind, held, seen }
}

#[tokio::test]
async fn it_is_never_given_a_lower_offset_or_an_older_state() {
    let Scene { cluster, key, ahead, behind, held, seen } = scene().await;
    let own = offset(&seen);
    // A fresh client gets what this node knows, which shows that it is behind.
    let fresh = behind.get(key, RUN, "offset=-1").await;
    assert_eq!(version(&fresh), Some(1), "{}", fresh.text);
    assert!(offset(&fresh) < own);

    let caught_up = behind.next(key, RUN, &seen, "").await;
    assert!(caught_up.is_bare(), "{}", caught_up.text);
    assert_eq!(offset(&caught_up), own, "its own offset");
    let start = Instant::now();
    let polled = behind.next(key, RUN, &seen, "&live=true").await;
    assert!(start.elapsed() > Duration::from_millis(800), "it waits");
    assert!(polled.is_bare(), "{}", polled.text);
    assert_eq!(offset(&polled), own, "its own offset");

    // A poll that begins while the node is behind, and ends when it is not.
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        set_metadata(&cluster.pool, RUN, 3).await;
        held.release();
    };
    let (next, ()) = tokio::join!(behind.next(key, RUN, &seen, "&live=true"), release);
    let next = if next.is_bare() { behind.next(key, RUN, &next, "&live=true").await } else { next };
    assert_eq!(version(&next), Some(3), "{}", next.text);
    assert!(offset(&next) > own);
    drop(ahead);
}

#[tokio::test]
async fn a_refetch_is_pinned_to_what_it_has_seen() {
    let Scene { cluster, key, ahead, behind, held, seen } = scene().await;
    // Another set of columns is another feed, so this handle is sent away.
    let gone = behind.next(key, RUN, &seen, "&skipColumns=payload").await;
    assert_eq!(gone.status, 409, "{}", gone.text);
    let again = format!("handle={}&offset=-1", gone.handle());
    let early = behind.get(key, RUN, &again).await;
    assert_eq!(early.status, 503, "rather than an older state: {}", early.text);
    // Another node that is not behind answers it.
    let elsewhere = ahead.get(key, RUN, &again).await;
    assert_eq!(version(&elsewhere), Some(2), "{}", elsewhere.text);
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        held.release();
    };
    let (late, ()) = tokio::join!(behind.get(key, RUN, &again), release);
    assert_eq!(version(&late), Some(2), "{}", late.text);
    assert!(offset(&late) >= offset(&seen), "{} and {}", offset(&late), offset(&seen));
    drop(cluster);
}

#[tokio::test]
async fn an_offset_beyond_the_servers_log_is_sent_away_and_the_refetch_answered() {
    let cluster = Cluster::start().await;
    let key = cluster.seeded.production.secret_key;
    let run = cluster.seeded.run;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=1s"]).await;
    let open = node.get(key, run, "offset=-1").await;
    let own = offset(&open);
    let beyond = Position::before(Lsn(own.lsn.0 + (1 << 30)));
    for live in ["", "&live=true"] {
        let start = Instant::now();
        let query = format!("handle={}&offset={beyond}{live}", open.handle());
        let gone = node.get(key, run, &query).await;
        assert_eq!(gone.status, 409, "{}", gone.text);
        let again = node.get(key, run, &format!("handle={}&offset=-1", gone.handle())).await;
        assert_eq!(again.status, 200, "{}", again.text);
        assert!(offset(&again) < beyond);
        assert!(start.elapsed() < Duration::from_millis(800), "nothing is waited for");
    }
}
