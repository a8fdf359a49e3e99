//! Answers of events that last, sent over HTTP/1.1 without hyper, which keeps a buffer for what it reads
//! and one for what it writes on each connection: four times what such a reader takes otherwise.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use axum::body::{Body, HttpBody};
use axum::http::header::CONNECTION;
use axum::http::response::Parts;
use axum::http::{HeaderValue, Method, Request, Response, Version};
use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::io::AsyncWrite as _;

use super::socket::Socket;

/// How many pieces of a body are put together into a chunk, at most.
const PIECES: usize = 16;
/// With so many bytes no more are added to a chunk.
const ENOUGH: usize = 32 * 1024;
/// Beside those of the body: the head, the chunk's size and its end.
const SLICES: usize = PIECES + 3;

/// The mark, among an answer's extensions, of one that lasts. Its body must end or break off when the
/// drain begins.
#[derive(Clone, Copy, Debug)]
pub struct Lasts;

/// An answer that lasts, to be sent when hyper has let go of its connection.
#[derive(Debug)]
pub struct Lasting {
    /// The answer.
    pub answer: Box<Response<Body>>,
    /// Whether the client may ask again after it.
    pub again: bool,
}

/// Where an answer that lasts is put.
#[derive(Debug, Default)]
pub struct Taken(Mutex<Option<Box<Response<Body>>>>);

/// What hyper is told, so that it lets go.
#[derive(Debug, thiserror::Error)]
#[error("the answer is sent by other means")]
pub struct TakenOver;

impl Taken {
    /// Whether an answer to this request could be sent without hyper. Some clients take any end for a
    /// clean one where the connection was to be closed.
    pub fn could(request: &Request<impl HttpBody>) -> bool {
        let plain = request.version() == Version::HTTP_11 && request.method() == Method::GET;
        let closes = || request.headers().get_all(CONNECTION).iter().any(closes);
        plain && request.body().is_end_stream() && !closes()
    }

    /// Takes the answer if it lasts.
    pub fn take(&self, answer: Response<Body>) -> Result<Response<Body>, TakenOver> {
        if answer.extensions().get::<Lasts>().is_none() {
            return Ok(answer);
        }
        *self.0.lock() = Some(Box::new(answer));
        Err(TakenOver)
    }

    /// What was taken, while this much of what the client sent has been read and not looked at.
    pub fn lasting(&self, unread: &[u8]) -> Option<Lasting> {
        let answer = self.0.lock().take()?;
        Some(Lasting { answer, again: unread.is_empty() })
    }
}

fn closes(connection: &HeaderValue) -> bool {
    let named = connection.to_str().unwrap_or("close");
    named.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// An answer on its way. Says whether its whole body has been sent: else the body or the connection broke
/// off, and the client must not take what it has for whole.
#[derive(Debug)]
pub struct Sending<'a> {
    socket: &'a mut Socket,
    body: Body,
    /// What the socket has not taken.
    unsent: VecDeque<Bytes>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flows,
    /// All that is left is in `unsent`.
    Ended,
    /// It broke off.
    Broken,
}

impl Sending<'_> {
    /// Of this answer to this client.
    pub fn new(socket: &mut Socket, answer: Response<Body>) -> Sending<'_> {
        let (parts, body) = answer.into_parts();
        let unsent = VecDeque::from([head(&parts)]);
        Sending { socket, body, unsent, state: State::Flows }
    }

    /// Whether what the client has not taken yet is little. The body is asked for more then, since it
    /// may have broken off.
    fn has_room(&self) -> bool {
        let size: usize = self.unsent.iter().map(Bytes::len).sum();
        self.unsent.len() < PIECES && size < ENOUGH
    }

    /// Takes what the body has, as one chunk.
    fn gather(&mut self, cx: &mut Context<'_>) {
        let (mut pieces, mut size) = (0, 0);
        // The chunk's size comes before it, and is known after it.
        let line = self.unsent.len();
        while self.state == State::Flows && pieces < PIECES && size < ENOUGH {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.state = State::Ended,
                Poll::Ready(Some(Err(_))) => self.state = State::Broken,
                Poll::Ready(Some(Ok(frame))) => {
                    // An empty chunk would be the end.
                    if let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) {
                        size += data.len();
                        pieces += 1;
                        self.unsent.push_back(data);
                    }
                }
            }
        }
        if size > 0 {
            self.unsent.insert(line, Bytes::from(format!("{size:x}\r\n")));
            self.unsent.push_back(Bytes::from_static(b"\r\n"));
        }
        if self.state == State::Ended {
            self.unsent.push_back(Bytes::from_static(b"0\r\n\r\n"));
        }
    }

    /// Ready when all has been taken, or cannot be.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let len = self.unsent.len().min(SLICES);
            for (slice, piece) in slices.iter_mut().zip(&self.unsent) {
                *slice = IoSlice::new(piece);
            }
            let socket = Pin::new(&mut *self.socket);
            let mut written = ready!(socket.poll_write_vectored(cx, &slices[..len]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            while let Some(first) = self.unsent.front_mut().filter(|_| written > 0) {
                let taken = written.min(first.len());
                first.advance(taken);
                written -= taken;
                if first.is_empty() {
                    self.unsent.pop_front();
                }
            }
        }
        // Most readers wait for long, and there are many.
        self.unsent = VecDeque::new();
        Poll::Ready(Ok(()))
    }
}

impl Future for Sending<'_> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = &mut *self;
        if this.socket.poll_gone(cx).is_ready() {
            return Poll::Ready(false);
        }
        loop {
            if this.state == State::Flows && this.has_room() {
                this.gather(cx);
            }
            let waits = this.unsent.is_empty();
            match (this.flush(cx), this.state) {
                (Poll::Ready(Err(_)), _) | (_, State::Broken) => return Poll::Ready(false),
                (Poll::Pending, _) => return Poll::Pending,
                (Poll::Ready(Ok(())), State::Ended) => return Poll::Ready(true),
                (Poll::Ready(Ok(())), State::Flows) if waits => return Poll::Pending,
                (Poll::Ready(Ok(())), State::Flows) => {}
            }
        }
    }
}

/// The status line and headers.
fn head(parts: &Parts) -> Bytes {
    let mut head = format!("HTTP/1.1 {}\r\n", parts.status).into_bytes();
    for (name, value) in &parts.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    let date = httpdate::HttpDate::from(SystemTime::now());
    head.extend(format!("transfer-encoding: chunked\r\ndate: {date}\r\n\r\n").into_bytes());
    head.into()
}

#[cfg(test)]
#[path = "lasting_tests.rs"]
mod tests;
