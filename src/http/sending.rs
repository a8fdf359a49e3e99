//! Answers to plain requests, sent over HTTP/1.1 from where they lie: nothing of a body is copied.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody as _};
use axum::http::header::CONTENT_LENGTH;
use axum::http::response::Parts;
use axum::http::{Response, StatusCode};
use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite as _;

use super::socket::Socket;

/// How many pieces of a body are put together into a chunk, at most.
const PIECES: usize = 16;
/// With so many bytes no more are added to a chunk.
const ENOUGH: usize = 32 * 1024;
/// Beside those of the body: the head, the chunk's size and its end.
const SLICES: usize = PIECES + 3;
/// What most heads need, in bytes.
const HEAD: usize = 1024;

/// An answer on its way. Says whether its whole body has been sent: else the body or the connection broke
/// off, and the client must not take what it has for whole.
#[derive(Debug)]
pub struct Sending<'a> {
    socket: &'a mut Socket,
    body: Body,
    /// What the socket has not taken.
    unsent: VecDeque<Bytes>,
    framing: Framing,
    state: State,
}

/// How a client knows where an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// It has no body by its status.
    None,
    /// By its length in bytes, of which so many are to come.
    Length(u64),
    Chunked,
}

impl Framing {
    fn of(answer: &Response<Body>) -> Framing {
        match (answer.status(), answer.body().size_hint().exact()) {
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => Framing::None,
            (_, Some(length)) => Framing::Length(length),
            (_, None) => Framing::Chunked,
        }
    }
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
    /// Of this answer to this client, whose connection is closed after it if it `closes`. That is not said
    /// of chunks: some clients would take a break for their end.
    pub fn new(socket: &mut Socket, answer: Response<Body>, closes: bool) -> Sending<'_> {
        let framing = Framing::of(&answer);
        let (parts, body) = answer.into_parts();
        let mut unsent = VecDeque::with_capacity(4);
        unsent.push_back(head(&parts, framing, closes && framing != Framing::Chunked));
        let state = if framing == Framing::None { State::Ended } else { State::Flows };
        Sending { socket, body, unsent, framing, state }
    }

    /// Whether what the client has not taken yet is little. The body is asked for more then, since it
    /// may have broken off.
    fn has_room(&self) -> bool {
        let size: usize = self.unsent.iter().map(Bytes::len).sum();
        self.unsent.len() < PIECES && size < ENOUGH
    }

    /// Takes what the body has, as one chunk if it goes in chunks.
    fn gather(&mut self, cx: &mut Context<'_>) {
        let (mut pieces, mut size) = (0, 0);
        // The chunk's size comes before it, and is known after it.
        let line = self.unsent.len();
        while self.state == State::Flows && pieces < PIECES && size < ENOUGH {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                // Else the client would take the next answer for the rest of this one.
                Poll::Ready(None) if matches!(self.framing, Framing::Length(1..)) => {
                    self.state = State::Broken;
                }
                Poll::Ready(None) => self.state = State::Ended,
                Poll::Ready(Some(Err(_))) => self.state = State::Broken,
                Poll::Ready(Some(Ok(frame))) => {
                    // An empty chunk would be the end.
                    if let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) {
                        if let Framing::Length(left) = &mut self.framing {
                            let Some(rest) = left.checked_sub(data.len() as u64) else {
                                self.state = State::Broken;
                                break;
                            };
                            *left = rest;
                        }
                        size += data.len();
                        pieces += 1;
                        self.unsent.push_back(data);
                    }
                }
            }
        }
        if self.framing != Framing::Chunked {
            return;
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
        loop {
            if this.state == State::Flows && this.has_room() {
                this.gather(cx);
            }
            let waits = this.unsent.is_empty();
            match (this.flush(cx), this.state) {
                (Poll::Ready(Err(_)), _) | (_, State::Broken) => return Poll::Ready(false),
                (Poll::Ready(Ok(())), State::Ended) => return Poll::Ready(true),
                (Poll::Ready(Ok(())), State::Flows) if !waits => {}
                // What waits for body or socket ends with its client.
                _ => return this.socket.poll_gone(cx).map(|()| false),
            }
        }
    }
}

/// The status line and headers.
fn head(parts: &Parts, framing: Framing, closes: bool) -> Bytes {
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut head = Vec::with_capacity(HEAD);
    let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| head.extend_from_slice(piece));
    put(&[b"HTTP/1.1 ", parts.status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    // The router may have said the length already.
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        put(&[name.as_ref(), b": ", value.as_bytes(), b"\r\n"]);
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            put(&[b"content-length: ", length.to_string().as_bytes(), b"\r\n"]);
        }
        Framing::Chunked => put(&[b"transfer-encoding: chunked\r\n"]),
    }
    if closes {
        put(&[b"connection: close\r\n"]);
    }
    DATE.with_borrow_mut(|date| put(&[b"date: ", date.now().as_bytes(), b"\r\n\r\n"]));
    head.into()
}

thread_local! {
    static DATE: RefCell<Date> = RefCell::default();
}

/// The date in words, which are found once a second.
#[derive(Default)]
struct Date {
    second: u64,
    words: String,
}

impl Date {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if second != self.second || self.words.is_empty() {
            *self = Date { second, words: httpdate::HttpDate::from(now).to_string() };
        }
        &self.words
    }
}

#[cfg(test)]
#[path = "sending_tests.rs"]
mod tests;
