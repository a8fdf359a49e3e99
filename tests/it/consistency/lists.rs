//! Lists in the interleavings that chance hardly finds.

use std::time::Duration;

use super::held::Held;
use super::node::{Kind, Node, client, get_path, signal};
use super::standby::Cluster;
use super::subscriber::offset;
use crate::support::feed::{place, told};
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::{delete, insert_with, set_metadata, update};

pub const PAIR: &str = "/realtime/v1/runs?tags=a,b";
const FLUSH: &str =
    "BEGIN; SET LOCAL synchronous_commit = on; CREATE TABLE flushed (); DROP TABLE flushed; COMMIT";

pub async fn ask(node: &Node, cluster: &Cluster, more: &str) -> Shape {
    let key = cluster.seeded.production.secret_key;
    let answer = get_path(&client(), &node.url, key, &format!("{PAIR}&{more}")).await;
    answer.expect("an answer")
}

/// Opens the list by a query of its own.
pub async fn open(node: &Node, cluster: &Cluster) -> Shape {
    ask(node, cluster, "expired_handle=x&offset=-1").await
}

pub async fn next(node: &Node, cluster: &Cluster, from: &Shape, more: &str) -> Shape {
    ask(node, cluster, &format!("{}{more}", place(from))).await
}

/// Inserts a run of both tags, or of these.
pub async fn create(cluster: &Cluster, run: &str, tags: &str) {
    let tags = format!("'{{{tags}}}'");
    let environment = cluster.seeded.production.id;
    insert_with(&cluster.pool, environment, run, &[("runTags", &tags)]).await;
}

/// What an answer tells, sorted.
pub fn sorted(answer: &Shape) -> Vec<String> {
    let mut told = told(answer);
    told.sort();
    told
}

/// Follows until so many runs were told of; gives all that was told, and where it ended.
pub async fn follow(
    node: &Node,
    cluster: &Cluster,
    from: &Shape,
    runs: usize,
) -> (Vec<String>, Shape) {
    let (mut found, mut at) = (Vec::new(), from.clone());
    for _ in 0..20 {
        if found.len() >= runs {
            break;
        }
        at = next(node, cluster, &at, "&live=true").await;
        found.extend(told(&at));
    }
    found.sort();
    assert_eq!(found.len(), runs, "{found:?}");
    (found, at)
}

#[tokio::test]
async fn what_the_rows_show_is_not_sent_again_and_what_they_lack_is() {
    let cluster = Cluster::with(&[("synchronous_commit", "off"), ("autovacuum", "off")]).await;
    let pool = &cluster.pool;
    create(&cluster, "run_changed", "a,b").await;
    create(&cluster, "run_tagged", "a").await;
    create(&cluster, "run_ended", "a,b").await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=2s"]).await;
    // So that the window knows them.
    let before = open(&node, &cluster).await;
    for run in ["run_tagged", "run_changed", "run_ended"] {
        set_metadata(pool, run, 1).await;
    }
    follow(&node, &cluster, &before, 2).await;
    let wal_writer = cluster.process("walwriter").await;
    sqlx::raw_sql(FLUSH).execute(pool).await.unwrap();
    signal("STOP", wal_writer);
    set_metadata(pool, "run_changed", 2).await;
    update(pool, "run_tagged", r#""runTags" = '{a,b}'"#).await;
    create(&cluster, "run_new", "a,b").await;
    delete(pool, "run_ended").await;
    let shown = open(&node, &cluster).await;
    set_metadata(pool, "run_new", 3).await;
    let wide = open(&node, &cluster).await;
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        sqlx::raw_sql(FLUSH).execute(pool).await.unwrap();
    };
    let (news, nothing, ()) = tokio::join!(
        next(&node, &cluster, &shown, "&live=true"),
        next(&node, &cluster, &wide, "&live=true"),
        end
    );
    signal("CONT", wal_writer);
    assert_eq!(sorted(&shown), ["insert changed", "insert new", "insert tagged"], "queries lead");
    assert_eq!(told(&news), ["update new"], "{}", news.text);
    assert!(nothing.is_bare(), "{}", nothing.text);
    assert!(offset(&nothing) > offset(&wide), "the stream has passed it");
}

/// Makes a run enter by its creation and one by its tag, changes one and ends one, all of which hangs
/// between the log and its being seen. Gives the places before and after it.
async fn hang(cluster: &Cluster, node: &Node) -> (Shape, Shape, tokio::task::JoinHandle<()>) {
    let before = open(node, cluster).await;
    create(cluster, "run_changed", "a,b").await;
    create(cluster, "run_ended", "a,b").await;
    create(cluster, "run_tagged", "a").await;
    let (_, early) = follow(node, cluster, &before, 2).await;
    let hung = r#"BEGIN;
        UPDATE "TaskRun" SET metadata = '{"v":1}' WHERE id = 'changed';
        UPDATE "TaskRun" SET "runTags" = '{b,a}' WHERE id = 'tagged';
        DELETE FROM "TaskRun" WHERE id = 'ended';
        INSERT INTO "TaskRun" (id, "friendlyId", "runtimeEnvironmentId", "projectId", "taskIdentifier",
            payload, queue, "traceId", "spanId", "updatedAt", "runTags")
        VALUES ('new', 'run_new', 'env_prod', 'project_shop', 'hello', '{}', 'q', 't', 's', now(), '{a,b}');
        COMMIT"#;
    let hung = cluster.hang(hung).await;
    let (news, late) = follow(node, cluster, &early, 4).await;
    assert_eq!(news, ["delete ended", "insert new", "insert tagged", "update changed"]);
    (early, late, hung)
}

