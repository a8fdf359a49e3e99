//! A long-poll client over cleartext HTTP/2 with prior knowledge: many subscribers share a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::answer::{Framing, Head};
use crate::layout::Target;
use crate::poll::{Cursor, HEADERS};
use crate::runs;
use crate::subscriber::{Crowd, Next, PAUSE, Subscriber, conclude};

/// One side of a connection, shared by its streams.
pub type Connection = SendRequest<Empty<Bytes>>;

/// A connection that is made when the first of its subscribers comes: one on which nobody asks for
/// anything is not kept for ever.
pub struct Late {
    address: SocketAddr,
    connection: OnceCell<Connection>,
}

impl Late {
    /// To the server at `address`.
    pub fn new(address: SocketAddr) -> Arc<Late> {
        Arc::new(Late { address, connection: OnceCell::new() })
    }

    async fn get(&self) -> Result<Connection> {
        self.connection.get_or_try_init(|| connect(self.address)).await.cloned()
    }
}

/// Connects; the connection lives until the last clone of the result is gone.
pub async fn connect(address: SocketAddr) -> Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (requests, connection) = handshake.await.context("the HTTP/2 handshake failed")?;
    // Its streams notice when it breaks.
    tokio::spawn(connection);
    Ok(requests)
}

/// The request of the next poll.
pub fn request(
    address: SocketAddr,
    target: &Target,
    cursor: &Cursor,
) -> Result<Request<Empty<Bytes>>> {
    let mut text = format!("http://{address}").into_bytes();
    cursor.write_to(target, &mut text);
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from_maybe_shared(text)?;
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {}", runs::SECRET_KEY).parse()?);
    for (name, value) in HEADERS {
        headers.insert(name, value.parse()?);
    }
    Ok(request)
}

/// What polling needs to know of an answer's head.
pub fn head(status: u16, headers: &HeaderMap) -> Head<'_> {
    let value = |name| headers.get(name).map(|value| value.as_bytes());
    Head {
        status,
        body_start: 0,
        framing: Framing::Length(0),
        handle: value("electric-handle"),
        offset: value("electric-offset"),
        cursor: value("electric-cursor"),
    }
}

/// Follows one feed on a stream of the connection until the task is aborted, the server gives a
/// reason to stop, or the connection breaks.
pub async fn subscribe(crowd: Arc<Crowd>, target: Target, connection: Arc<Late>) {
    conclude(&crowd.ledger, follow(&crowd, target, &connection).await);
}

async fn follow(crowd: &Crowd, target: Target, connection: &Late) -> Result<()> {
    let mut subscriber = Subscriber::admitted(crowd, target).await?;
    let mut connection = connection.get().await?;
    loop {
        connection.ready().await.context("the connection broke")?;
        let request = request(crowd.address, &subscriber.target, &subscriber.cursor)?;
        let answer = connection.send_request(request);
        subscriber.sent();
        let (head_parts, body) = answer.await.context("a stream broke")?.into_parts();
        let body = body.collect().await.context("a stream broke")?.to_bytes();
        let head = head(head_parts.status.as_u16(), &head_parts.headers);
        if subscriber.take(&head, &body)? == Next::Pause {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
