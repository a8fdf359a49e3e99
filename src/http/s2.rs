//! `/s2/v1/…`: S2's own routes, as writers use them (`streams-and-sessions.md`, 4.4), behind access
//! tokens of ours. Nothing of them is reached without one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use futures_util::StreamExt as _;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::App;
use super::error::HttpError;
use crate::streams::StoreError;
use crate::streams::access::{Grant, Operation};

const BASIN: HeaderName = HeaderName::from_static("s2-basin");
/// What of a request the store is shown. A stream's settings (`s2-stream-config`) are not for those who
/// write it.
const PASSED_ON: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_ENCODING,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    BASIN,
    HeaderName::from_static("s2-format"),
    HeaderName::from_static("last-event-id"),
];
/// How long a session may go on in a drain, during which its client is told to go elsewhere.
const DRAIN: Duration = Duration::from_secs(2);

/// Any request of S2's.
pub async fn serve(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    match answer(&app, request).await {
        Ok(response) => response,
        Err(error) => error.response(),
    }
}

async fn answer(app: &App, request: Request) -> Result<Response<Body>, HttpError> {
    let issuer = app.streams.issuer()?;
    let grant = bearer(request.headers()).and_then(|token| issuer.read(token));
    let grant = grant.ok_or_else(|| {
        let text = "the access token is missing, expired, or none of this gateway's";
        refuse(StatusCode::UNAUTHORIZED, "authn", text)
    })?;
    let asked = Asked::of(&request)?;
    let denied = || {
        let text = "the access token does not allow this";
        refuse(StatusCode::FORBIDDEN, "permission_denied", text)
    };
    let asked = asked.ok_or_else(denied)?;
    let basin = request.headers().get(BASIN);
    let same_basin = basin.is_none_or(|basin| basin.as_bytes() == grant.basin.as_bytes());
    if !same_basin || !grant.allows(asked.operation, &asked.stream) {
        return Err(denied());
    }
    let Some(live) = app.limits.live.enter(&grant.environment.as_str().into()) else {
        return Err(refuse(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many at once"));
    };
    let request = asked.passed_on(request, &grant)?;
    let response = app.streams.store().serve(&grant.basin, request).await.map_err(|error| {
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
    // A session: it goes on until its client ends it, but not beyond the token or a drain. It is then
    // reset, since a clean end of the answer leaves the client's writer waiting for ever.
    let left = grant.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    let drain = app.drain.clone();
    let (head, body) = response.into_parts();
    let body = async_stream::stream! {
        let _live = live;
        let cut = async {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
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

/// What a request wants of which stream.
struct Asked {
    operation: Operation,
    /// The decoded name.
    stream: String,
    suffix: &'static str,
}

impl Asked {
    /// `None`: something that no token of a run's allows.
    fn of(request: &Request) -> Result<Option<Asked>, HttpError> {
        let path = request.uri().path();
        let Some(path) = path.strip_prefix("/s2/v1/streams/") else { return Ok(None) };
        let (stream, suffix) = path.split_once('/').unwrap_or((path, ""));
        let (operation, suffix) = match (request.method(), suffix) {
            (&Method::POST, "records") => (Operation::Append, "/records"),
            (&Method::GET, "records") => (Operation::Read, "/records"),
            (&Method::GET, "records/tail") => (Operation::Read, "/records/tail"),
            (&Method::PUT, "") => (Operation::CreateStream, ""),
            _ => return Ok(None),
        };
        let stream = percent_decode_str(stream).decode_utf8();
        let bad = |_| refuse(StatusCode::BAD_REQUEST, "bad_path", "the stream's name is no UTF-8");
        Ok(Some(Asked { operation, stream: stream.map_err(bad)?.into_owned(), suffix }))
    }

    /// The request as the store gets it, made of what was looked at here.
    fn passed_on(&self, request: Request, grant: &Grant) -> Result<Request, HttpError> {
        let (mut head, body) = request.into_parts();
        let name = utf8_percent_encode(&self.stream, NON_ALPHANUMERIC);
        let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let uri: Result<Uri, _> = format!("/streams/{name}{}{query}", self.suffix).parse();
        let bad = || refuse(StatusCode::BAD_REQUEST, "bad_path", "the path cannot be read");
        head.uri = uri.map_err(|_| bad())?;
        let mut headers = HeaderMap::new();
        for name in PASSED_ON {
            if let Some(value) = head.headers.remove(&name) {
                headers.insert(name, value);
            }
        }
        headers.insert(BASIN, HeaderValue::try_from(&grant.basin).map_err(|_| bad())?);
        if self.operation == Operation::CreateStream {
            return Ok(self.created(headers, &head.uri));
        }
        head.headers = headers;
        // It is past the door, and what our router noted of its path is not for the store's.
        head.extensions.clear();
        Ok(Request::from_parts(head, body))
    }

    /// With the basin's settings, whatever was asked for.
    fn created(&self, mut headers: HeaderMap, uri: &Uri) -> Request {
        headers.remove(CONTENT_LENGTH);
        headers.remove(CONTENT_ENCODING);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut request = Request::new(Body::from("{}"));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        request
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn refuse(status: StatusCode, code: &'static str, message: &'static str) -> HttpError {
    HttpError::S2 { status, code, message }
}
