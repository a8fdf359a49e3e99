//! A transaction that queries show before the stream does: its commit is not durable yet.

use super::node::{Kind, Node, signal};
use super::standby::{Cluster, enlarge};
use super::subscriber::{offset, version};
use crate::support::runs::{insert_run, set_metadata};

const RUN: &str = "run_1";

#[tokio::test]
async fn what_the_row_shows_is_not_sent_again_and_what_it_lacks_is() {
    let cluster = Cluster::with(&[("synchronous_commit", "off"), ("autovacuum", "off")]).await;
    let environment = cluster.seeded.production;
    let (pool, key) = (&cluster.pool, environment.secret_key);
    insert_run(pool, environment.id, RUN).await;
    // So that it is answered by a query.
    enlarge(pool, RUN).await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=2s"]).await;
    let wal_writer = cluster.process("walwriter").await;
    let flush = "BEGIN; SET LOCAL synchronous_commit = on; CREATE TABLE flushed (); DROP TABLE flushed; COMMIT";
    sqlx::raw_sql(flush).execute(pool).await.unwrap();
    signal("STOP", wal_writer);
    for version in 1..=3 {
        set_metadata(pool, RUN, version).await;
    }
    let open = node.get(key, RUN, "offset=-1").await;
    set_metadata(pool, RUN, 4).await;
    let wide = node.get(key, RUN, "offset=-1").await;
    let (shown, all) = (version(&open), version(&wide));
    // One whose row holds all of it, and one whose row lacks the last.
    let end = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        sqlx::raw_sql(flush).execute(pool).await.unwrap();
    };
    let (news, nothing, ()) = tokio::join!(
        node.next(key, RUN, &open, "&live=true"),
        node.next(key, RUN, &wide, "&live=true"),
        end
    );
    signal("CONT", wal_writer);
    assert_eq!((shown, all), (Some(3), Some(4)), "queries are ahead of the stream");
    assert_eq!(version(&news), Some(4), "{}", news.text);
    assert!(nothing.is_bare(), "{}", nothing.text);
    assert!(offset(&nothing) > offset(&wide), "the stream has passed it");
}
