//! HTTP: one file per resource. It turns requests into questions to the feed and outcomes into answers.

mod connection;
mod cors;
mod error;
mod http2;
pub mod listen;
pub mod ops;
mod runs;
mod shape;
pub mod shortcut;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{HeaderValue, LOCATION};
use axum::http::{Response, StatusCode};
use axum::routing::get;

use crate::auth::Door;
use crate::feed::RunFeeds;
use crate::telemetry::FeedMetrics;

/// What the routes work with.
#[derive(Debug)]
pub struct App {
    /// Who may come in.
    pub door: Door,
    /// The feeds of single runs.
    pub runs: RunFeeds,
    /// For how long a poll is held when nothing is new, before it is spread by ±15 %.
    pub hold: Duration,
    /// What the run feed counts.
    pub metrics: FeedMetrics,
}

/// The routes of the public address.
pub fn public(app: Arc<App>, ops: ops::Ops) -> Router {
    Router::new()
        .route("/realtime/v1/runs/{run_id}", get(runs::run).options(preflight))
        .with_state(app)
        .merge(ops::health(ops))
        .fallback(elsewhere)
}

async fn preflight(request: Request) -> Response<Body> {
    cors::preflight(request.headers())
}

/// A trailing slash is redirected, as upstream does; anything else is not there.
async fn elsewhere(request: Request) -> Response<Body> {
    let uri = request.uri();
    let path = uri.path();
    let slashless = path.trim_end_matches('/');
    // More than one slash at the start would name another host.
    if path.starts_with("/realtime/") && slashless.len() < path.len() {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(location) = HeaderValue::try_from(format!("{slashless}{query}")) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, location);
            return response;
        }
    }
    let mut response = error::HttpError::NoRoute.response();
    let origin = request.headers().get(axum::http::header::ORIGIN).cloned();
    cors::on_refusal(origin, response.headers_mut());
    response
}
