//! The accept loop. Its own, since `axum::serve` takes twice the memory per held connection.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use futures_util::FutureExt as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::connection::{self, Shared};
use super::heads::Silence;
use super::socket::{Socket, Writes};
use super::tls::Tls;
use crate::telemetry;

/// Connections that the kernel keeps for us while we are busy: a wave of reconnecting clients.
const BACKLOG: u32 = 8_192;
/// What the kernel may keep of our answers for one client, in bytes; Linux takes twice that much
/// memory for it. By itself it would go up to 4 MiB for a client that reads nothing. An answer that is
/// longer waits as a reference to a body that others share.
const SEND_BUFFER: u32 = 64 * 1024;
/// How long accepting rests when the process has no descriptor left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// The client's address, or that of a proxy before it.
    pub address: IpAddr,
    /// Set by the socket whenever something was read; see [`super::heads::HeadTimer`].
    pub heard: AtomicBool,
    /// Whether something that was written waits for the client to take it.
    pub stalled: AtomicBool,
    /// For how long it may go on saying nothing to hyper.
    pub silence: Silence,
}

impl Peer {
    /// Of whom nothing has been heard yet.
    pub fn new(address: IpAddr) -> Peer {
        let (heard, stalled) = (AtomicBool::new(false), AtomicBool::new(false));
        Peer { address, heard, stalled, silence: Silence::default() }
    }
}

/// What answers the requests of a listener.
pub trait Answers: Clone + Send + Sync + 'static {
    /// The answer, whatever happens, to a request from this address.
    fn answer(
        &self,
        peer: IpAddr,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<Self>;
}

impl Answers for Router {
    fn answer(
        &self,
        _: IpAddr,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        self.clone().oneshot(request).map(|Ok(response): Result<_, Infallible>| response)
    }
}

/// What bounds a listener's connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Places for connections that are served at once; listeners may share them. Of the requests that
    /// are at work at once on one HTTP/2 connection, every further one takes another.
    pub places: Arc<Semaphore>,
    /// For how long clients may take.
    pub patience: Patience,
}

/// For how long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To take something of what is written to it.
    pub write: Duration,
    /// To send a request's line and headers once it has begun, and for a TLS handshake.
    pub head: Duration,
    /// To ask something, from the start or between requests.
    pub idle: Duration,
}

/// Binds the address; port 0 takes a free one. Accepted sockets inherit what is set here.
///
/// A client that has been silent for `silence` is asked by the kernel whether it is there, and given up
/// when it has said nothing for half as long again. Else one that vanished would keep the place of the
/// poll that is held for it, and an answer would be offered to it for a quarter of an hour.
pub fn bind(address: SocketAddr, silence: Duration) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    let options = SockRef::from(&socket);
    // The kernel counts in whole seconds and takes neither 0 nor many hours.
    let probed = |after: Duration| after.clamp(Duration::from_secs(1), Duration::from_secs(3_600));
    let keepalive = TcpKeepalive::new().with_time(probed(silence));
    options.set_tcp_keepalive(&keepalive.with_interval(probed(silence / 3)))?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(silence * 3 / 2))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A connection's place, and that it is counted.
struct Open<A> {
    shared: Arc<Shared<A>>,
    _place: OwnedSemaphorePermit,
}

impl<A> Open<A> {
    fn begin(shared: &Arc<Shared<A>>, place: OwnedSemaphorePermit) -> Open<A> {
        shared.open.increment(1.0);
        Open { shared: Arc::clone(shared), _place: place }
    }
}

impl<A> Drop for Open<A> {
    fn drop(&mut self) {
        self.shared.open.decrement(1.0);
    }
}

/// Serves connections until `drain`, then lets each finish what it is answering and returns.
///
/// Above the limit new ones are closed at once and counted: clients come back by themselves.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    answers: impl Answers,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    drain: CancellationToken,
) {
    let refused = metrics::counter!(telemetry::CONNECTIONS_REFUSED, "listener" => name);
    let places = Arc::clone(&limits.places);
    let writes = Arc::new(Writes::new(name, limits.patience.write));
    let shared = Arc::new(Shared::new(name, answers, tls, limits, drain));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(DESCRIPTOR_PAUSE).await;
                    continue;
                }
            },
            () = shared.drain.cancelled() => break,
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refused.increment(1);
            continue;
        };
        // Without it a small answer may wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let peer = Arc::new(Peer::new(address.ip()));
        let socket = Socket::new(stream, peer, Arc::clone(&writes));
        converse(socket, Open::begin(&shared, place));
    }
    drop(listener);
    shared.connections.close();
    shared.connections.wait().await;
}

/// Answers what a client asks, in a task.
fn converse<A: Answers>(mut socket: Socket, open: Open<A>) {
    let connections = open.shared.connections.clone();
    connections.spawn(async move {
        connection::converse(&mut socket, &open.shared).await;
        // Before the socket goes, so that a client that sees the end is counted no more.
        drop(open);
    });
}
