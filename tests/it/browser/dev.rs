//! The page as `runwire dev` tells its user to open it.

use std::collections::BTreeMap;

use runwire::dev::seed::SEEDED;
use serde_json::json;
use url::Url;

use super::FEEDS;
use crate::dev_command::{Dev, FREE};
use crate::support::browser::Tab;

#[tokio::test]
async fn the_url_that_dev_prints_shows_runs_in_every_section() {
    let dev = Dev::start(&[&FREE[..], &["--pace=100ms"]].concat()).await;
    let url = dev.text.lines().find(|line| line.starts_with("http://127.0.0.1:5173/?")).unwrap();
    let url = Url::parse(url).unwrap();
    let query: BTreeMap<_, _> = url.query_pairs().collect();
    let mut tab = Tab::open(&json!(query)).await;
    let progress = |tab: &Tab| tab.run("run", SEEDED.run).map(|run| run["progress"].clone());
    let shows =
        |tab: &Tab, feed: &str| tab.feed(feed).is_some_and(|feed| feed["runs"] != json!([]));
    tab.until("runs", |tab| FEEDS.iter().all(|feed| shows(tab, feed))).await;
    let before = progress(&tab);
    tab.until("progress", |tab| progress(tab) != before).await;
    let words = |tab: &Tab, feed: &str| {
        let parts = tab.parts(feed, &query["stream"]).iter();
        parts.filter_map(|part| part.as_str()).collect::<String>()
    };
    let said = |tab: &Tab, feed: &str| words(tab, feed).contains("A change commits in Postgres, ");
    tab.until("the answer", |tab| ["run", "stream"].iter().all(|feed| said(tab, feed))).await;
    tab.close().await;
    dev.end("INT").await;
}
