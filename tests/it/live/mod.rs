//! What makes a feed live: whole completions, ticks, events, and bodies that are compressed once.

mod electric_sse;
mod fold;
mod gzip;
mod sse;
mod throttle;

use std::time::Duration;

use reqwest::RequestBuilder;
use runwire::dev::{Environment, RunSpec, trigger_run};
use sqlx::PgPool;

use crate::support::gateway::{Gateway, Shape};

const SOON: Duration = Duration::from_secs(60);
const OUTPUT: &str = r#"{"ok":true}"#;
const TAG: &str = "live";

/// A run that carries [`TAG`], perhaps in a batch.
async fn trigger(pool: &PgPool, environment: &Environment, batch: Option<&str>) -> String {
    let spec = RunSpec {
        tags: Some(vec![TAG.to_owned()]),
        batch: batch.map(str::to_owned),
        ..RunSpec::new("hello")
    };
    trigger_run(pool, environment, spec).await.unwrap().friendly_id
}

fn of_run(run: &str) -> String {
    format!("/realtime/v1/runs/{run}")
}

fn of_tag() -> String {
    format!("/realtime/v1/runs?tags={TAG}")
}

/// Opens the feed of a path, with the rows of now: who says that a handle has expired is given nothing
/// that was read for others before.
async fn open(gateway: &Gateway, feed: &str, token: &str) -> Shape {
    let between = if feed.contains('?') { '&' } else { '?' };
    let path = format!("{feed}{between}expired_handle=x&log=full&offset=-1");
    let answer = Shape::read(gateway.get(&path, token).send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

/// The request that goes on from an answer, and more of the query.
fn follow(gateway: &Gateway, feed: &str, token: &str, from: &Shape, more: &str) -> RequestBuilder {
    let between = if feed.contains('?') { '&' } else { '?' };
    let (handle, offset) = (from.handle(), from.offset());
    let path = format!("{feed}{between}handle={handle}&offset={offset}&cursor=&{more}");
    gateway.get(&path, token)
}

/// A held poll, by a task of its own.
fn held(request: RequestBuilder) -> tokio::task::JoinHandle<Shape> {
    tokio::spawn(async move {
        let answer = async { Shape::read(request.send().await.unwrap()).await };
        tokio::time::timeout(SOON, answer).await.expect("an answer")
    })
}

/// The metadata that an answer brings.
fn metadata(answer: &Shape) -> Option<String> {
    let rows = answer.rows();
    rows.last().and_then(|(_, row)| row["metadata"].as_str()).map(str::to_owned)
}
