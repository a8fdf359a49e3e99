//! Lists that are opened again, gone on with after a restart, and what that asks of the database.

use std::time::Duration;

use super::lists::{PAIR, ask, create, follow, next, open, sorted};
use super::node::{Kind, Node, client, get_path};
use super::standby::Cluster;
use super::subscriber::offset;
use crate::support::feed::{place, told};
use crate::support::runs::{insert_with, set_metadata, update};

#[tokio::test]
async fn after_a_restart_the_same_offset_gives_what_came_after_it() {
    for killed in [false, true] {
        let cluster = Cluster::start().await;
        let pool = &cluster.pool;
        let kind = if killed { Kind::Binary } else { Kind::Here };
        let arguments = ["--hold=1s", "--slot-kind=permanent"];
        create(&cluster, "run_old", "a,b").await;
        let mut node = Node::start(kind, &cluster.url, &arguments).await;
        let start = open(&node, &cluster).await;
        create(&cluster, "run_1", "a,b").await;
        create(&cluster, "run_2", "a").await;
        let (_, at) = follow(&node, &cluster, &start, 1).await;
        if killed {
            node.kill().await
        } else {
            node.stop().await
        }
        set_metadata(pool, "run_1", 1).await;
        update(pool, "run_2", r#""runTags" = '{a,b}'"#).await;
        set_metadata(pool, "run_old", 1).await;
        create(&cluster, "run_3", "a,b").await;
        node.start_again().await;
        node.ready().await;
        for _ in 0..2 {
            let (all, _) = follow(&node, &cluster, &start, 4).await;
            assert_eq!(all[..3], ["insert 1", "insert 2", "insert 3"]);
            assert!(all[3].ends_with(" old"));
            let (news, end) = follow(&node, &cluster, &at, 4).await;
            assert!(news.contains(&"insert 2".to_owned()), "{news:?}");
            assert!(news.contains(&"insert 3".to_owned()), "{news:?}");
            assert_eq!(sorted(&open(&node, &cluster).await).len(), 4);
            let nothing = next(&node, &cluster, &end, "").await;
            assert!(nothing.is_bare(), "{}", nothing.text);
        }
    }
}

#[tokio::test]
async fn an_opening_answer_is_one_query_and_going_on_from_it_none() {
    let cluster = Cluster::start().await;
    let node = Node::start(Kind::Binary, &cluster.url, &["--hold=100ms"]).await;
    let queries = || node.metric("runwire_snapshot_queries_total");
    create(&cluster, "run_1", "a,b").await;
    let none = queries().await;
    let start = open(&node, &cluster).await;
    let opened = queries().await;
    assert_eq!(opened, none + 1.0);
    let mut at = start.clone();
    for version in 2..10 {
        create(&cluster, &format!("run_{version}"), "b,a").await;
        set_metadata(&cluster.pool, &format!("run_{version}"), version).await;
        at = next(&node, &cluster, &at, "&live=true").await;
        let all = next(&node, &cluster, &start, "").await;
        assert_eq!(all.status, 200);
        at = next(&node, &cluster, &at, "").await;
    }
    assert_eq!(queries().await, opened);
}

#[tokio::test]
async fn a_refetch_is_not_served_what_was_read_for_others_before_it() {
    let cluster = Cluster::start().await;
    let pool = &cluster.pool;
    let environment = cluster.seeded.production;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=5s"]).await;
    create(&cluster, "run_1", "a,b").await;
    set_metadata(pool, "run_1", 0).await;
    let early = open(&node, &cluster).await;
    // So large that an opening answer is under way for a while.
    let large = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 6000) i)";
    for i in 0..20 {
        let columns = [("runTags", "'{a,b}'"), ("payload", large)];
        insert_with(pool, environment.id, &format!("run_large{i}"), &columns).await;
    }
    let mut at = early;
    for _ in 0..100 {
        let answer = next(&node, &cluster, &at, "").await;
        let done = told(&answer).contains(&"insert large19".to_owned());
        at = answer;
        if done {
            break;
        }
    }
    let key = environment.secret_key;
    for version in 1..=2 {
        let change_and_refetch = async {
            // Time for the other's query.
            tokio::time::sleep(Duration::from_millis(100 * version as u64)).await;
            set_metadata(pool, "run_1", version).await;
            let seen = next(&node, &cluster, &at, "&live=true").await;
            assert_eq!(told(&seen), ["update 1"]);
            // Another set of columns is another feed, so this handle is sent away.
            let path = format!("{PAIR}&skipColumns=payload&{}", place(&seen));
            let gone = get_path(&client(), &node.url, key, &path).await.unwrap();
            assert_eq!(gone.status, 409, "{}", gone.text);
            let again = format!("handle={}&offset=-1", gone.handle());
            let mut part = ask(&node, &cluster, &again).await;
            let mut rows = part.rows();
            while !part.headers.contains_key("electric-up-to-date") {
                part = next(&node, &cluster, &part, "").await;
                rows.extend(part.rows());
            }
            let row = rows.into_iter().find(|(_, row)| row["id"] == "1").expect("the run").1;
            assert_eq!(row["metadata"], format!(r#"{{"v":{version}}}"#));
            assert!(offset(&part) >= offset(&seen), "{} {}", part.offset(), seen.offset());
            seen
        };
        let (other, seen) = tokio::join!(open(&node, &cluster), change_and_refetch);
        assert_eq!(other.status, 200);
        at = seen;
    }
}
