//! The accept loop. Its own, since `axum::serve` takes twice the memory per held connection.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry;

/// Connections that the kernel keeps for us while we are busy: a wave of reconnecting clients.
const BACKLOG: u32 = 8_192;
/// For how long a connection may take to send a request's head, and may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The most that a request's line and headers may take, in bytes; more is answered with a 431.
const MAX_HEAD: usize = 32 * 1024;
/// How long accepting rests when the process has no descriptor left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// Binds the address; port 0 takes a free one.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections until `drain`, then lets each finish what it is answering and returns.
///
/// Above `max_connections` new ones are closed at once and counted: clients come back by themselves.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    routes: Router,
    max_connections: usize,
    drain: CancellationToken,
) {
    let connections = TaskTracker::new();
    let open = metrics::gauge!(telemetry::CONNECTIONS, "listener" => name);
    let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(DESCRIPTOR_PAUSE).await;
                    continue;
                }
            },
            () = drain.cancelled() => break,
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics::counter!(telemetry::CONNECTIONS_REFUSED, "listener" => name).increment(1);
            continue;
        };
        let (routes, drain, open) = (routes.clone(), drain.clone(), open.clone());
        connections.spawn(async move {
            open.increment(1.0);
            converse(stream, routes, drain).await;
            open.decrement(1.0);
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn converse(stream: TcpStream, routes: Router, drain: CancellationToken) {
    // Without it a small answer may wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    // An error is the client's going away or its bad syntax, which hyper has answered.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
