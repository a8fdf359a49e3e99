//! A slot that is created while a transaction hangs between its commit record and its being seen.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::node::{Kind, Node};
use super::standby::{Cluster, bump};
use super::subscriber::version;
use crate::support::gateway::eventually;
use crate::support::runs::{insert_run, set_metadata};

/// A session with a transaction that a new slot waits for.
async fn open_transaction(cluster: &Cluster) -> (PgConnection, String) {
    let mut session = PgConnection::connect(&cluster.url).await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut session).await.unwrap();
    let xid = sqlx::query_scalar("SELECT pg_current_xact_id()::text").fetch_one(&mut session).await;
    (session, xid.unwrap())
}

async fn waited_for(cluster: &Cluster, xid: &str) {
    eventually("the new slot to wait", || async {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND transactionid::text = $1)",
        )
        .bind(xid)
        .fetch_one(&cluster.pool)
        .await
        .unwrap()
    })
    .await;
}

#[tokio::test]
async fn its_old_state_is_never_served_as_the_last() {
    let cluster = Cluster::start().await;
    let environment = cluster.seeded.production;
    let key = environment.secret_key;
    let run = "run_1";
    insert_run(&cluster.pool, environment.id, run).await;
    set_metadata(&cluster.pool, run, 1).await;
    let elder = Node::start(Kind::Here, &cluster.url, &["--slot=elder", "--hold=1s"]).await;
    let held = elder.get(key, run, "offset=-1").await;

    // A slot waits twice for those that run: the transaction begins after the second look, so that it
    // belongs to the slot's past by the log, and commits before the slot is there.
    let (first, first_xid) = open_transaction(&cluster).await;
    let mut node = Node::unstarted(Kind::Here, &cluster.url, &["--slot=younger", "--hold=1s"]);
    node.start_again().await;
    waited_for(&cluster, &first_xid).await;
    let (second, second_xid) = open_transaction(&cluster).await;
    first.close().await.unwrap();
    waited_for(&cluster, &second_xid).await;
    let hung = cluster.hang(&bump(run)).await;
    second.close().await.unwrap();
    eventually("the slot", || async {
        let sql = "SELECT count(*) = 1 FROM pg_replication_slots
                   WHERE slot_name LIKE 'younger%' AND confirmed_flush_lsn IS NOT NULL AND active";
        sqlx::query_scalar(sql).fetch_one(&cluster.pool).await.unwrap()
    })
    .await;
    node.ready().await;
    assert_eq!(cluster.shown(run).await, 1, "it hangs");

    // One who opens anew, one who comes with an older node's handle, one who saw it there.
    let seen = elder.next(key, run, &held, "&live=true").await;
    assert_eq!(version(&seen), Some(2), "the older slot streams it: {}", seen.text);
    let open = node.get(key, run, "offset=-1").await;
    assert_eq!(open.status, 503, "the row lacks it and no stream brings it: {}", open.text);
    // Nor can the door know which keys it concerns.
    let turned_away = node.next(key, run, &held, "").await;
    assert_eq!(turned_away.status, 503, "{}", turned_away.text);
    let again = format!("handle={}&offset=-1", held.handle());
    let refused = node.get(key, run, &again).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    let other = node.get(key, cluster.seeded.run, "offset=-1").await;
    assert_eq!(other.status, 503, "it is not known which runs it concerns");

    let lift = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.lift(hung).await;
    };
    let (open, again, ()) =
        tokio::join!(node.get(key, run, "offset=-1"), node.get(key, run, &again), lift);
    assert_eq!(version(&open), Some(2), "{}", open.text);
    assert_eq!(version(&again), Some(2), "{}", again.text);
    let next = node.next(key, run, &seen, "").await;
    assert!(version(&next).is_none_or(|found| found == 2), "{}", next.text);
}
