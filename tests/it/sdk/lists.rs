//! `runs.subscribeToRunsWithTag` and `runs.subscribeToBatch` of the real SDKs: who is in a list, and
//! what of it is shown.

use runwire::dev::run::{add_tag, built_in_error, complete, fail, set_metadata, set_status};
use runwire::dev::{Environment, RunSpec, trigger_batch, trigger_run};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{OUTPUT, SOON, large_payload, shown};
use crate::support::cluster::fresh_database;
use crate::support::gateway::Gateway;
use crate::support::npm::{Client, Target, public_token};
use crate::support::runs::update;

/// The tag that the lists ask for, and one that some of them ask for as well.
pub const TAG: &str = "paced";
pub const BOTH: &str = "both: ü 'n' all";

/// Lists that one client follows.
pub struct Lists {
    client: Client,
    sdk: String,
    /// Status and query of each answer so far.
    pub answers: Vec<(u64, Value)>,
}

impl Lists {
    pub async fn follow(sdk: &str, target: &Target, feeds: &Value) -> Lists {
        let client = Client::subscribe_lists(sdk, target, feeds).await;
        Lists { client, sdk: sdk.to_owned(), answers: Vec::new() }
    }

    /// The next run that is shown, and by which list.
    pub async fn next(&mut self) -> (String, Value) {
        loop {
            let said = self.client.next(SOON).await.expect("the client goes on");
            match said["type"].as_str() {
                Some("run") => {
                    return (said["feed"].as_str().unwrap().to_owned(), said["run"].clone());
                }
                Some("response") => {
                    let status = said["status"].as_u64().unwrap();
                    self.answers.push((status, said["query"].clone()));
                }
                _ => panic!("{}: {said}", self.sdk),
            }
        }
    }

    /// What comes next are these runs, each in its list and once, in any order. Gives them in this one.
    pub async fn show<const N: usize>(&mut self, expected: [(&str, &str); N]) -> [Value; N] {
        let mut found = [const { None }; N];
        for _ in 0..N {
            let (feed, run) = self.next().await;
            let at = expected.iter().position(|(list, id)| feed == *list && run["id"] == *id);
            let Some(at) = at else { panic!("{}: {feed} shows {run}", self.sdk) };
            let before = found[at].replace(run);
            assert!(before.is_none(), "{}: {feed} shows a run twice: {found:?}", self.sdk);
        }
        found.map(|run| run.expect("as many as expected, and none twice"))
    }
}

/// A run with these tags.
pub async fn tagged(pool: &PgPool, environment: &Environment, tags: &[&str]) -> String {
    let tags = Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
    let spec = RunSpec { tags, payload: large_payload().to_string(), ..RunSpec::new("hello") };
    trigger_run(pool, environment, spec).await.unwrap().friendly_id
}

/// Metadata as it is stored and as it is shown.
pub fn metadata(v: u64) -> (String, Value) {
    let value = json!({ "v": v });
    (value.to_string(), value)
}

