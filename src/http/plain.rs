//! Plain requests: what polls and readers of streams ask over HTTP/1.1, without a body. They are answered
//! here, since hyper keeps two buffers of 8 KiB for each connection and goes through them for each request.
//! What is not plain is left unread, for hyper.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
    UPGRADE,
};
use axum::http::{Method, Request, Response, Uri, Version};
use bytes::Bytes;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::connection::Shared;
use super::listen::Answers;
use super::sending::Sending;
use super::socket::Socket;

/// A head that is longer is hyper's.
const ROOM: usize = 8 * 1024;
/// As many as hyper takes.
const MAX_FIELDS: usize = 100;

/// Why there is nothing more to do here.
pub enum Left {
    /// The connection is to be closed.
    Over,
    /// The client said something else, which the socket gives out again.
    Unread {
        /// Whether it is the first that the client has said.
        first: bool,
    },
}

/// Answers plain requests, `asked` before those that are read, until the client, the drain or silence ends
/// the connection, or something else is asked.
pub async fn converse<A: Answers>(
    socket: &mut Socket,
    shared: &Shared<A>,
    mut asked: Option<Box<Request<Body>>>,
) -> Left {
    let address = socket.peer().address;
    let mut first = asked.is_none();
    let look = pin!(tokio::time::sleep(shared.patience.idle));
    let drained = pin!(shared.drain.cancelled());
    let mut wait = Wait {
        idle: shared.patience.idle,
        drain: &shared.drain,
        until: None,
        look,
        drained,
        is_watched: false,
    };
    // Takes the box, which would last as long as the answer else.
    let begin = |request: Box<Request<Body>>| shared.answers.answer(address, *request);
    loop {
        let request = match asked.take() {
            Some(request) => request,
            None => match poll_fn(|cx| hear(socket, &mut wait, cx)).await {
                Heard::Request(request) => request,
                Heard::Other => return Left::Unread { first },
                Heard::Nothing => return Left::Over,
            },
        };
        (first, wait.until) = (false, None);
        let answer = {
            let mut answer = pin!(begin(request));
            poll_fn(|cx| attend(socket, answer.as_mut(), cx)).await
        };
        let Some(answer) = answer else { return Left::Over };
        let closes = shared.drain.is_cancelled();
        let sent = Sending::new(socket, answer, closes).await;
        if !sent || closes {
            return Left::Over;
        }
    }
}

/// Works on an answer; `None` once its client has gone.
fn attend(
    socket: &mut Socket,
    answer: Pin<&mut impl Future<Output = Response<Body>>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Response<Body>>> {
    match answer.poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => socket.poll_gone(cx).map(|()| None),
    }
}

enum Heard {
    Request(Box<Request<Body>>),
    /// Something that is to be read by somebody else.
    Other,
    /// Nothing more will come, or it is not waited for.
    Nothing,
}

/// No `async fn`: the room for what is read is nobody's while a client says nothing.
fn hear(socket: &mut Socket, wait: &mut Wait<'_, '_>, cx: &mut Context<'_>) -> Poll<Heard> {
    let mut room = [const { MaybeUninit::uninit() }; ROOM];
    let mut room = ReadBuf::uninit(&mut room);
    match Pin::new(&mut *socket).poll_read(cx, &mut room) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(_)) => return Poll::Ready(Heard::Nothing),
        Poll::Pending => return wait.poll_over(cx).map(|()| Heard::Nothing),
    }
    let read = room.filled();
    Poll::Ready(match request(read) {
        _ if read.is_empty() => Heard::Nothing,
        Some((request, len)) => {
            socket.give_back(&read[len..]);
            Heard::Request(Box::new(request))
        }
        None => {
            socket.give_back(read);
            Heard::Other
        }
    })
}

/// The request at the beginning of what was read, if it is a plain one and whole, and its length.
fn request(read: &[u8]) -> Option<(Request<Body>, usize)> {
    let method = match read {
        [b'G', b'E', b'T', b' ', b'/', ..] => Method::GET,
        // What a browser asks before it asks.
        _ if read.starts_with(b"OPTIONS /") => Method::OPTIONS,
        _ => return None,
    };
    // Names, values and path are parts of this copy, which goes with the last of them.
    let read = Bytes::copy_from_slice(read);
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let parsed = head.parse_with_uninit_headers(&read, &mut fields).ok()?;
    let httparse::Status::Complete(len) = parsed else { return None };
    if head.version != Some(1) {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in &*head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
            return None;
        }
        headers.append(name, HeaderValue::from_maybe_shared(read.slice_ref(field.value)).ok()?);
    }
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_maybe_shared(read.slice_ref(head.path?.as_bytes())).ok()?;
    *request.headers_mut() = headers;
    is_plain(&request).then_some((request, len))
}

/// Whether a request that was read by whomever is one for this module: it has no body, and wants nothing of
/// its connection. Some clients take any end for a clean one where the connection was to be closed.
pub fn is_plain<B: HttpBody>(request: &Request<B>) -> bool {
    let wants_more = |(name, value): (&HeaderName, &HeaderValue)| match name {
        name if name == CONNECTION => !value.as_bytes().eq_ignore_ascii_case(b"keep-alive"),
        name => name == EXPECT || name == UPGRADE,
    };
    request.version() == Version::HTTP_11
        && matches!(*request.method(), Method::GET | Method::OPTIONS)
        && request.body().is_end_stream()
        && !request.headers().iter().any(wants_more)
}

/// The wait for a request, for as long as a client may be silent.
///
/// What can end it is looked at as seldom as possible: timer and drain are watched from the first wait on, and
/// wake the task by themselves. So they are to be polled by one task, and not by way of wakers of its own.
struct Wait<'a, 'd> {
    idle: Duration,
    drain: &'d CancellationToken,
    /// The end of the present wait.
    until: Option<Instant>,
    /// A time at which to look at `until`.
    look: Pin<&'a mut Sleep>,
    drained: Pin<&'a mut WaitForCancellationFuture<'d>>,
    is_watched: bool,
}

impl Wait<'_, '_> {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + self.idle);
        if now >= until || self.drain.is_cancelled() {
            return Poll::Ready(());
        }
        if !self.is_watched {
            self.is_watched = true;
            // Nothing was spent on it, so it is watched whatever the task has spent.
            if pin!(unconstrained(self.drained.as_mut())).poll(cx).is_ready() {
                return Poll::Ready(());
            }
        } else if now < self.look.deadline() {
            return Poll::Pending;
        }
        self.look.as_mut().reset(until);
        pin!(unconstrained(self.look.as_mut())).poll(cx)
    }
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
