//! A transaction that the stream shows before any query does.

use std::time::Duration;

use super::node::{Kind, Node};
use super::standby::{Cluster, bump, enlarge};
use super::subscriber::{offset, version};
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::{insert_run, set_metadata, update};

/// Small enough to be sent whole with each change, so that it is answered from memory.
const SMALL: &str = "run_small";
/// With an output that the stream does not send, so that it is answered by a query and the window.
const LARGE: &str = "run_large";

async fn cluster() -> (Cluster, &'static str) {
    let cluster = Cluster::start().await;
    let environment = cluster.seeded.production;
    for run in [SMALL, LARGE] {
        insert_run(&cluster.pool, environment.id, run).await;
        set_metadata(&cluster.pool, run, 1).await;
    }
    enlarge(&cluster.pool, LARGE).await;
    (cluster, environment.secret_key)
}

fn bump_both() -> String {
    format!("BEGIN; {}; {}; COMMIT", bump(SMALL), bump(LARGE))
}

/// Follows a run until it shows this version.
async fn until(node: &Node, key: &str, run: &str, from: &Shape, wanted: i64) -> Shape {
    let mut last = from.clone();
    for _ in 0..20 {
        let next = node.next(key, run, &last, "&live=true").await;
        if version(&next) == Some(wanted) {
            return next;
        }
        assert_eq!(next.status, 200, "{}", next.text);
        last = next;
    }
    panic!("version {wanted} of {run} does not arrive");
}

#[tokio::test]
async fn a_new_subscriber_gets_it_from_the_window() {
    let (cluster, key) = cluster().await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=2s"]).await;
    let early = node.get(key, LARGE, "offset=-1").await;
    let hung = cluster.hang(&bump_both()).await;
    let seen = until(&node, key, LARGE, &early, 2).await;
    for run in [SMALL, LARGE] {
        assert_eq!(cluster.shown(run).await, 1, "it hangs");
        for _ in 0..3 {
            let open = node.get(key, run, "offset=-1").await;
            assert_eq!(version(&open), Some(2), "{run}: {}", open.text);
            assert!(offset(&open) >= offset(&seen));
            let next = node.next(key, run, &open, "").await;
            assert!(next.is_bare(), "it is not sent again: {}", next.text);
        }
    }
    cluster.lift(hung).await;
    // What a query sees from now on is not sent again either.
    sqlx::raw_sql("VACUUM").execute(&cluster.pool).await.unwrap();
    for run in [SMALL, LARGE] {
        let open = node.get(key, run, "offset=-1").await;
        assert_eq!(version(&open), Some(2));
        let (next, ()) = tokio::join!(
            node.next(key, run, &open, "&live=true"),
            set_metadata(&cluster.pool, run, 3)
        );
        assert_eq!(version(&next), Some(3));
    }
}

/// Opens both runs while the transaction hangs and is no longer in the window, and after it.
async fn never_shows_what_it_lacks(cluster: &Cluster, node: &Node, key: &str, hung: Hung) {
    assert_eq!(cluster.shown(LARGE).await, 1, "it hangs");
    let open = |run| node.get(key, run, "offset=-1");
    let lift = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.lift(hung).await;
    };
    let (small, large, ()) = tokio::join!(open(SMALL), open(LARGE), lift);
    for (run, answer) in [(SMALL, small), (LARGE, large)] {
        assert_eq!(answer.status, 200, "{run}: {}", answer.text);
        assert_eq!(version(&answer), Some(2), "{run}: {}", answer.text);
    }
}

type Hung = tokio::task::JoinHandle<()>;

#[tokio::test]
async fn a_new_subscriber_waits_for_it_once_it_is_too_old_for_the_window() {
    let (cluster, key) = cluster().await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=2s", "--window=300ms"]).await;
    let early = node.get(key, LARGE, "offset=-1").await;
    let hung = cluster.hang(&bump_both()).await;
    let seen = until(&node, key, LARGE, &early, 2).await;
    eventually("it to leave the window", || async {
        node.next(key, LARGE, &early, "").await.status == 409
    })
    .await;
    // The same for one who has seen it, loses the window and is told to start again.
    let gone = node.next(key, LARGE, &early, "").await;
    let again = node.get(key, LARGE, &format!("handle={}&offset=-1", gone.handle())).await;
    assert_eq!(again.status, 503, "it lasts too long: {}", again.text);
    // Other runs are not concerned.
    let other = node.get(key, cluster.seeded.run, "offset=-1").await;
    assert_eq!(other.status, 200);
    never_shows_what_it_lacks(&cluster, &node, key, hung).await;
    let next = node.next(key, LARGE, &seen, "").await;
    assert!(version(&next).is_none_or(|found| found == 2), "{}", next.text);
}

#[tokio::test]
async fn a_new_subscriber_waits_for_it_once_the_window_has_no_room_for_it() {
    let (cluster, key) = cluster().await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=2s", "--window-bytes=40KB"]).await;
    let early = node.get(key, LARGE, "offset=-1").await;
    let hung = cluster.hang(&bump_both()).await;
    until(&node, key, LARGE, &early, 2).await;
    let other = cluster.seeded.run;
    eventually("it to leave the window", || async {
        let filling = "payload = repeat('x', 1000) || random()::text";
        update(&cluster.pool, other, filling).await;
        update(&cluster.pool, cluster.seeded.completed_run, "number = number + 1").await;
        node.next(key, LARGE, &early, "").await.status == 409
    })
    .await;
    never_shows_what_it_lacks(&cluster, &node, key, hung).await;
}

#[tokio::test]
async fn it_is_not_lost_by_a_restart() {
    let (cluster, key) = cluster().await;
    let arguments = ["--hold=2s", "--slot-kind=permanent"];
    let node = Node::unstarted(Kind::Here, &cluster.url, &arguments);
    let mut node = node.trailing(Duration::ZERO);
    node.start_again().await;
    node.ready().await;
    let early = node.get(key, LARGE, "offset=-1").await;
    let hung = cluster.hang(&bump_both()).await;
    let seen = until(&node, key, LARGE, &early, 2).await;
    // Time for the next confirmations, of which none may cover it.
    for number in 0..6 {
        update(&cluster.pool, cluster.seeded.run, &format!("number = {number}")).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    node.stop().await;
    node.start_again().await;
    node.ready().await;
    for run in [SMALL, LARGE] {
        assert_eq!(cluster.shown(run).await, 1, "it hangs");
        let open = node.get(key, run, "offset=-1").await;
        assert_eq!(version(&open), Some(2), "{run}: {}", open.text);
    }
    let next = node.next(key, LARGE, &seen, "").await;
    assert_ne!(version(&next), Some(1), "{}", next.text);
    cluster.lift(hung).await;
    // Now it may be forgotten.
    eventually("the slot to go on", || async {
        update(&cluster.pool, cluster.seeded.run, "number = number + 1").await;
        let sql = "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots
                   WHERE slot_name = 'runwire'";
        let position = offset(&seen).lsn.to_string();
        let confirmed: bool =
            sqlx::query_scalar(sql).bind(position).fetch_one(&cluster.pool).await.unwrap();
        confirmed
    })
    .await;
}
