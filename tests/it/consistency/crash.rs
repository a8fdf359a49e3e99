//! A crash of Postgres after asynchronous commits: what they wrote is gone, and their transaction ids
//! and log positions are given out again. That they were shown is not promised to last, but what
//! comes after must arrive.

use std::time::Duration;

use sqlx::AssertSqlSafe;

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

/// A gateway on a server that makes nothing durable by itself, after a flush of all that there was.
struct Scene {
    cluster: Cluster,
    key: &'static str,
    node: Node,
    wal_writer: u32,
}

impl Scene {
    async fn start(arguments: &[&str]) -> Scene {
        let off = [("synchronous_commit", "off"), ("autovacuum", "off")];
        let cluster = Cluster::with(&off).await;
        let environment = cluster.seeded.production;
        insert_run(&cluster.pool, environment.id, RUN).await;
        set_metadata(&cluster.pool, RUN, 1).await;
        let node = Node::start(Kind::Here, &cluster.url, arguments).await;
        // Without the WAL writer nothing becomes durable but by somebody's commit that waits for it.
        let wal_writer = cluster.process("walwriter").await;
        signal("STOP", wal_writer);
        let scene = Scene { cluster, key: environment.secret_key, node, wal_writer };
        let touch = format!("number = 1 WHERE \"friendlyId\" = '{}'", scene.cluster.seeded.run);
        scene.write_durably(&touch).await;
        scene
    }

    async fn write_durably(&self, set: &str) {
        let sql = format!(
            r#"BEGIN; SET LOCAL synchronous_commit = on; UPDATE "TaskRun" SET {set}; COMMIT"#
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.cluster.pool).await.unwrap();
    }

    /// Many transactions that a crash takes back, one of which makes the run's version 2.
    async fn write_in_vain(&self) {
        set_metadata(&self.cluster.pool, RUN, 2).await;
        for number in 0..200 {
            let filling = format!("number = {number}, payload = repeat('x', 1000)");
            update(&self.cluster.pool, self.cluster.seeded.run, &filling).await;
        }
    }

    /// Kills a process of the server, which restarts all of itself then.
    async fn crash(&self) {
        signal("KILL", self.wal_writer);
        eventually("the stream to be back", || async {
            let sql = "SELECT active AND (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter') <> $1
                       FROM pg_replication_slots";
            let former = self.wal_writer as i32;
            let back = sqlx::query_scalar(sql).bind(former).fetch_one(&self.cluster.pool).await;
            back.unwrap_or(false)
        })
        .await;
        assert_eq!(self.cluster.shown(RUN).await, 1, "the crash took it back");
    }
}

#[tokio::test]
async fn what_comes_after_it_reaches_those_who_saw_what_it_took_back() {
    let scene = Scene::start(&["--slot-kind=permanent", "--hold=2s"]).await;
    let Scene { node, key, .. } = &scene;
    scene.write_in_vain().await;
    let open = node.get(key, RUN, "offset=-1").await;
    assert_eq!(version(&open), Some(2), "a query shows it: {}", open.text);
    let parked = node.next(key, RUN, &open, "&live=true");
    let crash = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.crash().await;
        scene.write_durably(r#"metadata = '{"v":7}' WHERE "friendlyId" = 'run_1'"#).await;
    };
    let (parked, ()) = tokio::join!(parked, crash);
    until(node, key, parked, 7).await;
    // One who was away comes with what the first answer told it.
    until(node, key, open, 7).await;
}

#[tokio::test]
async fn runs_can_be_opened_after_it_although_transaction_ids_went_back() {
    let scene = Scene::start(&["--slot-kind=permanent", "--window=2s"]).await;
    let Scene { node, key, .. } = &scene;
    scene.write_in_vain().await;
    // Time for a look at the server that sees those ids, and for a change to be forgotten after it.
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    scene.crash().await;
    let open = node.get(key, RUN, "offset=-1").await;
    assert_eq!(open.status, 200, "{}", open.text);
    assert_eq!(version(&open), Some(1), "{}", open.text);
}
