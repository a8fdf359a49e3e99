//! The React hooks on the example's page in a real browser, which the program serves from another origin.

mod dev;
mod hooks;
mod refused;
mod streams;
mod tab;

use runwire::dev::{Environment, RunSpec, trigger_batch};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::browser::Tab;
use crate::support::token;

/// The sections of the page.
const FEEDS: [&str; 3] = ["run", "tag", "batch"];
const TAG: &str = "shown";

/// A run that all three sections show, and others that only the two lists do.
struct Stage {
    environment: Environment,
    run: String,
    others: Vec<String>,
    batch: String,
}

impl Stage {
    async fn set(pool: &PgPool, environment: Environment) -> Stage {
        let spec = RunSpec { tags: Some(vec![TAG.to_owned()]), ..RunSpec::new("hello") };
        let batch = trigger_batch(pool, &environment, vec![spec; 10]).await.unwrap();
        let mut runs = batch.runs.into_iter().map(|run| run.friendly_id);
        let run = runs.next().expect("ten runs");
        Stage { environment, run, others: runs.collect(), batch: batch.friendly_id }
    }

    /// Opens the page with a token of these scopes.
    async fn open(&self, url: &str, scopes: &[&str]) -> Tab {
        self.open_as(url, token::public(self.environment, scopes)).await
    }

    async fn open_as(&self, url: &str, access_token: String) -> Tab {
        Tab::open(&json!({
            "baseURL": url, "accessToken": access_token,
            "run": self.run, "tag": TAG, "batch": self.batch,
        }))
        .await
    }

    /// The path of a section's feed.
    fn path(&self, feed: &str) -> String {
        match feed {
            "run" => format!("/realtime/v1/runs/{}", self.run),
            "tag" => "/realtime/v1/runs".to_owned(),
            _ => format!("/realtime/v1/batches/{}", self.batch),
        }
    }
}

const SCOPES: [&str; 3] = ["read:runs", "read:tags", "read:batch"];

/// A run's progress as its metadata tells it.
fn progress(value: f64) -> String {
    json!({ "progress": value, "step": "working" }).to_string()
}

/// Whether every section shows the run in this state.
fn all_show(tab: &Tab, run: &str, status: &str, progress: impl Into<Value>) -> bool {
    let progress = progress.into();
    let shows = |feed: &&str| {
        let shown = tab.run(feed, run);
        shown.is_some_and(|shown| shown["status"] == status && shown["progress"] == progress)
    };
    FEEDS.iter().all(shows)
}

/// Whether every section's last poll is held.
fn all_held(tab: &Tab, stage: &Stage) -> bool {
    let held = |feed: &&str| {
        let polls = tab.polls(&stage.path(feed));
        polls.last().is_some_and(|poll| poll.kind().0 && poll.end.is_none())
    };
    FEEDS.iter().all(held)
}
