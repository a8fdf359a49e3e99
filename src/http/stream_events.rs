//! A stream as server-sent events (`streams-and-sessions.md`, 4.6 and 4.8).

use std::io;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::future::OptionFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;
use crate::limits::LivePlace;
use crate::streams::{DONE, Frames, Next, Paced, Reader, ping};
use crate::telemetry;

/// How long a reader sees nothing before it is shown that the stream lives, at least and at most.
const QUIET: std::ops::Range<f64> = 5.0..15.0;

/// The answer: what there is, then what comes, until nothing has come for `wait`.
///
/// With a `throttle` what comes is sent together, once in so long at most, event by event as it would be
/// without: the first after quiet at once, and the end no later.
///
/// That time alone ends it cleanly, since clients take a clean end for the stream's. A fault of the store, the
/// end of the credential and the drain break the connection off, so that clients resume.
pub(super) fn events(
    reader: Reader,
    wait: Duration,
    throttle: Duration,
    caller: Caller,
    drain: CancellationToken,
    live: LivePlace,
) -> Response<Body> {
    let counted = Counted::begin(live);
    // Boxed, since whoever has a key or asks for nothing special has no room for it.
    let expires = caller.expires_at.map(|end| {
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        Box::pin(tokio::time::sleep(left))
    });
    let body = async_stream::stream! {
        let _counted = counted;
        // Once for all chunks.
        let mut drained = std::pin::pin!(drain.cancelled());
        let mut expired = OptionFuture::from(expires);
        let mut ended = std::pin::pin!(caller.lease.ended());
        let mut frames = Frames::default();
        let mut reader = Paced::new(reader, throttle);
        // Set once the reader has been at the end.
        let mut quiet: Option<Quiet> = None;
        loop {
            let until = quiet.as_ref().map(|quiet| quiet.ends.min(quiet.ping));
            let next = tokio::select! {
                biased;
                () = &mut drained => Err(cut("the gateway is shutting down")),
                Some(()) = &mut expired => Err(cut("the credential has expired")),
                () = &mut ended => Err(cut("the credential has ended")),
                next = reader.next(until) => next.map_err(|error| {
                    metrics::counter!(telemetry::STREAM_FAULTS).increment(1);
                    tracing::debug!(%error, "a reader of a stream is cut");
                    cut("the stream store failed")
                }),
            };
            match next {
                Ok(Next::Batch(batch, from)) => {
                    if let Some([head, data]) = frames.batch(&batch, from) {
                        yield Ok::<Bytes, io::Error>(head);
                        yield Ok(data);
                    }
                    if quiet.is_some() {
                        quiet = Some(Quiet::begin(reader.came(), wait));
                    }
                }
                Ok(Next::Nothing(tail)) => match &mut quiet {
                    None if wait.is_zero() => {
                        yield Ok(DONE);
                        return;
                    }
                    None => {
                        yield Ok(ping(tail));
                        quiet = Some(Quiet::begin(Instant::now(), wait));
                    }
                    Some(quiet) if Instant::now() >= quiet.ends => match reader.held_back() {
                        None => {
                            yield Ok(DONE);
                            return;
                        }
                        Some(came) if came + wait > Instant::now() => quiet.ends = came + wait,
                        Some(_) => reader.release(),
                    },
                    Some(quiet) => {
                        yield Ok(ping(tail));
                        quiet.ping = next_ping();
                    }
                },
                Err(error) => {
                    yield Err(error);
                    return;
                }
            }
        }
    };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert("x-stream-version", HeaderValue::from_static("v2"));
    response
}

struct Quiet {
    ends: Instant,
    ping: Instant,
}

impl Quiet {
    fn begin(since: Instant, wait: Duration) -> Quiet {
        Quiet { ends: since + wait, ping: next_ping() }
    }
}

fn next_ping() -> Instant {
    Instant::now() + Duration::from_secs_f64(rand::random_range(QUIET))
}

fn cut(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

/// Counts a reader for as long as its body lives.
struct Counted {
    _live: LivePlace,
}

impl Counted {
    fn begin(live: LivePlace) -> Counted {
        metrics::gauge!(telemetry::STREAM_READERS).increment(1.0);
        Counted { _live: live }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::STREAM_READERS).decrement(1.0);
    }
}
