//! All three hooks at once, from trigger to completion.

use runwire::dev::run::{add_tag, complete, set_metadata, set_status};
use runwire::dev::{RunSpec, trigger_run};
use serde_json::json;
use sqlx::PgPool;

use super::{FEEDS, SCOPES, Stage, TAG, all_show, progress};
use crate::support::browser::{End, Request, Tab};
use crate::support::cluster::fresh_database;
use crate::support::program::Serving;

#[tokio::test]
async fn the_three_hooks_show_each_change_of_a_paced_run_once_and_in_order() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let stage = Stage::set(pool, database.seeded.production).await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    let mut tab = stage.open(&serving.url, &SCOPES).await;
    tab.until("the runs", |tab| all_show(tab, &stage.run, "QUEUED", ())).await;
    for feed in ["tag", "batch"] {
        let shows_others = |tab: &Tab| stage.others.iter().all(|run| tab.run(feed, run).is_some());
        tab.until("the other runs", shows_others).await;
    }

    let mut states = vec![("QUEUED", json!(null), vec![TAG])];
    set_status(pool, &stage.run, "EXECUTING").await.unwrap();
    tab.until("its start", |tab| all_show(tab, &stage.run, "EXECUTING", ())).await;
    states.push(("EXECUTING", json!(null), vec![TAG]));
    for tenth in 1..=9 {
        let done = f64::from(tenth) / 10.0;
        set_metadata(pool, &stage.run, &progress(done)).await.unwrap();
        tab.until("its progress", |tab| all_show(tab, &stage.run, "EXECUTING", done)).await;
        states.push(("EXECUTING", json!(done), vec![TAG]));
    }
    complete(pool, &stage.run, "{}").await.unwrap();
    tab.until("its end", |tab| all_show(tab, &stage.run, "COMPLETED", 0.9)).await;
    states.push(("COMPLETED", json!(0.9), vec![TAG]));

    for feed in FEEDS {
        let seen = tab.history(feed, &stage.run);
        let expected: Vec<_> = states
            .iter()
            .map(|(status, progress, tags)| {
                json!({ "id": stage.run, "status": status, "progress": progress, "tags": tags })
            })
            .collect();
        assert_eq!(seen, expected.iter().collect::<Vec<_>>(), "{feed}");
        assert_eq!(tab.error(feed), None, "{feed}");
        // The browser asked for leave first.
        let path = stage.path(feed);
        let leave = |request: &&Request| request.method == "OPTIONS" && request.path == path;
        let leave = tab.requests.iter().find(leave).expect("another origin's page asks first");
        assert!(matches!(leave.end, Some(End::Answered { status: 200, .. })), "{leave:?}");
    }
    let failed = tab.requests.iter().find(|request| matches!(request.end, Some(End::Failed(_))));
    assert!(failed.is_none(), "{failed:?}");

    // Nobody need watch a run's feed after its end; the lists go on.
    joins_the_lists(&mut tab, pool, &stage).await;
    tab.close().await;
    serving.stop().await;
}

/// A run that comes later, and one that gains the tag.
async fn joins_the_lists(tab: &mut Tab, pool: &PgPool, stage: &Stage) {
    let tagged = RunSpec { tags: Some(vec![TAG.to_owned()]), ..RunSpec::new("late") };
    let late = trigger_run(pool, &stage.environment, tagged).await.unwrap().friendly_id;
    tab.until("a run that comes later", |tab| tab.run("tag", &late).is_some()).await;
    let bare = trigger_run(pool, &stage.environment, RunSpec::new("bare")).await.unwrap();
    add_tag(pool, &bare.friendly_id, TAG).await.unwrap();
    tab.until("a run that gains the tag", |tab| tab.run("tag", &bare.friendly_id).is_some()).await;
    assert!(tab.run("batch", &late).is_none() && tab.error("tag").is_none());
}