/// Every change is waited for in every list that it belongs to: one that is left out, doubled, out of
/// order or in a list that it does not belong to is not what comes next.
async fn paced(sdk: &str) {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let first = tagged(pool, &environment, &[TAG]).await;
    let second = tagged(pool, &environment, &[TAG, BOTH]).await;
    let wrong = tagged(pool, &environment, &[BOTH]).await;
    let aged = async |age: &str| {
        let run = tagged(pool, &environment, &[TAG, BOTH]).await;
        update(pool, &run, &format!(r#""createdAt" = "createdAt" - interval '{age}'"#)).await;
        run
    };
    let (earlier, long_ago) = (aged("2 hours").await, aged("2 days").await);
    let batch = vec![RunSpec::new("child"), RunSpec::new("child")];
    let batch = trigger_batch(pool, &environment, batch).await.unwrap();
    let member = |n: usize| batch.runs[n].friendly_id.as_str();

    let gateway = Gateway::start(&database.url, &[]).await;
    let scopes = format!("read:tags:{TAG},read:batch:{}", batch.friendly_id);
    let token = public_token(environment.id, environment.secret_key, &scopes).await;
    let mut feeds = json!([
        { "feed": "one", "tags": TAG },
        { "feed": "all", "tags": [TAG, BOTH] },
        { "feed": "batch", "batch": batch.friendly_id },
    ]);
    // Options came with version 4: without them the fourth is like the first.
    let has_options = sdk != "sdk-3.3.17";
    let options =
        json!({ "feed": "hour", "tags": TAG, "createdAt": "1h", "skipColumns": ["payload"] });
    feeds.as_array_mut().unwrap().push(options);
    let mut lists = Lists::follow(sdk, &gateway.target(token), &feeds).await;

    let start = [
        ("one", first.as_str()),
        ("one", &second),
        ("one", &earlier),
        ("all", &second),
        ("all", &earlier),
        ("hour", &first),
        ("hour", &second),
        ("batch", member(0)),
        ("batch", member(1)),
    ];
    let shown_first = if has_options {
        lists.show(start).await[0].clone()
    } else {
        let mut all = [("hour", earlier.as_str()); 10];
        all[..9].copy_from_slice(&start);
        lists.show(all).await[0].clone()
    };
    assert_eq!(shown_first["status"], "QUEUED", "{sdk}");
    assert!(shown_first["payload"] == large_payload(), "{sdk}");

    // The first run goes on, in the lists of its tag.
    set_status(pool, &first, "EXECUTING").await.unwrap();
    for run in lists.show([("one", &first), ("hour", &first)]).await {
        assert_eq!(run["status"], shown(sdk, "EXECUTING"), "{sdk}");
    }
    for v in 1..=3 {
        let (text, value) = metadata(v);
        set_metadata(pool, &first, &text).await.unwrap();
        let [one, hour] = lists.show([("one", &first), ("hour", &first)]).await;
        assert_eq!((&one["metadata"], &hour["metadata"]), (&value, &value), "{sdk}");
        assert!(one["payload"] == large_payload(), "{sdk}");
        assert_eq!(hour["payload"].is_null(), has_options, "{sdk}");
    }

    // It gains the tag that it lacked: whole in the list that it enters, although Postgres does not
    // send its payload again.
    add_tag(pool, &first, BOTH).await.unwrap();
    let three = [("one", first.as_str()), ("hour", &first), ("all", &first)];
    for run in lists.show(three).await {
        assert_eq!(run["tags"], json!([TAG, BOTH]), "{sdk}");
        assert_eq!(
            (&run["status"], &run["metadata"]),
            (&json!("EXECUTING"), &metadata(3).1),
            "{sdk}"
        );
    }
    set_metadata(pool, &first, &metadata(4).0).await.unwrap();
    let [one, _, all] = lists.show(three).await;
    assert!(one == all && one["payload"] == large_payload(), "{sdk}: {one} {all}");

    // Runs that come later, with the tags and without.
    let later = tagged(pool, &environment, &[BOTH, "other", TAG]).await;
    lists.show([("one", &later), ("hour", &later), ("all", &later)]).await;
    let spec = RunSpec { payload: large_payload().to_string(), ..RunSpec::new("bare") };
    let bare = trigger_run(pool, &environment, spec).await.unwrap().friendly_id;
    set_metadata(pool, &bare, &metadata(1).0).await.unwrap();
    add_tag(pool, &bare, TAG).await.unwrap();
    let [one, hour] = lists.show([("one", &bare), ("hour", &bare)]).await;
    assert_eq!((&one["tags"], &one["metadata"]), (&json!([TAG]), &metadata(1).1), "{sdk}");
    assert!(one["payload"] == large_payload(), "{sdk}");
    assert_eq!(hour["payload"].is_null(), has_options, "{sdk}");

    // What belongs to none of them: the lists show what comes after it.
    for stranger in [&wrong, &long_ago] {
        set_metadata(pool, stranger, &metadata(1).0).await.unwrap();
    }
    tagged(pool, &database.seeded.rival, &[TAG, BOTH]).await;
    let other_batch = trigger_batch(pool, &environment, vec![RunSpec::new("child")]).await.unwrap();
    set_status(pool, &other_batch.runs[0].friendly_id, "EXECUTING").await.unwrap();
    // Older than one list's window, and not than the others'.
    set_metadata(pool, &earlier, &metadata(1).0).await.unwrap();
    if has_options {
        lists.show([("one", &earlier), ("all", &earlier)]).await;
    } else {
        lists.show([("one", &earlier), ("all", &earlier), ("hour", &earlier)]).await;
    }

    // The batch grows and goes on, and one of its runs gets into the lists of a tag.
    let spec = RunSpec { batch: Some(batch.id.clone()), ..RunSpec::new("child") };
    let third = trigger_run(pool, &environment, spec).await.unwrap().friendly_id;
    lists.show([("batch", &third)]).await;
    set_metadata(pool, member(0), &metadata(1).0).await.unwrap();
    let [run] = lists.show([("batch", member(0))]).await;
    assert_eq!(run["metadata"], metadata(1).1, "{sdk}");
    add_tag(pool, member(0), TAG).await.unwrap();
    let [batched, one, _] =
        lists.show([("batch", member(0)), ("one", member(0)), ("hour", member(0))]).await;
    assert_eq!(batched, one, "{sdk}");
    fail(pool, member(1), &built_in_error("TypeError", "x")).await.unwrap();
    let [run] = lists.show([("batch", member(1))]).await;
    assert_eq!(
        (&run["status"], &run["error"]["name"]),
        (&json!("FAILED"), &json!("TypeError")),
        "{sdk}"
    );

    // A run ends; the lists do not.
    complete(pool, &first, OUTPUT).await.unwrap();
    for run in lists.show(three).await {
        assert_eq!(run["status"], "COMPLETED", "{sdk}");
        assert_eq!(run["output"], serde_json::from_str::<Value>(OUTPUT).unwrap(), "{sdk}");
        assert!(run["finishedAt"].is_string(), "{sdk}: {run}");
    }
    set_metadata(pool, &second, &metadata(1).0).await.unwrap();
    lists.show([("one", &second), ("hour", &second), ("all", &second)]).await;
    assert!(lists.answers.iter().all(|(status, _)| *status == 200), "{sdk}: {:?}", lists.answers);
    gateway.stop().await;
}

#[tokio::test]
async fn sdk_4_8_3_shows_every_change_of_paced_lists_once_and_in_order() {
    paced("sdk-4.8.3").await;
}

#[tokio::test]
async fn sdk_4_1_shows_every_change_of_paced_lists_once_and_in_order() {
    paced("sdk-4.1").await;
}

#[tokio::test]
async fn sdk_3_3_17_shows_every_change_of_paced_lists_once_and_in_order() {
    paced("sdk-3.3.17").await;
}
