//! An HTTP/2 connection, as browsers open it with TLS and proxies in front without: many requests on one
//! socket.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::header::ORIGIN;
use axum::http::{Request, Response};
use futures_util::future::{Either, ready};
use futures_util::{FutureExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{MAX_HEAD, Shared};
use super::cors;
use super::error::HttpError;
use super::listen::{Answers, Peer};

/// Requests that one connection may have at work at once; clients keep more back.
const MAX_STREAMS: u32 = 1_000;
/// What a client may send of bodies before we have read it, per request and per connection, in bytes.
/// Requests have no bodies worth reading, but for the sessions of those who write streams. Half of the
/// connection's is what h2 bears of the overhead of small unread frames (a chunk of a few words counts as
/// some 200 bytes) before it gives the connection up, with all of its sessions.
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What of one answer is taken from its body before the client has room for it, in bytes.
const SEND_BUFFER: usize = 16 * 1024;
/// A client is asked this often whether it is there, and given up when it does not say so in time.
const PING: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Answers requests until the client, an error, idleness or the drain ends the connection.
pub async fn converse<A: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Arc<Peer>,
    shared: &Arc<Shared<A>>,
) {
    let idle = shared.patience.idle;
    let work = Arc::new(Work::default());
    let service = {
        let (shared, work) = (Arc::clone(shared), Arc::clone(&work));
        service_fn(move |request| answer(&shared, AtWork::begin(&work), peer.address, request))
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut looks = tokio::time::interval_at(Instant::now() + idle, idle);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The end in either case: GOAWAY, and what has been asked is still answered.
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = shared.drain.cancelled() => break,
            _ = looks.tick() => {
                if work.is_idle() {
                    break;
                }
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Answers one request, if it finds a place. The connection's own place is for the first of those
/// that are at work.
///
/// No `async fn`: that would have room for the whole request for as long as the answer takes, and
/// hundreds of held polls share a connection.
fn answer<A: Answers>(
    shared: &Shared<A>,
    at_work: AtWork,
    peer: IpAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<A> {
    let place = match at_work.is_first {
        true => None,
        false => match Arc::clone(&shared.places).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => {
                shared.refused.increment(1);
                let mut response = HttpError::Unavailable.response();
                let origin = request.headers().get(ORIGIN).cloned();
                cors::on_refusal(origin, response.headers_mut());
                return Either::Left(ready(Ok(response)));
            }
        },
    };
    Either::Right(shared.answers.answer(peer, request.map(Body::new)).map(move |response| {
        let is_whole = response.body().size_hint().exact().is_some();
        Ok(if is_whole {
            response
        } else {
            response.map(|body| at_work_on(body, (place, at_work)))
        })
    }))
}

/// A body that is still being made, such as events: its request is at work until it ends.
fn at_work_on(body: Body, held: impl Send + 'static) -> Body {
    Body::from_stream(body.into_data_stream().inspect(move |_| {
        let _ = &held;
    }))
}

/// The requests of a connection.
#[derive(Debug, Default)]
struct Work {
    now: AtomicUsize,
    since_last_look: AtomicUsize,
}

impl Work {
    /// Whether nothing has been asked since the last look, and nothing is at work from before.
    fn is_idle(&self) -> bool {
        let asked = self.since_last_look.swap(0, Ordering::Relaxed);
        asked == 0 && self.now.load(Ordering::Relaxed) == 0
    }
}

/// A request at work, however it ends.
#[derive(Debug)]
struct AtWork {
    work: Arc<Work>,
    is_first: bool,
}

impl AtWork {
    fn begin(work: &Arc<Work>) -> AtWork {
        work.since_last_look.fetch_add(1, Ordering::Relaxed);
        let is_first = work.now.fetch_add(1, Ordering::Relaxed) == 0;
        AtWork { work: Arc::clone(work), is_first }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.work.now.fetch_sub(1, Ordering::Relaxed);
    }
}
