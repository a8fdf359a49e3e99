//! R6: a stream as server-sent events (`streams-and-sessions.md`, 4.6).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, Method, Response, StatusCode};

use super::require_v2;
use crate::feed::Facts;
use crate::http::error::HttpError;
use crate::http::stream_events::events;
use crate::http::subscribe::{MAX_THROTTLE, may_read_run};
use crate::http::{App, cors};
use crate::runs::streams::{Lookup, Target};
use crate::streams::Start;

/// The longest time that a reader may ask to wait for a chunk, in seconds.
const MAX_WAIT: i64 = 600;

/// R6: the stream as server-sent events.
pub async fn read(
    State(app): State<Arc<App>>,
    Path((run, key)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    let origin = request.headers().get(ORIGIN).cloned();
    let (head, _) = request.into_parts();
    let opened = async {
        // A HEAD would hold a place for a body that nobody reads.
        if head.method != Method::GET {
            return Err(HttpError::NoRoute);
        }
        let caller = app.caller(&head.headers).await?;
        let environment = &caller.environment_id;
        let Lookup::Found(run) = app.streams.runs.find(environment, &run, Target::Own).await?
        else {
            return Err(HttpError::NotFound { retry: false });
        };
        let facts = Facts {
            task: run.task.clone(),
            tags: run.tags.clone(),
            batch: run.batch.as_deref().map(Arc::from),
        };
        if !may_read_run(&caller.ability, &run.friendly_id, &facts) {
            return Err(HttpError::Forbidden);
        }
        let wait = wait(&head.headers, app.streams.settings.wait)?;
        require_v2(&run)?;
        let Some(live) = app.limits.live.enter(environment) else {
            return Err(HttpError::TooManyLive);
        };
        let stream = app.streams.stream(environment, &run, &key)?;
        let reader = app.streams.hub.read(stream, start(&head.headers)).await?;
        let throttle = throttle(caller.throttle, head.uri.query());
        Ok(events(reader, wait, throttle, caller, app.drain.clone(), live))
    };
    match opened.await {
        Ok(mut response) => {
            cors::on_stream(origin, response.headers_mut());
            response
        }
        Err(error) => {
            let mut response = error.response();
            cors::on_refusal(origin, response.headers_mut());
            response
        }
    }
}

/// The table of 4.6, for run streams: JavaScript's `parseInt`, of which no number is an error later on.
fn wait(headers: &HeaderMap, otherwise: Duration) -> Result<Duration, HttpError> {
    let text = headers.get("timeout-seconds").map(|value| value.to_str().unwrap_or("?"));
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(otherwise) };
    let text = text.trim_start();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = &digits[..digits.bytes().take_while(u8::is_ascii_digit).count()];
    if digits.is_empty() {
        return Err(HttpError::Internal);
    }
    let number = digits.parse::<i64>().unwrap_or(i64::MAX);
    let refuse = |text: &'static str| Err(HttpError::Text(StatusCode::BAD_REQUEST, text.into()));
    match number {
        1.. if text.starts_with('-') => refuse("Timeout seconds must be greater than 0"),
        number if number > MAX_WAIT => refuse("Timeout seconds must be less than 600"),
        number => Ok(Duration::from_secs(number.unsigned_abs())),
    }
}

/// How long there is between two times that something is sent, at least: the token's claim wins over the
/// query. What operators set for feeds is not for streams.
fn throttle(claim: Option<Duration>, query: Option<&str>) -> Duration {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let asked = pairs.find(|(name, _)| name == "throttleMs");
    let asked = asked.and_then(|(_, text)| text.parse().ok()).map(Duration::from_millis);
    claim.or(asked).unwrap_or_default().min(MAX_THROTTLE)
}

/// Where a reader begins: after the record that it had last, whose number is all that is looked at, so
/// that the ids of our own events do as well as the SDK's.
fn start(headers: &HeaderMap) -> Start {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(last) = text("last-event-id").filter(|last| !last.is_empty()) {
        let digits = last.bytes().take_while(u8::is_ascii_digit).count();
        // What is no number begins at the beginning.
        return Start::At(last[..digits].parse::<u64>().map_or(0, |last| last.saturating_add(1)));
    }
    match text("x-trigger-stream-start") {
        Some("latest") => Start::Latest,
        _ => Start::At(0),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn timeouts_are_read_as_javascript_reads_them() {
        let read = |value| wait(&headers("timeout-seconds", value), Duration::from_secs(60));
        let seconds = |value| read(value).ok().map(|wait| wait.as_secs());
        assert_eq!(wait(&HeaderMap::new(), Duration::from_secs(60)).ok().unwrap().as_secs(), 60);
        for (value, expected) in
            [("", 60), ("0", 0), ("-0", 0), ("1", 1), ("10abc", 10), ("1.5", 1), ("600", 600)]
        {
            assert_eq!(seconds(value), Some(expected), "{value}");
        }
        let text = |value| match read(value) {
            Err(HttpError::Text(StatusCode::BAD_REQUEST, text)) => text,
            other => panic!("{value}: {other:?}"),
        };
        assert_eq!(text("-1"), "Timeout seconds must be greater than 0");
        assert_eq!(text("601"), "Timeout seconds must be less than 600");
        assert_eq!(text("99999999999999999999"), "Timeout seconds must be less than 600");
        assert!(matches!(read("abc"), Err(HttpError::Internal)));
    }

    #[test]
    fn the_token_says_how_often_and_else_the_query() {
        let milliseconds = Duration::from_millis;
        for (claim, query, expected) in [
            (None, None, 0),
            (None, Some("throttleMs=250"), 250),
            (None, Some("a=b&throttleMs=x"), 0),
            (None, Some("throttleMs=-1"), 0),
            (None, Some("throttleMs=99999"), 10_000),
            (Some(milliseconds(0)), Some("throttleMs=250"), 0),
            (Some(milliseconds(100)), Some("throttleMs=250"), 100),
            (Some(milliseconds(60_000)), None, 10_000),
        ] {
            assert_eq!(throttle(claim, query), milliseconds(expected), "{claim:?} {query:?}");
        }
    }

    #[test]
    fn a_reader_begins_after_the_record_that_it_had_last() {
        let after = |value| start(&headers("last-event-id", value));
        assert_eq!(after("0"), Start::At(1));
        assert_eq!(after("12,3,400"), Start::At(13));
        assert_eq!(after("12-0"), Start::At(13));
        assert_eq!(after("x"), Start::At(0));
        assert_eq!(after("-1"), Start::At(0));
        assert_eq!(start(&headers("x-trigger-stream-start", "latest")), Start::Latest);
        assert_eq!(start(&HeaderMap::new()), Start::At(0));
        let mut both = headers("x-trigger-stream-start", "latest");
        both.insert("last-event-id", HeaderValue::from_static("4"));
        assert_eq!(start(&both), Start::At(5));
    }
}
