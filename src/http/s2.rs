//! `/s2/v1/…`: S2's own routes, as writers and a webapp use them (`streams-and-sessions.md`, 4.4 and 9),
//! behind access tokens of ours. Nothing of them is reached without one.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use futures_util::StreamExt as _;

use super::App;
use super::error::HttpError;
use super::s2_asked::Asked;
use super::s2_bearer::Bearer;
use super::s2_tokens;
use crate::streams::{Store, StoreError};

/// How long a session may go on in a drain, during which its client is told to go elsewhere.
const DRAIN: Duration = Duration::from_secs(2);

/// Any request of S2's.
pub async fn serve(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    match answer(&app, request).await {
        Ok(response) => response,
        Err(error) => error.response(),
    }
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Response<Body>, HttpError> {
    if let Store::Remote(_) = app.streams.store() {
        let text = "streams are kept by another S2, which writers ask themselves";
        return Err(refuse(StatusCode::NOT_IMPLEMENTED, "not_implemented", text));
    }
    let bearer = Bearer::of(app, request.headers()).await?;
    let asked = Asked::of(&request)?.ok_or_else(|| {
        refuse(StatusCode::FORBIDDEN, "permission_denied", "nobody may do this here")
    })?;
    let (asked, basin) = bearer.may(app, asked, request.headers())?;
    if let (Bearer::Service(fingerprint), Asked::Token) = (&bearer, &asked) {
        return s2_tokens::mint(app, fingerprint, request).await;
    }
    let Some(live) = app.limits.live.enter(&bearer.counts_as().into()) else {
        return Err(refuse(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many at once"));
    };
    let request = asked.passed_on(request, &basin)?;
    let response = app.streams.store().serve(&basin, request).await.map_err(|error| {
        tracing::debug!(%error, "a writer was refused");
        let message = match error {
            StoreError::Full => "the disk of the stream store is full",
            StoreError::Unavailable(_) | StoreError::Refused(_) => {
                "the stream store is not available"
            }
        };
        refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    })?;
    if response.body().size_hint().exact().is_some() {
        return Ok(response);
    }
    // A session: it goes on until its client ends it, but not beyond what let it in or a drain. It is
    // then reset, since a clean end of the answer leaves the client's writer waiting for ever.
    let app = Arc::clone(app);
    let (head, body) = response.into_parts();
    let body = async_stream::stream! {
        let _live = live;
        let drain = app.drain.clone();
        let cut = async {
            tokio::select! {
                () = bearer.ended(&app) => metrics::counter!(crate::telemetry::STREAM_SESSIONS_ENDED).increment(1),
                () = async { drain.cancelled().await; tokio::time::sleep(DRAIN).await } => {}
            }
        };
        let mut cut = std::pin::pin!(cut);
        let mut body = body.into_data_stream();
        loop {
            let piece = tokio::select! {
                piece = body.next() => piece,
                () = &mut cut => Some(Err(axum::Error::new(Cut))),
            };
            let Some(piece) = piece else { return };
            let ends = piece.is_err();
            yield piece;
            if ends {
                return;
            }
        }
    };
    Ok(Response::from_parts(head, Body::from_stream(body)))
}

#[derive(Debug, thiserror::Error)]
#[error("the session may not go on")]
struct Cut;

/// A refusal in S2's own form.
pub(super) fn refuse(status: StatusCode, code: &'static str, message: &'static str) -> HttpError {
    HttpError::S2 { status, code, message }
}
