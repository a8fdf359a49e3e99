//! A stream on the page while a task writes it, across a crash of the gateway.

use std::time::{Duration, Instant};

use runwire::dev::run::set_status;
use serde_json::{Value, json};

use crate::support::browser::{End, Request, Tab};
use crate::support::cluster::fresh_database;
use crate::support::npm::{Client, Target};
use crate::support::program::Serving;
use crate::support::streams::{order, run, scratch, task};
use crate::support::token;

const KEY: &str = "ai";
/// The page's own, in `feeds.tsx`.
const THROTTLE: Duration = Duration::from_millis(100);
/// Of `useRealtimeRunWithStreams` and `useRealtimeStream`.
const SECTIONS: [&str; 2] = ["run", "stream"];

/// The parts `0..count`, as the page shows them.
fn parts(count: usize) -> Vec<Value> {
    (0..count).map(|n| json!(json!({ "n": n }).to_string())).collect()
}

/// Writes up to the part of this number, and waits until the page shows all from the first one on.
async fn grow(writer: &mut Client, tab: &mut Tab, from: usize, to: usize) {
    let values: Vec<Value> = (from..to).map(|n| json!({ "n": n })).collect();
    order(writer, json!({ "order": "write", "values": values })).await;
    let all = parts(to);
    let shown = |tab: &Tab| SECTIONS.iter().all(|feed| tab.parts(feed, KEY) == all);
    tab.until(&format!("the parts up to {to}"), shown).await;
}

#[tokio::test]
async fn both_stream_hooks_show_each_part_once_and_in_order_across_a_crash() {
    let (database, data) = (fresh_database().await, scratch());
    let environment = database.seeded.production;
    let directory = format!("--data-dir={}", data.0.display());
    let serving = Serving::start_ready(&database.url, &[&directory]).await;
    let url = serving.url.clone();
    let run = run(&database).await;
    let target = Target { base_url: url.clone(), access_token: environment.secret_key.to_owned() };
    let mut writer = task("sdk-4.8.3", &target, &run).await;
    order(&mut writer, json!({ "order": "open", "key": KEY })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }, { "n": 1 }] })).await;

    let access_token = token::public(environment, &["read:runs"]);
    let query = json!({
        "baseURL": url, "accessToken": access_token, "run": run, "stream": KEY,
    });
    let mut tab = Tab::open(&query).await;
    // What was there before, then each part as it is written. A page that may not see which version the
    // events are of would show whole batches.
    grow(&mut writer, &mut tab, 2, 2).await;
    for n in 2..6 {
        grow(&mut writer, &mut tab, n, n + 1).await;
    }
    let path = format!("/realtime/v1/streams/{run}/{KEY}");
    let leave = |request: &&Request| request.method == "OPTIONS" && request.path == path;
    let leave = tab.requests.iter().find(leave).expect("another origin's page asks first");
    assert!(matches!(leave.end, Some(End::Answered { status: 200, .. })), "{leave:?}");
    let reads = tab.polls(&path);
    assert_eq!(reads.len(), SECTIONS.len(), "one for each hook: {reads:?}");
    assert!(reads.iter().all(|read| read.end.is_none()), "they go on: {reads:?}");

    // Many parts in a row are shown at the hooks' pace.
    let states = |tab: &Tab| SECTIONS.map(|feed| tab.history_of_parts(feed, KEY).len());
    let (before, began) = (states(&tab), Instant::now());
    for n in 6..46 {
        order(&mut writer, json!({ "order": "write", "values": [{ "n": n }] })).await;
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    grow(&mut writer, &mut tab, 46, 47).await;
    let most = began.elapsed().as_millis() / THROTTLE.as_millis() + 2;
    for (feed, (before, after)) in SECTIONS.iter().zip(before.into_iter().zip(states(&tab))) {
        let drawn = (after - before) as u128;
        assert!(drawn > 1 && drawn <= most, "{feed}: {drawn} times in {:?}", began.elapsed());
    }

    serving.kill().await;
    let serving = Serving::start_at(&url, &database.url, &[&directory]).await;
    serving.ready().await;
    grow(&mut writer, &mut tab, 47, 50).await;
    // Each hook asked for what it lacked, and for nothing else.
    let resumed = tab.polls(&path).split_off(SECTIONS.len());
    let last = |read: &&&Request| read.last_event_id.as_deref() == Some("46");
    assert!(resumed.iter().all(|read| last(&read)), "{resumed:?}");
    let open = resumed.iter().filter(|read| read.end.is_none()).count();
    assert_eq!(open, SECTIONS.len(), "{resumed:?}");
    for feed in SECTIONS {
        let states = tab.history_of_parts(feed, KEY);
        let all = parts(50);
        assert!(states.iter().all(|state| all.starts_with(state)), "{feed}: nothing comes twice");
        assert!(states.is_sorted_by_key(|state| state.len()), "{feed}: nothing goes away");
        assert_eq!(tab.error(feed), None, "{feed}");
    }
    // The run's own feed goes on as well.
    set_status(&database.pool, &run, "EXECUTING").await.unwrap();
    let executes = |tab: &Tab| tab.run("run", &run).is_some_and(|run| run["status"] == "EXECUTING");
    tab.until("its start", executes).await;
    order(&mut writer, json!({ "order": "close" })).await;
    tab.close().await;
    serving.stop().await;
}
