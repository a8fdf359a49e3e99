//! A crash of Postgres after asynchronous commits: what they wrote is gone, and their transaction ids
//! and log positions are given out again. That they were shown is not promised to last, but what
//! comes after must arrive.

use std::time::Duration;

use super::node::{Kind, Node, signal};
use super::standby::Cluster;
use super::subscriber::version;
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::{insert_run, set_metadata, update};

const RUN: &str = "run_1";

/// Follows as a client does until it shows this version.
async fn until(node: &Node, key: &str, first: Shape, wanted: i64) {
    let mut answer = first;
    for _ in 0..8 {
        if version(&answer) == Some(wanted) {
            return;
        }
        answer = match answer.status.as_u16() {
            200 => node.next(key, RUN, &answer, "&live=true").await,
            409 => node.get(key, RUN, &format!("handle={}&offset=-1", answer.handle())).await,
            other => panic!("{other}: {}", answer.text),
        };
    }
    panic!("version {wanted} does not arrive");
}

#[tokio::test]
async fn what_comes_after_it_reaches_those_who_saw_what_it_took_back() {
    let off = [("synchronous_commit", "off"), ("autovacuum", "off")];
    let cluster = Cluster::with(&off).await;
    let environment = cluster.seeded.production;
    let key = environment.secret_key;
    insert_run(&cluster.pool, environment.id, RUN).await;
    set_metadata(&cluster.pool, RUN, 1).await;
    let arguments = ["--slot-kind=permanent", "--hold=2s"];
    let node = Node::start(Kind::Here, &cluster.url, &arguments).await;
    // Without the WAL writer nothing becomes durable but by somebody's commit that waits for it.
    let wal_writer = cluster.process("walwriter").await;
    signal("STOP", wal_writer);
    let flush = "SET synchronous_commit = on; CREATE TABLE flushed (); RESET synchronous_commit";
    sqlx::raw_sql(flush).execute(&cluster.pool).await.unwrap();
    set_metadata(&cluster.pool, RUN, 2).await;
    for number in 0..200 {
        let filling = format!("number = {number}, payload = repeat('x', 1000)");
        update(&cluster.pool, cluster.seeded.run, &filling).await;
    }
    let open = node.get(key, RUN, "offset=-1").await;
    assert_eq!(version(&open), Some(2), "a query shows it: {}", open.text);

    let parked = node.next(key, RUN, &open, "&live=true");
    let crash = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The server restarts all of itself then.
        signal("KILL", wal_writer);
        eventually("the stream to be back", || async {
            let sql = "SELECT active AND (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter') <> $1
                       FROM pg_replication_slots";
            let back = sqlx::query_scalar(sql).bind(wal_writer as i32).fetch_one(&cluster.pool).await;
            back.unwrap_or(false)
        })
        .await;
        assert_eq!(cluster.shown(RUN).await, 1, "the crash took it back");
        let set = r#"SET synchronous_commit = on; UPDATE "TaskRun" SET metadata = '{"v":7}' WHERE "friendlyId" = 'run_1'; RESET synchronous_commit"#;
        sqlx::raw_sql(set).execute(&cluster.pool).await.unwrap();
    };
    let (parked, ()) = tokio::join!(parked, crash);
    until(&node, key, parked, 7).await;
    // One who was away comes with what the first answer told it.
    until(&node, key, open, 7).await;
}
