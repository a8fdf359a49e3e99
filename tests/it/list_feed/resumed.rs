//! Going on from an offset: the same question gets the same answer, and a quiet feed stays good.

use std::time::{Duration, Instant};

use super::{RUNS, tagged};
use crate::support::cluster::fresh_database;
use crate::support::feed::{Feed, assert_complete, members, place, told};
use crate::support::gateway::{Gateway, eventually};
use crate::support::runs::{delete, set_metadata, update};

#[tokio::test]
async fn the_same_offset_gives_the_same_news_as_often_as_it_is_asked() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_old", &["a"]).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
    let open = feed.open().await;
    tagged(pool, environment.id, "run_new", &["a"]).await;
    tagged(pool, environment.id, "run_gone", &["a"]).await;
    for version in 1..=3 {
        set_metadata(pool, "run_old", version).await;
        set_metadata(pool, "run_new", version).await;
    }
    delete(pool, "run_gone").await;
    tagged(pool, environment.id, "run_last", &["a"]).await;
    eventually("the stream to have brought all", || async {
        told(&feed.catch_up(&open).await).contains(&"insert last".to_owned())
    })
    .await;
    let first = feed.catch_up(&open).await;
    assert_complete(&first, false);
    for _ in 0..3 {
        let again = feed.catch_up(&open).await;
        assert_eq!(again.text, first.text);
        let live = feed.live(&open).await;
        assert_complete(&live, true);
        assert_eq!(live.text, first.text);
    }
    // Also after it was answered once and more has come; and from there it is nothing.
    let next = feed.catch_up(&first).await;
    assert!(next.is_bare(), "{}", next.text);
    set_metadata(pool, "run_last", 1).await;
    let live = feed.live(&first).await;
    assert_eq!(told(&live), ["update last"]);
    assert_eq!(feed.live(&first).await.text, live.text);
    gateway.stop().await;
}

#[tokio::test]
async fn a_poll_without_news_is_held_and_its_offset_does_not_fall_behind() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_quiet", &["quiet"]).await;
    tagged(pool, environment.id, "run_busy", &["busy", "quiet2"]).await;
    let arguments = ["--hold=600ms", "--window=200ms"];
    let gateway = Gateway::start(&database.url, &arguments).await;
    for query in ["?tags=quiet", "?tags=quiet,quiet2", "?tags=nobody", "?tags=busy,quiet"] {
        let feed = Feed::new(&gateway, &format!("{RUNS}{query}"), environment.secret_key);
        let mut at = feed.open().await;
        let start = at.offset().to_owned();
        for round in 0..2 {
            let busy = async {
                // So that the window has forgotten where the poll began when it ends.
                for version in 0..10 {
                    set_metadata(pool, "run_busy", 100 * round + version).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let began = Instant::now();
            let held = async {
                let answer = feed.live(&at).await;
                (answer, began.elapsed())
            };
            let ((answer, held), ()) = tokio::join!(held, busy);
            assert_complete(&answer, true);
            assert!(answer.is_bare(), "{query}: {}", answer.text);
            assert!(held >= Duration::from_millis(500), "{query} was held {held:?}");
            at = answer;
        }
        assert_ne!(at.offset(), start);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_the_window_does_not_hold_gets_one_409_whose_handle_works() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    tagged(pool, environment.id, "run_1", &["a"]).await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = Feed::new(&gateway, &format!("{RUNS}?tags=a"), environment.secret_key);
    let open = feed.open().await;
    let foreign =
        ["runs_1795261058668_115041_0a1b2c3d", "3833821-1721812114261", "%00", open.handle()];
    for handle in foreign {
        for offset in ["5_0", "1795261058668_115041", "garbage", "99999999999999999_0", "0_0"] {
            for live in ["", "&live=true"] {
                let gone = feed.ask(&format!("handle={handle}&offset={offset}{live}")).await;
                assert_eq!(gone.status, 409, "{handle} {offset}: {}", gone.text);
                assert_eq!(gone.text, r#"[{"headers":{"control":"must-refetch"}}]"#);
                assert_eq!(gone.header("content-type"), "application/json");
                assert_eq!(gone.header("cache-control"), "no-store");
                assert_eq!(gone.header("access-control-expose-headers"), "*");
                assert_eq!(gone.header("access-control-allow-origin"), "*");
                assert_eq!(gone.handle(), gone.header("electric-shape-id"));
                assert_eq!(gone.handle(), gone.header("x-electric-shape-id"));
                assert_ne!(gone.handle(), handle);
                let fresh = feed.reopen(&gone).await;
                assert_complete(&fresh, false);
                assert_eq!(members(&fresh), ["1"]);
                assert_ne!(fresh.handle(), gone.handle(), "no handle is issued twice");
            }
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn going_on_and_waiting_ask_the_database_for_nothing() {
    let database = fresh_database().await;
    let (pool, environment) = (&database.pool, database.seeded.production);
    let gateway = Gateway::start(&database.url, &[]).await;
    let paths = ["", "?tags=a", "?tags=a,b", "?tags=a&skipColumns=payload"];
    let mut opened = Vec::new();
    for path in paths {
        let feed = Feed::new(&gateway, &format!("{RUNS}{path}"), environment.secret_key);
        let open = feed.open().await;
        opened.push((feed, open));
    }
    tagged(pool, environment.id, "run_1", &["a", "b"]).await;
    tagged(pool, environment.id, "run_2", &["a"]).await;
    update(pool, "run_2", r#""runTags" = '{a,b}'"#).await;
    tagged(pool, environment.id, "run_end", &["a", "b"]).await;
    let (first, open) = &opened[0];
    eventually("the stream to have brought all", || async {
        told(&first.catch_up(open).await).contains(&"insert end".to_owned())
    })
    .await;
    // Nobody can read the table from here on.
    let mut locked = pool.begin().await.unwrap();
    let lock = r#"LOCK TABLE "TaskRun" IN ACCESS EXCLUSIVE MODE"#;
    sqlx::query(lock).execute(&mut *locked).await.unwrap();
    for (feed, open) in &opened {
        let answered = async {
            let mut news = told(&feed.catch_up(open).await);
            news.sort();
            assert_eq!(news, ["insert 1", "insert 2", "insert end"], "{}", place(open));
            let at = feed.live(open).await;
            let bare = feed.catch_up(&at).await;
            assert!(bare.is_bare(), "{}", bare.text);
        };
        tokio::time::timeout(Duration::from_secs(5), answered).await.expect("no query");
    }
    locked.rollback().await.unwrap();
    gateway.stop().await;
}
