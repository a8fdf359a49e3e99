//! A client's socket: it tells which protocol the client speaks, and gives up one that takes nothing.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::listen::Peer;
use crate::telemetry;

/// What an HTTP/2 client says first (RFC 9113, 3.4). No HTTP/1.1 request begins like this.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the sockets of a listener have in common: how long a write may take, and what is counted.
#[derive(Debug)]
pub struct Writes {
    /// For how long a write may make no progress at all before its socket is cut.
    write: Duration,
    stalled: Gauge,
    cut_stalled: Counter,
    cut_dead: Counter,
}

impl Writes {
    /// That of the listener of this name.
    pub fn new(listener: &'static str, write: Duration) -> Writes {
        let cut =
            |why| metrics::counter!(telemetry::SOCKETS_CUT, "listener" => listener, "why" => why);
        Writes {
            write,
            stalled: metrics::gauge!(telemetry::SOCKETS_STALLED, "listener" => listener),
            cut_stalled: cut("stalled"),
            cut_dead: cut("dead"),
        }
    }
}

/// A connected socket. A write that makes no progress for the listener's limit fails with
/// [`ErrorKind::TimedOut`], after which what the kernel still holds for the client is thrown away.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    writes: Arc<Writes>,
    peer: Arc<Peer>,
    /// There is a timer only while a write waits: most sockets never need one.
    stall: Option<Stall>,
    /// What was read and given back, to be read again.
    unread: Vec<u8>,
    /// Whether there is something that [`Socket::poll_gone`] left unread.
    speaks: bool,
}

#[derive(Debug)]
struct Stall {
    limit: Pin<Box<Sleep>>,
    stalled: Gauge,
    peer: Arc<Peer>,
}

impl Stall {
    fn begin(writes: &Writes, peer: &Arc<Peer>) -> Stall {
        writes.stalled.increment(1.0);
        peer.stalled.store(true, Ordering::Relaxed);
        let limit = Box::pin(tokio::time::sleep(writes.write));
        Stall { limit, stalled: writes.stalled.clone(), peer: Arc::clone(peer) }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.stalled.decrement(1.0);
        self.peer.stalled.store(false, Ordering::Relaxed);
    }
}

impl Socket {
    /// Takes over an accepted stream.
    pub fn new(stream: TcpStream, peer: Arc<Peer>, writes: Arc<Writes>) -> Socket {
        Socket { stream, writes, peer, stall: None, unread: Vec::new(), speaks: false }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }

    /// What was read but is to be read by somebody else, before all that follows it.
    pub fn give_back(&mut self, read: &[u8]) {
        self.unread.splice(..0, read.iter().copied());
    }

    /// Whether the client speaks HTTP/2: reads until that is certain, at most the preface's 24 bytes,
    /// which the first reads then give out again. A client that says nothing is waited for.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        loop {
            let len = self.unread.len().min(PREFACE.len());
            if self.unread[..len] != PREFACE[..len] {
                return Ok(false);
            }
            if len == PREFACE.len() {
                return Ok(true);
            }
            self.stream.readable().await?;
            let mut more = [0; PREFACE.len()];
            match self.stream.try_read(&mut more[len..]) {
                // It has said all that it will say: HTTP/1.1 judges what there is.
                Ok(0) => return Ok(false),
                Ok(read) => self.unread.extend_from_slice(&more[len..len + read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ready once the client has ended its side of the connection, or that has broken. What it sends
    /// otherwise is left unread, and after that its end is not seen here.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.speaks || !self.unread.is_empty() {
            return Poll::Pending;
        }
        match self.stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
            Poll::Ready(Ok(1..)) => {
                self.speaks = true;
                Poll::Pending
            }
            Poll::Ready(Err(error)) => {
                self.note(&error);
                Poll::Ready(())
            }
            Poll::Ready(Ok(0)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn judge(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Pending = written else {
            self.stall = None;
            if let Poll::Ready(Err(error)) = &written {
                self.note(error);
            }
            return written;
        };
        let stall = self.stall.get_or_insert_with(|| Stall::begin(&self.writes, &self.peer));
        if stall.limit.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.stall = None;
        self.writes.cut_stalled.increment(1);
        // Else the kernel would keep what the client does not take, and go on offering it.
        let _ = self.stream.set_zero_linger();
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    /// The kernel gives up a peer that answers nothing any more; see [`super::listen::bind`].
    fn note(&self, error: &io::Error) {
        if error.kind() == ErrorKind::TimedOut {
            self.writes.cut_dead.increment(1);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled = buf.filled().len();
        let given = this.unread.len().min(buf.remaining());
        if given > 0 {
            buf.put_slice(&this.unread[..given]);
            match given == this.unread.len() {
                true => this.unread = Vec::new(),
                false => drop(this.unread.drain(..given)),
            }
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            this.note(error);
        }
        if buf.filled().len() > filled {
            this.peer.heard.store(true, Ordering::Relaxed);
            this.speaks = false;
        }
        // What follows the first bytes comes with them, or hyper would make room for a second read.
        if given > 0 { Poll::Ready(Ok(())) } else { read }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(written, cx)
    }

    /// So that a body which many answers share is written from where it lies.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
