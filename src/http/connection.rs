//! One connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Counter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::http2;
use super::listen::Answers;
use super::socket::Socket;
use crate::telemetry;

/// For how long a connection may take to send a request's head, and may idle between requests.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The most that a request's line and headers may take, in bytes; more is answered with a 431.
pub const MAX_HEAD: usize = 32 * 1024;

/// What all connections of a listener share.
#[derive(Debug)]
pub struct Shared<A> {
    /// What answers requests.
    pub answers: A,
    /// Places for connections, and for the requests of one that are at work beside each other.
    pub places: Arc<Semaphore>,
    /// Requests that found no place.
    pub refused: Counter,
    /// Ends connections when they have answered what they were asked.
    pub drain: CancellationToken,
}

impl<A: Answers> Shared<A> {
    /// For the listener of this name.
    pub fn new(
        listener: &'static str,
        answers: A,
        places: Arc<Semaphore>,
        drain: CancellationToken,
    ) -> Shared<A> {
        let refused = metrics::counter!(telemetry::REQUESTS_REFUSED, "listener" => listener);
        Shared { answers, places, refused, drain }
    }
}

/// Answers the requests of a connection until the client, an error or the drain ends it.
pub async fn converse<A: Answers>(mut socket: Socket, shared: &Arc<Shared<A>>) {
    // Both are boxed, so that a connection that holds an HTTP/1.1 poll takes no memory for them.
    match Box::pin(speaks_http2(&mut socket, &shared.drain)).await {
        Some(true) => Box::pin(http2::converse(socket, shared)).await,
        Some(false) => converse_http1(socket, shared).await,
        None => {}
    }
}

/// `None` if the client goes away, says nothing for too long, or the drain begins.
async fn speaks_http2(socket: &mut Socket, drain: &CancellationToken) -> Option<bool> {
    tokio::select! {
        first = tokio::time::timeout(HEAD_TIMEOUT, socket.speaks_http2()) => first.ok()?.ok(),
        () = drain.cancelled() => None,
    }
}

async fn converse_http1<A: Answers>(socket: Socket, shared: &Shared<A>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), shared.answers.clone());
    let mut connection = pin!(connection);
    // An error is the client's going away or its bad syntax, which hyper has answered.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
