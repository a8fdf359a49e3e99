//! HTTP: one file per resource. It turns requests into questions to the feed and outcomes into answers.

mod batches;
mod body;
mod connection;
mod cors;
mod entrance;
mod error;
mod heads;
mod http2;
pub mod listen;
pub mod ops;
mod plain;
pub mod proxy;
mod runs;
mod s2;
mod s2_asked;
mod s2_bearer;
mod s2_tokens;
mod schema;
mod sending;
mod shape;
mod shortcut;
mod socket;
mod sse;
mod stream_events;
mod streams;
mod subscribe;
pub mod tls;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{HeaderMap, HeaderValue, LOCATION};
use axum::http::{Response, StatusCode};
use axum::routing::{any, get, post, put};
use tokio_util::sync::CancellationToken;

use self::error::HttpError;
use self::proxy::Proxies;
use crate::auth::{Caller, Door, digest_of_bearer};
use crate::feed::Feeds;
use crate::limits::RequestLimits;
use crate::telemetry::FeedMetrics;

/// What the routes work with.
#[derive(Debug)]
pub struct App {
    /// Who may come in.
    pub door: Door,
    /// How much may be asked.
    pub limits: RequestLimits,
    /// Who may say on whose behalf they ask.
    pub proxies: Proxies,
    /// The feeds.
    pub feeds: Arc<Feeds>,
    /// For how long a poll is held when nothing is new, before it is spread by ±15 %.
    pub hold: Duration,
    /// How long a connection of events lasts, before it is spread by ±15 %.
    pub sse_life: Duration,
    /// How far back a list may reach.
    pub created_max: Duration,
    /// How often a feed may answer, where neither token nor request say.
    pub throttle: Throttle,
    /// The streams of runs.
    pub streams: Streams,
    /// Ends everything that is held.
    pub drain: CancellationToken,
    /// What the feeds count.
    pub metrics: Metrics,
}

impl App {
    /// Who asks, for all routes that know them: authenticated, then held against the credential's rate.
    /// For most polls `subscribe::ask_at_once` does the same.
    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, HttpError> {
        let caller = self.door.admit(headers).await?;
        self.count(headers)?;
        Ok(caller)
    }

    /// Holds a request whose credential is good against that credential's rate. Those whose is not are
    /// a matter of their address.
    fn count(&self, headers: &HeaderMap) -> Result<(), HttpError> {
        let Some(credentials) = &self.limits.credentials else { return Ok(()) };
        match digest_of_bearer(headers, &self.limits.digests) {
            Some(bearer) => credentials.count(&bearer).map_err(HttpError::TooManyRequests),
            None => Ok(()),
        }
    }
}

/// What each kind of feed counts.
#[derive(Debug)]
pub struct Metrics {
    /// The feeds of single runs.
    pub run: FeedMetrics,
    /// Lists.
    pub list: FeedMetrics,
    /// Batches.
    pub batch: FeedMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let of = FeedMetrics::of;
        Metrics { run: of("run"), list: of("list"), batch: of("batch") }
    }
}

impl Metrics {
    fn of(&self, kind: Kind) -> &FeedMetrics {
        match kind {
            Kind::Run => &self.run,
            Kind::List => &self.list,
            Kind::Batch => &self.batch,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Run,
    List,
    Batch,
}

/// The shortest time between two answers that something changed, by environment.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    /// Where nothing else is set.
    pub default: Duration,
    /// By the environment's id.
    pub environments: HashMap<String, Duration>,
}

impl Throttle {
    fn of(&self, environment: &str) -> Duration {
        self.environments.get(environment).copied().unwrap_or(self.default)
    }
}

pub use entrance::Entrance;
pub use streams::{StreamSettings, Streams};

/// The routes of the public address, to which [`Entrance`] leads.
pub fn public(app: Arc<App>, ops: ops::Ops) -> Router {
    Router::new()
        .route("/realtime/v1/runs/{run_id}", get(runs::run))
        .route("/realtime/v1/runs", get(runs::list))
        .route("/realtime/v1/batches/{batch_id}", get(batches::batch))
        .route("/realtime/v1/streams/{run_id}/{key}", get(streams::read))
        .route(
            "/realtime/v1/streams/{run_id}/{target}/{key}",
            put(streams::create).post(streams::ingest).head(streams::last).get(streams::not_here),
        )
        .route("/realtime/v1/streams/{run_id}/{target}/{key}/append", post(streams::append))
        .route("/s2/v1/{*rest}", any(s2::serve))
        .route("/api/v1/auth/jwt/claims", post(tokens::claims))
        .route("/api/v1/auth/jwt", post(tokens::jwt))
        .route("/api/v1/auth/public-tokens", post(tokens::public_tokens))
        .with_state(app)
        .merge(ops::health(ops))
        .fallback(elsewhere)
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
    let mut response = HttpError::NoRoute.response();
    let origin = request.headers().get(axum::http::header::ORIGIN).cloned();
    cors::on_refusal(origin, response.headers_mut());
    response
}
