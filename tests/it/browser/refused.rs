//! Refusals reach the hooks as errors: a browser that may not read one would try for ever.

use serde_json::json;

use super::{FEEDS, Stage, all_held, all_show};
use crate::support::browser::{End, Tab};
use crate::support::cluster::fresh_database;
use crate::support::program::Serving;
use crate::support::token;

#[tokio::test]
async fn a_hook_whose_token_names_other_things_shows_why_and_asks_no_more() {
    let database = fresh_database().await;
    let stage = Stage::set(&database.pool, database.seeded.production).await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    let scope = format!("read:runs:{}", stage.run);
    let mut tab = stage.open(&serving.url, &[&scope]).await;
    tab.until("the run", |tab| tab.run("run", &stage.run).is_some()).await;
    for feed in ["tag", "batch"] {
        tab.until("an error", |tab| tab.error(feed).is_some()).await;
        assert!(tab.error(feed).unwrap().contains("Unauthorized"), "{:?}", tab.error(feed));
        let kinds: Vec<_> = tab.polls(&stage.path(feed)).iter().map(|poll| poll.kind()).collect();
        assert_eq!(kinds, [(false, Some(403))], "{feed}");
    }
    assert_eq!(tab.error("run"), None);
    tab.close().await;
    serving.stop().await;
}

#[tokio::test]
async fn a_token_that_expires_shows_as_an_error_in_every_hook() {
    let database = fresh_database().await;
    let stage = Stage::set(&database.pool, database.seeded.production).await;
    let serving = Serving::start_ready(&database.url, &["--hold=60s"]).await;
    // How long a browser takes to start depends on what else the machine does.
    for life in [5, 15, 40] {
        if expires_in_time(&serving, &stage, life).await {
            serving.stop().await;
            return;
        }
    }
    panic!("the browser did not start within a token's life");
}

/// `false` if the token had ended before every hook had begun.
async fn expires_in_time(serving: &Serving, stage: &Stage, life: u64) -> bool {
    let mut claims = token::claims(stage.environment.id);
    claims["scopes"] = json!(["read:runs"]);
    claims["exp"] = json!(claims["iat"].as_u64().unwrap() + life);
    let token = token::sign(&claims, stage.environment.secret_key);
    let mut tab = stage.open_as(&serving.url, token).await;
    let refused = |tab: &Tab| FEEDS.iter().all(|feed| tab.error(feed).is_some());
    let begun = |tab: &Tab| all_show(tab, &stage.run, "QUEUED", ()) && all_held(tab, stage);
    tab.until("a beginning", |tab| begun(tab) || refused(tab)).await;
    if !begun(&tab) {
        tab.close().await;
        return false;
    }
    tab.until("errors", refused).await;
    // A tab that comes back asks again, unless it has given up.
    tab.hide().await;
    tab.show().await;
    for feed in FEEDS {
        let text = tab.error(feed).unwrap();
        assert!(text.contains("Public Access Token is invalid"), "{feed}: {text}");
        let polls = tab.polls(&stage.path(feed));
        let kinds: Vec<_> = polls.iter().map(|poll| poll.kind()).collect();
        assert_eq!(kinds, [(false, Some(200)), (true, Some(200)), (true, Some(401))], "{feed}");
        assert!(tab.run(feed, &stage.run).is_some(), "{feed}: what it had stays");
        assert!(polls.iter().all(|poll| !matches!(poll.end, Some(End::Failed(_)))), "{feed}");
    }
    tab.close().await;
    true
}
