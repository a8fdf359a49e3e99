//! How a task writes a stream (`streams-and-sessions.md`, 4.2 and 4.4): it asks the gateway for leave, which
//! names a place and a token, and appends there in one HTTP/2 session. As the SDK does it, in small.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, Method, Request, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use s2_api::v1::stream::proto::{AppendAck, AppendInput, AppendRecord};
use s2_api::v1::stream::s2s::{CompressionAlgorithm, FrameDecoder, SessionMessage};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::codec::Decoder as _;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a stream may be written, and with what.
pub(super) struct Leave {
    endpoint: Url,
    basin: String,
    stream: String,
    token: String,
}

impl Leave {
    /// Asks this gateway for leave to write a stream of a run.
    pub(super) async fn ask(
        gateway: SocketAddr,
        key: &str,
        run: &str,
        stream: &str,
    ) -> io::Result<Leave> {
        let socket = TokioIo::new(TcpStream::connect(gateway).await?);
        let (mut client, connection) = http1::handshake(socket).await.map_err(io::Error::other)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/realtime/v1/streams/{run}/self/{stream}"))
            .header(HOST, gateway.to_string())
            .header(AUTHORIZATION, format!("Bearer {key}"))
            .body(Body::empty());
        let answer = client.send_request(request.map_err(io::Error::other)?);
        let answer = in_time(answer).await?.map_err(io::Error::other)?;
        succeeded(&answer)?;
        Leave::of(answer.headers())
    }

    fn of(headers: &HeaderMap) -> io::Result<Leave> {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no {name}")))
        };
        Ok(Leave {
            endpoint: text("x-s2-endpoint")?.parse().map_err(io::Error::other)?,
            basin: text("x-s2-basin")?,
            stream: text("x-s2-stream-name")?,
            token: text("x-s2-access-token")?,
        })
    }
}

/// A session that is open.
pub(super) struct AppendSession {
    frames: mpsc::Sender<Bytes>,
    answers: BodyDataStream,
    unread: BytesMut,
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl AppendSession {
    /// Connects, by HTTP/2 with prior knowledge, and begins.
    pub(super) async fn open(leave: &Leave) -> io::Result<AppendSession> {
        let Leave { endpoint, basin, stream, token } = leave;
        let addresses = endpoint.socket_addrs(|| None)?;
        let socket = TokioIo::new(TcpStream::connect(&*addresses).await?);
        let handshake = http2::handshake(TokioExecutor::new(), socket);
        let (mut client, connection) = handshake.await.map_err(io::Error::other)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let (frames, mut next) = mpsc::channel(1);
        let body = async_stream::stream! {
            while let Some(frame) = next.recv().await {
                yield Ok::<Bytes, io::Error>(frame);
            }
        };
        let stream = utf8_percent_encode(stream, NON_ALPHANUMERIC);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{endpoint}/streams/{stream}/records"))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header("s2-basin", basin)
            .header(CONTENT_TYPE, "s2s/proto")
            .header(ACCEPT, "application/protobuf")
            .body(Body::from_stream(body));
        let answer = client.send_request(request.map_err(io::Error::other)?);
        let answer = in_time(answer).await?.map_err(io::Error::other)?;
        succeeded(&answer)?;
        let answers = Body::new(answer.into_body()).into_data_stream();
        Ok(AppendSession { frames, answers, unread: BytesMut::new(), _connection: connection })
    }

    /// Appends one record, and returns when it is acknowledged.
    pub(super) async fn append(&mut self, body: String) -> io::Result<()> {
        let record = AppendRecord { body: body.into(), ..AppendRecord::default() };
        let input = AppendInput { records: vec![record], ..AppendInput::default() };
        let frame = SessionMessage::regular(CompressionAlgorithm::None, &input)?.encode();
        let gone = |_| io::Error::other("the session has ended");
        self.frames.send(frame).await.map_err(gone)?;
        match in_time(self.answer()).await?? {
            Some(SessionMessage::Regular(ack)) => ack.try_into_proto::<AppendAck>().map(drop),
            Some(SessionMessage::Terminal(end)) => Err(io::Error::other(end.body)),
            None => Err(io::Error::other("the session was ended")),
        }
    }

    /// Ends it, and returns when the gateway has, too.
    pub(super) async fn close(mut self) -> io::Result<()> {
        self.frames = mpsc::channel(1).0;
        in_time(self.answer()).await?.map(drop)
    }

    async fn answer(&mut self) -> io::Result<Option<SessionMessage>> {
        loop {
            if let Some(message) = FrameDecoder.decode(&mut self.unread)? {
                return Ok(Some(message));
            }
            match self.answers.next().await {
                Some(piece) => self.unread.extend_from_slice(&piece.map_err(io::Error::other)?),
                None => return Ok(None),
            }
        }
    }
}

fn succeeded<B>(answer: &Response<B>) -> io::Result<()> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(io::Error::other(format!("the gateway answers {status}")))
}

async fn in_time<F: Future>(work: F) -> io::Result<F::Output> {
    tokio::time::timeout(PATIENCE, work).await.map_err(io::Error::from)
}
