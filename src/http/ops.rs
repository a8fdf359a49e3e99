//! Health, readiness and metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::readiness::Readiness;
use crate::streams::Store;

/// What the operators' routes show.
#[derive(Clone)]
pub struct Ops {
    /// Whether feeds are served from a stream that is attached and caught up.
    pub readiness: Arc<Readiness>,
    /// What keeps the chunks of streams.
    pub store: Store,
    /// The metrics of this process.
    pub metrics: PrometheusHandle,
}

/// `/healthz` and `/readyz`, for either address.
pub fn health(ops: Ops) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(ops)
}

/// The routes of the admin address: those of [`health`], and `/metrics`.
pub fn admin(ops: Ops) -> Router {
    let metrics = Router::new().route("/metrics", get(render)).with_state(ops.clone());
    health(ops).merge(metrics)
}

async fn ready(State(ops): State<Ops>) -> impl IntoResponse {
    let advice = ops.readiness.advice().map(|advice| format!("warning: {advice}\n"));
    let advice = advice.unwrap_or_default();
    // A component of its own: whatever becomes of it, run feeds are served.
    let streams = match ops.store.trouble() {
        None => "streams: ready\n".to_owned(),
        Some(why) => format!("streams: not ready: {why}\n"),
    };
    match ops.readiness.reason() {
        None => (StatusCode::OK, format!("ready\n{advice}{streams}")),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n{advice}{streams}"))
        }
    }
}

async fn render(State(ops): State<Ops>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], ops.metrics.render())
}
