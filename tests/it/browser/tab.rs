//! What happens to a tab: it is hidden and shown, the gateway changes behind it, it is loaded again.

use runwire::dev::run::{set_metadata, set_status};
use serde_json::json;

use super::{FEEDS, SCOPES, Stage, all_held, all_show, progress};
use crate::support::browser::{End, Tab};
use crate::support::cluster::fresh_database;
use crate::support::program::Serving;

/// The polls of a feed since the first so many: live or not, and the status.
fn kinds_after(tab: &Tab, stage: &Stage, feed: &str, before: usize) -> Vec<(bool, Option<u64>)> {
    tab.polls(&stage.path(feed)).iter().skip(before).map(|poll| poll.kind()).collect()
}

fn counts(tab: &Tab, stage: &Stage) -> [usize; 3] {
    FEEDS.map(|feed| tab.polls(&stage.path(feed)).len())
}

async fn opened(stage: &Stage, url: &str) -> Tab {
    let mut tab = stage.open(url, &SCOPES).await;
    tab.until("the runs", |tab| all_show(tab, &stage.run, "QUEUED", ())).await;
    tab.until("polls that are held", |tab| all_held(tab, stage)).await;
    tab
}

#[tokio::test]
async fn a_hidden_tab_asks_nothing_and_catches_up_once_when_it_is_shown() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let serving = Serving::start_ready(&database.url, &[]).await;
    // Triggered while the stream is read, so that a change need not bring the whole run.
    let stage = Stage::set(pool, database.seeded.production).await;
    let mut tab = opened(&stage, &serving.url).await;

    tab.hide().await;
    let aborted = |tab: &Tab| {
        let last = FEEDS.map(|feed| tab.polls(&stage.path(feed)).last().unwrap().end.clone());
        last.iter().all(|end| *end == Some(End::Aborted))
    };
    tab.until("aborted polls", aborted).await;
    let before = counts(&tab, &stage);
    set_status(pool, &stage.run, "EXECUTING").await.unwrap();
    set_metadata(pool, &stage.run, &progress(0.5)).await.unwrap();
    tab.show().await;
    tab.until("what it missed", |tab| all_show(tab, &stage.run, "EXECUTING", 0.5)).await;
    tab.until("polls that are held", |tab| all_held(tab, &stage)).await;
    for (feed, before) in FEEDS.into_iter().zip(before) {
        // One catch-up, and live again, where the stream may bring the second change after the first.
        let polls = tab.polls(&stage.path(feed)).split_off(before);
        let live: Vec<_> = polls.iter().map(|poll| poll.kind().0).collect();
        assert!(!live[0] && live[1..].iter().all(|live| *live), "{feed}: {live:?}");
        // No run but the one that changed, and of that no more than what changed, once.
        let answered = polls.iter().filter(|poll| poll.end.is_some());
        let rows: Vec<_> = answered.flat_map(|poll| poll.rows()).collect();
        assert!(rows.iter().all(|(operation, _)| operation == "update"), "{feed}: {rows:?}");
        let values = |column: &str| -> Vec<_> {
            rows.iter().filter_map(|(_, row)| row.get(column).cloned()).collect()
        };
        assert_eq!(values("status"), ["EXECUTING"], "{feed}: {rows:?}");
        assert_eq!(values("metadata"), [progress(0.5)], "{feed}: {rows:?}");
        assert_eq!(values("payload"), [json!(null); 0], "{feed}: {rows:?}");
    }

    // Nothing happens meanwhile.
    let seen = FEEDS.map(|feed| tab.history(feed, &stage.run).len());
    tab.hide().await;
    tab.until("aborted polls", aborted).await;
    let before = counts(&tab, &stage);
    tab.show().await;
    tab.until("polls that are held", |tab| all_held(tab, &stage)).await;
    for ((feed, before), seen) in FEEDS.into_iter().zip(before).zip(seen) {
        let kinds = kinds_after(&tab, &stage, feed, before);
        assert_eq!(kinds, [(false, Some(200)), (true, None)], "{feed}");
        assert_eq!(tab.polls(&stage.path(feed))[before].rows(), [], "{feed}");
        assert_eq!(tab.history(feed, &stage.run).len(), seen, "{feed}");
    }
    tab.close().await;
    serving.stop().await;
}

#[tokio::test]
async fn a_tab_refetches_once_what_a_new_gateway_does_not_know_and_again_when_it_is_reloaded() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let stage = Stage::set(pool, database.seeded.production).await;
    // Its slot is temporary: the next one knows nothing of what was before.
    let serving = Serving::start_ready(&database.url, &[]).await;
    let url = serving.url.clone();
    let mut tab = opened(&stage, &url).await;

    tab.hide().await;
    serving.kill().await;
    set_status(pool, &stage.run, "EXECUTING").await.unwrap();
    let serving = Serving::start_at(&url, &database.url, &[]).await;
    serving.ready().await;
    let before = counts(&tab, &stage);
    tab.show().await;
    tab.until("what it missed", |tab| all_show(tab, &stage.run, "EXECUTING", ())).await;
    tab.until("polls that are held", |tab| all_held(tab, &stage)).await;
    for (feed, before) in FEEDS.into_iter().zip(before) {
        let kinds = kinds_after(&tab, &stage, feed, before);
        let refetched = [(false, Some(409)), (false, Some(200)), (true, None)];
        assert_eq!(kinds, refetched, "{feed}");
        let refetch = &tab.polls(&stage.path(feed))[before + 1].query;
        assert_eq!(refetch["offset"], "-1", "{feed}");
        assert!(refetch["expired_handle"].is_string(), "{feed}: {refetch}");
    }

    let before = counts(&tab, &stage);
    tab.reload().await;
    tab.until("the runs", |tab| all_show(tab, &stage.run, "EXECUTING", ())).await;
    tab.until("polls that are held", |tab| all_held(tab, &stage)).await;
    set_metadata(pool, &stage.run, &progress(0.5)).await.unwrap();
    tab.until("the next change", |tab| all_show(tab, &stage.run, "EXECUTING", 0.5)).await;
    tab.until("polls that are held", |tab| all_held(tab, &stage)).await;
    for (feed, before) in FEEDS.into_iter().zip(before) {
        let kinds = kinds_after(&tab, &stage, feed, before);
        assert_eq!(kinds, [(false, Some(200)), (true, Some(200)), (true, None)], "{feed}");
        // It remembers across the load that the old handle is no good.
        let query = &tab.polls(&stage.path(feed))[before].query;
        assert!(query["expired_handle"].is_string(), "{feed}: {query}");
        assert_eq!(tab.error(feed), None, "{feed}");
    }
    tab.close().await;
    serving.stop().await;
}
