//! S2's append session over HTTP/2 with prior knowledge, as the SDK's client speaks it, with appends under
//! way at once.

use std::convert::Infallible;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s2_api::v1::stream::proto::{AppendAck, AppendInput, AppendRecord};
use s2_api::v1::stream::s2s::{CompressionAlgorithm, FrameDecoder, SessionMessage};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::codec::Decoder;

/// Where a stream is written, and with what.
#[derive(Clone, Debug)]
pub struct Leave {
    /// `http://…/streams/<name>/records`.
    pub url: String,
    /// The basin.
    pub basin: String,
    /// The access token.
    pub token: String,
}

/// One side of a connection that many sessions share.
pub type Connection = SendRequest<UnsyncBoxBody<Bytes, Infallible>>;

/// Connects to where this leave is for.
pub async fn connect(leave: &Leave) -> Result<Connection> {
    let url: hyper::Uri = leave.url.parse()?;
    let authority = url.authority().context("a URL without a host")?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (requests, connection) = handshake.await.context("the HTTP/2 handshake failed")?;
    // Its sessions notice when it breaks.
    tokio::spawn(connection);
    Ok(requests)
}

/// A session that is open.
pub struct Session {
    frames: mpsc::Sender<Bytes>,
    acknowledged: watch::Receiver<Result<u64, String>>,
}

impl Session {
    /// Opens one on a connection.
    pub async fn open(connection: &mut Connection, leave: &Leave) -> Result<Session> {
        let (frames, mut next) = mpsc::channel::<Bytes>(64);
        let body = StreamBody::new(async_stream::stream! {
            while let Some(frame) = next.recv().await {
                yield Ok(Frame::data(frame));
            }
        });
        let request = Request::post(&leave.url)
            .header("authorization", format!("Bearer {}", leave.token))
            .header("s2-basin", &leave.basin)
            .header("content-type", "s2s/proto")
            .header("accept", "application/protobuf")
            .body(body.boxed_unsync())?;
        connection.ready().await?;
        let answer = connection.send_request(request).await.context("no session")?;
        if !answer.status().is_success() {
            let status = answer.status();
            let said = answer.into_body().collect().await?.to_bytes();
            bail!("no session: {status}: {}", String::from_utf8_lossy(&said));
        }
        let (count, acknowledged) = watch::channel(Ok(0));
        tokio::spawn(async move {
            if let Err(error) = listen(answer.into_body(), &count).await {
                let _ = count.send_replace(Err(format!("{error:#}")));
            }
        });
        Ok(Session { frames, acknowledged })
    }

    /// Sends these records as one append.
    pub async fn append(&self, bodies: Vec<String>) -> Result<()> {
        let record = |body: String| AppendRecord { body: body.into(), ..AppendRecord::default() };
        let records = bodies.into_iter().map(record).collect();
        let input = AppendInput { records, ..AppendInput::default() };
        let frame = SessionMessage::regular(CompressionAlgorithm::None, &input)?.encode();
        if self.frames.send(frame).await.is_err() {
            // Which is told a moment later, if at all.
            self.ended().await?;
        }
        Ok(())
    }

    /// Says why it was ended.
    async fn ended(&self) -> Result<()> {
        let mut acknowledged = self.acknowledged.clone();
        let ended = acknowledged.wait_for(|count| count.is_err()).await;
        match ended.as_deref() {
            Ok(Err(error)) => bail!("the session was ended: {error}"),
            _ => bail!("the session was ended"),
        }
    }

    /// Waits until so many records of this session are acknowledged.
    pub async fn acknowledged(&mut self, records: u64) -> Result<()> {
        let enough = |count: &Result<u64, String>| count.as_ref().map_or(true, |n| *n >= records);
        let count = self.acknowledged.wait_for(enough).await.context("the session has ended")?;
        count.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error}"))
    }
}

async fn listen(mut body: Incoming, count: &watch::Sender<Result<u64, String>>) -> Result<()> {
    let mut unread = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        unread.extend_from_slice(&data);
        while let Some(message) = FrameDecoder.decode(&mut unread)? {
            let ack: AppendAck = match message {
                SessionMessage::Regular(ack) => ack.try_into_proto()?,
                SessionMessage::Terminal(end) => bail!("{}: {}", end.status, end.body),
            };
            let (start, end) = ack.start.zip(ack.end).context("an acknowledgement of nothing")?;
            count.send_modify(|count| {
                *count = count.clone().map(|n| n + end.seq_num - start.seq_num)
            });
        }
    }
    Ok(())
}
