//! One environment's storm, and another's single poll.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{refused, until_used};
use crate::consistency::node::{Kind, Node, client, get};
use crate::network::{address, live_poll, opened, series};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Shape, eventually};
use crate::support::runs::{insert_run, set_metadata};

#[tokio::test]
async fn a_storm_of_one_environment_stops_neither_the_opening_nor_the_changes_of_another() {
    let database = fresh_database().await;
    let seeded = &database.seeded;
    let (stormy, calm) = (seeded.production, seeded.rival);
    let storm_limit = format!("--live-environments={}=50", stormy.id);
    let arguments = ["--hold=60s", &storm_limit];
    let node = Node::start(Kind::Binary, &database.url, &arguments).await;
    let (run, open) = opened(&node, &database, 1).await.remove(0);
    let to = address(&node);

    // All that it may have live, and many who open feeds and try for more, for as long as this takes.
    let mut storm = JoinSet::new();
    for _ in 0..50 {
        let text = live_poll(to, stormy, &run, &open);
        storm.spawn(async move {
            let mut stream = TcpStream::connect(to).await.expect("connect");
            stream.write_all(text.as_bytes()).await.expect("ask");
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
    until_used(&node, "live", 50.0).await;
    for worker in 0..20 {
        let (url, run, path) = (node.url.clone(), run.clone(), open.next(&run));
        storm.spawn(async move {
            let client = client();
            let query = format!("{}&live=true", path.split_once('?').expect("a query").1);
            for i in 0.. {
                let other = format!("run_none_{worker}_{i}");
                let _ = tokio::join!(
                    get(&client, &url, stormy.secret_key, &run, &query),
                    get(&client, &url, stormy.secret_key, &other, "offset=-1"),
                    get(&client, &url, stormy.secret_key, &run, "expired_handle=x&offset=-1"),
                );
            }
        });
    }
    eventually("the storm to be refused", || async { refused(&node, "live").await > 50.0 }).await;

    let key = calm.secret_key;
    for i in 0..10 {
        let run = format!("run_calm_{i}");
        insert_run(&database.pool, calm.id, &run).await;
        let start = Instant::now();
        let open = node.get(key, &run, "offset=-1").await;
        assert_eq!(open.status, 200, "{}", open.text);
        let poll = node.next(key, &run, &open, "&live=true");
        let change = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            set_metadata(&database.pool, &run, i).await;
        };
        let (answer, ()): (Shape, ()) = tokio::join!(poll, change);
        assert_eq!(answer.row().1["metadata"], format!(r#"{{"v":{i}}}"#));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    storm.shutdown().await;
    until_used(&node, "live", 0.0).await;
}

/// Asking for what never was is waited for too, in places that are few.
#[tokio::test]
async fn who_asks_for_a_thousand_runs_that_never_were_leaves_others_the_time_for_theirs() {
    const WAITING: &str = r#"limit="just_created""#;
    let database = fresh_database().await;
    let seeded = &database.seeded;
    let (stormy, calm) = (seeded.production, seeded.rival);
    let node = Node::start(Kind::Binary, &database.url, &[]).await;
    let mut storm = JoinSet::new();
    for worker in 0..1_200 {
        let url = node.url.clone();
        storm.spawn(async move {
            let client = client();
            for i in 0.. {
                let run = format!("run_none_{worker}_{i}");
                let _ = get(&client, &url, stormy.secret_key, &run, "offset=-1").await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let used = || series(&node, "runwire_limit_used", WAITING);
    let refused = || series(&node, "runwire_limit_refused_total", WAITING);
    eventually("all of its places to be taken", || async {
        used().await > 700.0 && refused().await > 0.0
    })
    .await;
    for i in 0..3 {
        let run = format!("run_calm_{i}");
        let asked = node.get(calm.secret_key, &run, "offset=-1");
        let created = async {
            // As when the trigger call answers first.
            tokio::time::sleep(Duration::from_millis(300)).await;
            insert_run(&database.pool, calm.id, &run).await;
        };
        let (answer, ()) = tokio::join!(asked, created);
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    storm.shutdown().await;
}
