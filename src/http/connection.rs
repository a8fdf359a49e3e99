//! One connection: HTTP/1.1 or HTTP/2, by what the client says first.

use std::pin::pin;
use std::sync::Arc;

use axum::http::Request;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::{Counter, Gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::heads::{HeadTimer, silence};
use super::http2;
use super::lasting::{Lasting, Taken};
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

/// Answers the requests of a connection until the client, an error or the drain ends it, or until there is
/// an answer that lasts, which is to be sent then.
///
/// The socket is lent, since each future that it is handed down through would have room for it.
pub async fn converse<A: Answers>(socket: &mut Socket, shared: &Arc<Shared<A>>) -> Option<Lasting> {
    // All else is boxed, so that a connection that holds an HTTP/1.1 poll takes no memory for it.
    if let Some(tls) = &shared.tls {
        Box::pin(converse_tls(socket, tls, shared)).await;
        return None;
    }
    let peer = socket.peer();
    if Box::pin(speaks_http2(socket, shared)).await? {
        Box::pin(http2::converse(socket, peer, shared)).await;
        return None;
    }
    let lasting = converse_http1(&mut *socket, peer, shared, true).await;
    // The end of an earlier answer is lost with hyper's buffer if the socket has not taken it.
    lasting.filter(|_| !socket.is_stalled())
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
        _ => drop(converse_http1(stream, peer, shared, false).await),
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

/// Returns as well when there is an answer that lasts, if those are taken.
async fn converse_http1<A: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Arc<Peer>,
    shared: &Shared<A>,
    takes: bool,
) -> Option<Lasting> {
    let taken = Taken::default();
    let answers = service_fn(|request: Request<Incoming>| {
        let taken = (takes && Taken::could(&request)).then_some(&taken);
        let answer = shared.answers.answer(peer.address, request);
        answer.map(move |answer| match taken {
            Some(taken) => taken.take(answer),
            None => Ok(answer),
        })
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
        _ = &mut connection => return taken.lasting(&connection.into_parts().read_buf),
        () = silence.as_mut() => return None,
        () = shared.drain.cancelled() => std::pin::Pin::new(&mut connection).graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = &mut connection => {}
        () = silence => {}
    }
    taken.lasting(&connection.into_parts().read_buf)
}
