//! One connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::heads::HeadTimer;
use super::http2;
use super::listen::{Answers, Limits, Patience, Peer};
use super::socket::Socket;
use super::tls::Tls;
use crate::telemetry;

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
    /// For how long clients may take.
    pub patience: Patience,
    /// Ends connections when they have answered what they were asked.
    pub drain: CancellationToken,
}

impl<A: Answers> Shared<A> {
    /// For the listener of this name.
    pub fn new(
        listener: &'static str,
        answers: A,
        limits: Limits,
        drain: CancellationToken,
    ) -> Shared<A> {
        let refused = metrics::counter!(telemetry::REQUESTS_REFUSED, "listener" => listener);
        let Limits { places, patience } = limits;
        Shared { answers, places, refused, patience, drain }
    }
}

/// Answers the requests of a connection until the client, an error or the drain ends it.
pub async fn converse<A: Answers>(mut socket: Socket, peer: Peer, shared: &Arc<Shared<A>>) {
    // Both are boxed, so that a connection that holds an HTTP/1.1 poll takes no memory for them.
    match Box::pin(speaks_http2(&mut socket, shared)).await {
        Some(true) => Box::pin(http2::converse(socket, peer, shared)).await,
        Some(false) => {
            let heard = socket.heard();
            converse_http1(socket, heard, peer, shared).await;
        }
        None => {}
    }
}

/// The same with TLS, in which the client says beforehand what it speaks.
pub async fn converse_tls<A: Answers>(
    socket: Socket,
    tls: &Tls,
    peer: Peer,
    shared: &Arc<Shared<A>>,
) {
    let heard = socket.heard();
    let stream = tokio::select! {
        stream = tls.accept(socket, shared.patience.head) => stream,
        () = shared.drain.cancelled() => return,
    };
    let Some(stream) = stream else { return };
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Box::pin(http2::converse(stream, peer, shared)).await,
        _ => Box::pin(converse_http1(stream, heard, peer, shared)).await,
    }
}

/// `None` if the client goes away, says nothing for too long, or the drain begins.
async fn speaks_http2<A>(socket: &mut Socket, shared: &Shared<A>) -> Option<bool> {
    let idle = shared.patience.idle;
    tokio::select! {
        first = tokio::time::timeout(idle, socket.speaks_http2()) => first.ok()?.ok(),
        () = shared.drain.cancelled() => None,
    }
}

async fn converse_http1<A: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    heard: Arc<AtomicBool>,
    peer: Peer,
    shared: &Shared<A>,
) {
    let answers =
        service_fn(|request| shared.answers.answer(peer, request).map(Ok::<_, Infallible>));
    let connection = http1::Builder::new()
        .timer(HeadTimer { head: shared.patience.head, heard })
        .header_read_timeout(shared.patience.idle)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers);
    let mut connection = pin!(connection);
    // An error is the client's going away or its bad syntax, which hyper has answered.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
