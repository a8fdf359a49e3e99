//! Feeds as server-sent events, for Electric clients that ask for them (`runs-and-auth.md`, 6.5).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::Response;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::App;
use super::shape::{self, ShapeRequest};
use super::subscribe::Held;
use crate::feed::{Next, Outcome, Poll};
use crate::limits::LivePlace;
use crate::telemetry::FeedMetrics;

/// How often a connection without news shows that it lives, at least.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An answer that goes on: first what is new, then whatever comes, until the connection's time or the
/// credential ends. What only a status can tell is told by one, before the first event: clients that
/// were sent nothing but an end would come back with the same question at once.
///
/// A message is taken from the window when the connection has room for it, so that a slow reader
/// gets the newest state and no queue.
pub(super) async fn stream(
    app: Arc<App>,
    shape: ShapeRequest,
    mut poll: Poll,
    expires_at: Option<SystemTime>,
    metrics: FeedMetrics,
    live: LivePlace,
) -> Result<Response<Body>, Outcome> {
    let refetch = |poll: &Poll| Err(app.feeds.refetch(&poll.view, &poll.handle, poll.after));
    let Some(mut subscription) = app.feeds.subscribe(&poll).await else { return refetch(&poll) };
    poll.hold_until = None;
    let mut next = match subscription.next(&poll).await {
        Next::TooOld => return refetch(&poll),
        Next::Unavailable => return Err(Outcome::Unavailable),
        Next::Over => return Err(Outcome::Over(poll.lease)),
        next => next,
    };
    let life = app.sse_life.mul_f64(rand::random_range(0.85..1.15));
    let left = expires_at
        .map_or(life, |end| end.duration_since(SystemTime::now()).unwrap_or_default().min(life));
    let end = Instant::now() + left;
    let keep_alive = KEEP_ALIVE.min(app.sse_life / 4);
    let (handle, after) = (std::mem::take(&mut poll.handle), poll.after);
    let drain = app.drain.clone();
    // Begun before the body is polled, so that one that never is ends like any other.
    let held = Held::begin(&metrics.holds, live);
    let events = async_stream::stream! {
        let _held = held;
        loop {
            match next {
                Next::News(update) => {
                    metrics.delivered(update.committed_at);
                    for message in update.body.messages() {
                        yield Ok::<_, Infallible>(event(&message));
                    }
                    yield Ok(up_to_date(subscription.seen().lsn.0));
                }
                Next::Nothing if Instant::now() >= end || drain.is_cancelled() => {
                    // So that a quiet feed's offset does not fall behind.
                    yield Ok(up_to_date(subscription.seen().lsn.0));
                    return;
                }
                Next::Nothing => yield Ok(comment()),
                // The client comes back from its last offset, and is told then.
                Next::TooOld | Next::Unavailable | Next::Over => return,
            }
            poll.hold_until = Some(end.min(Instant::now() + keep_alive));
            next = subscription.next(&poll).await;
        }
    };
    Ok(shape::events(shape, handle.into(), after, Body::from_stream(events)))
}

fn comment() -> Bytes {
    Bytes::from_static(b": keep-alive\n\n")
}

/// One message. JSON holds no line break.
fn event(message: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(message.len() + 8);
    event.put_slice(b"data: ");
    event.put_slice(message);
    event.put_slice(b"\n\n");
    event.freeze()
}

/// The client goes on from `<lsn>_0`, so this is where the stream stands, never a commit's own LSN.
fn up_to_date(lsn: u64) -> Bytes {
    let control =
        format!(r#"{{"headers":{{"control":"up-to-date","global_last_seen_lsn":"{lsn}"}}}}"#);
    event(control.as_bytes())
}
