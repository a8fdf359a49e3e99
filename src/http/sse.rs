//! Feeds as server-sent events, for Electric clients that ask for them (`runs-and-auth.md`, 6.5).

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
use crate::telemetry::FeedMetrics;

/// How long a connection lasts, before it is spread by ±15 %. Clients take ones that end at once for
/// a proxy that buffers, and very long ones outlive what is in between.
const LIFE: Duration = Duration::from_secs(60);
/// How often a connection without news shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An answer that goes on: first what is new, then whatever comes, until the connection's time or the
/// credential ends. A client that stands at no place of this feed is told so at once.
///
/// A message is taken from the window when the connection has room for it, so that a slow reader
/// gets the newest state and no queue.
pub(super) async fn stream(
    app: Arc<App>,
    shape: ShapeRequest,
    poll: Poll,
    expires_at: Option<SystemTime>,
    metrics: FeedMetrics,
) -> Result<Response<Body>, Outcome> {
    // The subscription is made twice, since the second lives inside of the stream and borrows there.
    if app.feeds.subscribe(&poll).await.is_none() {
        return Err(app.feeds.refetch(&poll.view, &poll.handle, poll.after));
    }
    let life = LIFE.mul_f64(rand::random_range(0.85..1.15));
    let left = expires_at
        .map_or(life, |end| end.duration_since(SystemTime::now()).unwrap_or_default().min(life));
    let end = Instant::now() + left;
    let (handle, after) = (poll.handle.clone(), poll.after);
    let drain = app.drain.clone();
    let events = async_stream::stream! {
        let _held = Held::begin(&metrics.holds);
        let Some(mut subscription) = app.feeds.subscribe(&poll).await else { return };
        yield Ok::<_, std::convert::Infallible>(comment());
        loop {
            let until = end.min(Instant::now() + KEEP_ALIVE);
            match subscription.next(&poll.view, poll.throttle, Some(until)).await {
                Next::News(update) => {
                    metrics.delivered(update.committed_at);
                    for message in update.body.messages() {
                        yield Ok(event(&message));
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
                Next::TooOld | Next::Unavailable => return,
            }
        }
    };
    Ok(shape::events(shape, handle, after, Body::from_stream(events)))
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
