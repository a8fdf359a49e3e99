//! One connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::heads::{HeadTimer, silence};
use super::http2;
use super::listen::{Answers, Limits, Patience, Peer};
use super::plain::{self, Left, is_plain};
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
    /// What sockets are wrapped in, if they are.
    pub tls: Option<Arc<Tls>>,
    /// Places for connections, and for the requests of one that are at work beside each other.
    pub places: Arc<Semaphore>,
    /// Requests that found no place.
    pub refused: Counter,
    /// For how long clients may take.
    pub patience: Patience,
    /// Ends connections when they have answered what they were asked.
    pub drain: CancellationToken,
    /// Their tasks.
    pub connections: TaskTracker,
    /// How many there are.
    pub open: Gauge,
}

impl<A: Answers> Shared<A> {
    /// For the listener of this name.
    pub fn new(
        listener: &'static str,
        answers: A,
        tls: Option<Arc<Tls>>,
        limits: Limits,
        drain: CancellationToken,
    ) -> Shared<A> {
        let refused = metrics::counter!(telemetry::REQUESTS_REFUSED, "listener" => listener);
        let open = metrics::gauge!(telemetry::CONNECTIONS, "listener" => listener);
        let Limits { places, patience } = limits;
        let connections = TaskTracker::new();
        Shared { answers, tls, places, refused, patience, drain, connections, open }
    }
}

/// Answers the requests of a connection until the client, an error or the drain ends it.
///
/// The socket is lent, since each future that it is handed down through would have room for it.
pub async fn converse<A: Answers>(socket: &mut Socket, shared: &Arc<Shared<A>>) {
    // All but plain requests is boxed, so that a connection that holds one takes no memory for it.
    if let Some(tls) = &shared.tls {
        return Box::pin(converse_tls(socket, tls, shared)).await;
    }
    let mut asked = None;
    loop {
        match plain::converse(socket, shared, asked.take()).await {
            Left::Over => return,
            Left::Unread { first } => asked = Box::pin(others(socket, first, shared)).await,
        }
        if asked.is_none() {
            return;
        }
    }
}

/// Answers what is no plain request; returns when one has come, or with nothing at the end.
async fn others<A: Answers>(
    socket: &mut Socket,
    first: bool,
    shared: &Arc<Shared<A>>,
) -> Option<Box<Request<Body>>> {
    let peer = socket.peer();
    // Whoever has spoken HTTP/1.1 is held to it.
    if first && speaks_http2(socket, shared).await? {
        http2::converse(socket, peer, shared).await;
        return None;
    }
    let handed = HandedBack::default();
    let unread = converse_http1(&mut *socket, peer, shared, Some(&handed)).await?;
    socket.give_back(&unread);
    handed.0.into_inner()
}

/// A plain request that hyper has read, to be answered when it has let go of the connection.
#[derive(Debug, Default)]
struct HandedBack(Mutex<Option<Box<Request<Body>>>>);

/// What hyper is told, so that it lets go.
#[derive(Debug, thiserror::Error)]
#[error("the request is answered by other means")]
struct TakenOver;

/// With TLS the client says beforehand what it speaks.
async fn converse_tls<A: Answers>(socket: &mut Socket, tls: &Tls, shared: &Arc<Shared<A>>) {
    let peer = socket.peer();
    let stream = tokio::select! {
        stream = tls.accept(socket, shared.patience.head) => stream,
        () = shared.drain.cancelled() => return,
    };
    let Some(stream) = stream else { return };
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Box::pin(http2::converse(stream, peer, shared)).await,
        _ => drop(converse_http1(stream, peer, shared, None).await),
    }
}

/// Of a client that has begun to speak; `None` if it goes away, goes on too late, or the drain begins.
async fn speaks_http2<A>(socket: &mut Socket, shared: &Shared<A>) -> Option<bool> {
    let head = shared.patience.head;
    tokio::select! {
        first = tokio::time::timeout(head, socket.speaks_http2()) => first.ok()?.ok(),
        () = shared.drain.cancelled() => None,
    }
}

/// Returns what was read and not looked at. Plain requests are not answered but put there, if there is a
/// place for them, and are the last that is read.
async fn converse_http1<A: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Arc<Peer>,
    shared: &Shared<A>,
    handed: Option<&HandedBack>,
) -> Option<Bytes> {
    let answers = service_fn(|request: Request<Incoming>| {
        // What the socket has not taken of an earlier answer would be lost with hyper's buffer.
        let stalled = peer.stalled.load(Ordering::Relaxed);
        if let Some(handed) = handed.filter(|_| !stalled && is_plain(&request)) {
            let request = request.map(|_| Body::empty());
            *handed.0.lock() = Some(Box::new(request));
            return Either::Left(ready(Err(TakenOver)));
        }
        Either::Right(shared.answers.answer(peer.address, request.map(Body::new)).map(Ok))
    });
    let mut connection = http1::Builder::new()
        .timer(HeadTimer { head: shared.patience.head, peer: Arc::clone(&peer) })
        .header_read_timeout(shared.patience.idle)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers);
    let mut silence = pin!(silence(&peer, &shared.patience));
    // An error is the client's going away or its bad syntax, which hyper has answered.
    // The connection first: whoever has asked in the last moment was not silent.
    tokio::select! {
        biased;
        _ = &mut connection => return Some(connection.into_parts().read_buf),
        () = silence.as_mut() => return None,
        () = shared.drain.cancelled() => std::pin::Pin::new(&mut connection).graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = &mut connection => Some(connection.into_parts().read_buf),
        () = silence => None,
    }
}
