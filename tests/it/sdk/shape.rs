//! Version 3.2.0, whose Electric client has other names for everything: it holds a `Shape`, and at any
//! change shows all of its runs again.

use std::collections::HashMap;

use runwire::dev::run::{add_tag, complete, set_metadata, set_status};
use runwire::dev::{RunSpec, trigger_batch, trigger_run};
use serde_json::{Value, json};

use super::lists::{BOTH, Lists, TAG, tagged};
use super::{OUTPUT, large_payload};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, settings};
use runwire::server::Settings;

const CORE: &str = "core-3.2.0";

/// The last state of each run in each list.
struct Shapes {
    lists: Lists,
    seen: HashMap<(String, String), Value>,
}

impl Shapes {
    /// Waits until a list shows a run so. No run may go back in time meanwhile.
    async fn until(&mut self, feed: &str, run: &str, holds: impl Fn(&Value) -> bool) {
        let key = (feed.to_owned(), run.to_owned());
        while !self.seen.get(&key).is_some_and(&holds) {
            let (feed, run) = self.lists.next().await;
            let id = run["id"].as_str().unwrap().to_owned();
            let at = |run: &Value| run["updatedAt"].as_str().unwrap().to_owned();
            let now = at(&run);
            if let Some(before) = self.seen.insert((feed, id), run) {
                assert!(at(&before) <= now, "{before} was shown before {now}");
            }
        }
    }

    /// The same in all of these lists.
    async fn all(&mut self, feeds: &[&str], run: &str, holds: impl Fn(&Value) -> bool) {
        for feed in feeds {
            self.until(feed, run, &holds).await;
        }
    }
}

#[tokio::test]
async fn core_3_2_0_shows_the_runs_of_its_lists_as_they_change_also_by_another_gateway() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let first = tagged(pool, &environment, &[TAG]).await;
    let spec = RunSpec { tags: Some(vec![TAG.to_owned()]), ..RunSpec::new("child") };
    let batch = trigger_batch(pool, &environment, vec![spec; 2]).await.unwrap();
    let member = batch.runs[0].friendly_id.as_str();
    let settings = settings(&database.url, &[]);
    let gateway = Gateway::start_with(settings.clone()).await;
    gateway.ready().await;
    let feeds = json!([
        { "feed": "one", "tags": TAG },
        { "feed": "all", "tags": [TAG, BOTH] },
        { "feed": "batch", "batch": batch.friendly_id },
    ]);
    let target = gateway.target(environment.secret_key);
    let mut shapes =
        Shapes { lists: Lists::follow(CORE, &target, &feeds).await, seen: HashMap::new() };
    let is = |v: u64| move |run: &Value| run["metadata"]["v"] == v;

    shapes.until("one", &first, |run| run["payload"] == large_payload()).await;
    shapes.all(&["one", "batch"], member, |run| run["status"] == "QUEUED").await;
    set_status(pool, &first, "EXECUTING").await.unwrap();
    shapes.until("one", &first, |run| run["status"] == "EXECUTING").await;
    for v in 1..=5 {
        set_metadata(pool, member, &json!({ "v": v }).to_string()).await.unwrap();
        shapes.all(&["one", "batch"], member, is(v)).await;
    }
    add_tag(pool, &first, BOTH).await.unwrap();
    let whole =
        |run: &Value| run["payload"] == large_payload() && run["tags"] == json!([TAG, BOTH]);
    shapes.all(&["one", "all"], &first, whole).await;
    let later = trigger_run(pool, &environment, RunSpec::new("later")).await.unwrap().friendly_id;
    add_tag(pool, &later, TAG).await.unwrap();
    shapes.until("one", &later, |run| run["tags"] == json!([TAG])).await;
    assert!(shapes.lists.answers.iter().all(|(status, _)| *status == 200));

    // Its slot is temporary: the next one knows nothing of what was before.
    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    gateway.stop().await;
    set_metadata(pool, member, r#"{"v":6}"#).await.unwrap();
    let gateway = Gateway::start_with(Settings { listen, ..settings }).await;
    gateway.ready().await;
    shapes.all(&["one", "batch"], member, is(6)).await;
    complete(pool, &first, OUTPUT).await.unwrap();
    let ended = |run: &Value| run["status"] == "COMPLETED" && run["output"]["ok"] == true;
    shapes.all(&["one", "all"], &first, ended).await;
    let statuses = shapes.lists.answers.iter().map(|(status, _)| *status);
    assert_eq!(statuses.filter(|status| *status == 409).count(), 3, "one for each list");
    assert!(!shapes.seen.keys().any(|(feed, run)| feed == "all" && *run != first));
    gateway.stop().await;
}
