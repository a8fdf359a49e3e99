//! One connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::heads::{HeadTimer, silence};
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
        let Limits { places, patience } = limits;
        Shared { answers, tls, places, refused, patience, drain }
    }
}

/// Answers the requests of a connection until the client, an error or the drain ends it.
///
/// The socket is lent, since each future that it is handed down through would have room for it.
pub async fn converse<A: Answers>(socket: &mut Socket, shared: &Arc<Shared<A>>) {
    // All else is boxed, so that a connection that holds an HTTP/1.1 poll takes no memory for it.
    if let Some(tls) = &shared.tls {
        return Box::pin(converse_tls(socket, tls, shared)).await;
    }
    match Box::pin(speaks_http2(socket, shared)).await {
        Some(true) => {
            let peer = socket.peer();
            Box::pin(http2::converse(socket, peer, shared)).await;
        }
        Some(false) => {
            let peer = socket.peer();
            converse_http1(socket, peer, shared).await;
        }
        None => {}
    }
}

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
        _ => converse_http1(stream, peer, shared).await,
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
    peer: Arc<Peer>,
    shared: &Shared<A>,
) {
    let answers =
        service_fn(|request| shared.answers.answer(peer.address, request).map(Ok::<_, Infallible>));
    let connection = http1::Builder::new()
        .timer(HeadTimer { head: shared.patience.head, peer: Arc::clone(&peer) })
        .header_read_timeout(shared.patience.idle)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers);
    let mut connection = pin!(connection);
    let mut silence = pin!(silence(&peer, shared.patience.idle));
    // An error is the client's going away or its bad syntax, which hyper has answered.
    // The connection first: whoever has asked in the last moment was not silent.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = silence.as_mut() => return,
        () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = connection => {}
        () = silence => {}
    }
}