const AFTER: [&str; 3] = ["insert changed", "insert new", "insert tagged"];

#[tokio::test]
async fn what_no_query_shows_yet_comes_from_the_window_and_once_alone() {
    let cluster = Cluster::start().await;
    let node = Node::start(Kind::Here, &cluster.url, &["--hold=300ms"]).await;
    let (_, at, hung) = hang(&cluster, &node).await;
    let mut opened = Vec::new();
    for _ in 0..3 {
        let open = open(&node, &cluster).await;
        assert_eq!(sorted(&open), AFTER);
        let changed = open.rows().into_iter().find(|(_, row)| row["id"] == "changed");
        assert_eq!(changed.unwrap().1["metadata"], r#"{"v":1}"#);
        assert!(offset(&open) >= offset(&at));
        let nothing = next(&node, &cluster, &open, "&live=true").await;
        assert!(nothing.is_bare(), "{}", nothing.text);
        opened.push(open);
    }
    cluster.lift(hung).await;
    sqlx::raw_sql("VACUUM").execute(&cluster.pool).await.unwrap();
    opened.push(open(&node, &cluster).await);
    assert_eq!(sorted(&opened[3]), AFTER);
    for open in &opened {
        let nothing = next(&node, &cluster, open, "&live=true").await;
        assert!(nothing.is_bare(), "{}", nothing.text);
    }
}

#[tokio::test]
async fn what_no_query_shows_yet_is_waited_for_once_it_is_too_old_for_the_window() {
    let cluster = Cluster::start().await;
    let arguments = ["--hold=300ms", "--window=500ms"];
    let node = Node::start(Kind::Here, &cluster.url, &arguments).await;
    let (early, _, hung) = hang(&cluster, &node).await;
    eventually("it to leave the window", || async {
        next(&node, &cluster, &early, "").await.status == 409
    })
    .await;
    let lacking = open(&node, &cluster).await;
    assert_eq!(lacking.status, 503, "it lasts too long: {}", lacking.text);
    // Lists that it does not concern are served.
    let key = cluster.seeded.production.secret_key;
    let path = "/realtime/v1/runs?tags=user:1&offset=-1";
    let other = get_path(&client(), &node.url, key, path).await.unwrap();
    assert_eq!(other.status, 200, "{}", other.text);
    let lift = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.lift(hung).await;
    };
    let (late, ()) = tokio::join!(open(&node, &cluster), lift);
    assert_eq!(sorted(&late), AFTER, "{}", late.text);
}

#[tokio::test]
async fn a_client_that_is_ahead_is_never_given_an_older_state() {
    let cluster = Cluster::start().await;
    let arguments = |slot| [slot, "--hold=1s"];
    let ahead = Node::start(Kind::Here, &cluster.url, &arguments("--slot=ahead")).await;
    let behind = Node::start(Kind::Here, &cluster.url, &arguments("--slot=behind")).await;
    let start = open(&ahead, &cluster).await;
    create(&cluster, "run_1", "a,b").await;
    let (_, at) = follow(&ahead, &cluster, &start, 1).await;
    let (_, both) = follow(&behind, &cluster, &start, 1).await;
    let held = Held::hold(&cluster.pool, "behind").await.expect("a walsender");
    set_metadata(&cluster.pool, "run_1", 1).await;
    create(&cluster, "run_2", "a,b").await;
    let (news, seen) = follow(&ahead, &cluster, &at, 2).await;
    assert_eq!(news, ["insert 2", "update 1"]);
    // From node to node: nothing, and its own offset.
    for live in ["", "&live=true"] {
        let answer = next(&behind, &cluster, &seen, live).await;
        assert!(answer.is_bare(), "{}", answer.text);
        assert_eq!(offset(&answer), offset(&seen));
    }
    // From a place that both know, the one behind has nothing yet.
    let nothing = next(&behind, &cluster, &both, "").await;
    assert!(nothing.is_bare(), "{}", nothing.text);
    // A fresh snapshot holds more than the stream has brought here, which is not sent again.
    let fresh = open(&behind, &cluster).await;
    assert_eq!(sorted(&fresh), ["insert 1", "insert 2"]);
    // A refetch is pinned to what its client has seen.
    let key = cluster.seeded.production.secret_key;
    let path = format!("{PAIR}&skipColumns=payload&{}", place(&seen));
    let gone = get_path(&client(), &behind.url, key, &path).await.unwrap();
    assert_eq!(gone.status, 409, "{}", gone.text);
    let again = format!("handle={}&offset=-1", gone.handle());
    let early = ask(&behind, &cluster, &again).await;
    assert_eq!(early.status, 503, "rather than an older state: {}", early.text);
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        held.release();
    };
    let (late, ()) = tokio::join!(ask(&behind, &cluster, &again), release);
    assert_eq!(sorted(&late), ["insert 1", "insert 2"]);
    assert!(offset(&late) >= offset(&seen));
    for from in [&seen, &fresh, &late] {
        let answer = next(&behind, &cluster, from, "&live=true").await;
        assert!(answer.is_bare(), "{}", answer.text);
    }
    let (news, _) = follow(&behind, &cluster, &both, 2).await;
    assert_eq!(news, ["insert 2", "update 1"]);
}
