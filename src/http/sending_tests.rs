//! Against a client on a real socket.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HeaderValue};
use futures_util::{FutureExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::http::listen::Peer;
use crate::http::socket::Writes;

type Piece = Result<Bytes, io::Error>;

async fn connected() -> (Socket, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let peer = Peer::new(address.ip());
    let writes = Writes::new("test", Duration::from_secs(60));
    (Socket::new(accepted.unwrap().0, Arc::new(peer), Arc::new(writes)), client.unwrap())
}

fn answer(pieces: impl stream::Stream<Item = Piece> + Send + 'static) -> Response<Body> {
    let mut answer = Response::new(Body::from_stream(pieces));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

/// An answer whose pieces are told one by one.
fn told() -> (mpsc::UnboundedSender<Piece>, Response<Body>) {
    let (tell, told) = mpsc::unbounded_channel();
    let pieces = stream::unfold(told, async |mut told| told.recv().await.map(|one| (one, told)));
    (tell, answer(pieces))
}

/// The body in these chunks, and whether it is said to be whole.
fn body(mut chunks: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = chunks.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let size = std::str::from_utf8(&chunks[..line]).unwrap();
        let (size, begin) = (usize::from_str_radix(size, 16).unwrap(), line + 2);
        let end = begin + size;
        assert_eq!(&chunks[end..end + 2], b"\r\n");
        if size == 0 {
            assert_eq!(chunks.len(), end + 2, "nothing comes after the end");
            return (body, true);
        }
        body.extend_from_slice(&chunks[begin..end]);
        chunks = &chunks[end + 2..];
    }
}

fn split(read: &[u8]) -> (String, &[u8]) {
    let end = read.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8(read[..end].to_vec()).unwrap(), &read[end..])
}

async fn read_until(client: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        assert_ne!(client.read_buf(&mut read).await.unwrap(), 0, "it goes on");
    }
    read
}

#[tokio::test]
async fn the_whole_body_arrives_however_its_pieces_are_cut() {
    let (mut socket, mut client) = connected().await;
    let sizes = (0..3_000_usize).map(|n| n * 7_919 % 4_001 * (n % 3));
    let pieces: Vec<Bytes> = sizes.map(|size| vec![size as u8; size].into()).collect();
    let expected = pieces.concat();
    let answer = answer(stream::iter(pieces.into_iter().map(Ok)));
    let sending = tokio::spawn(async move { Sending::new(&mut socket, answer, false).await });
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    let (head, chunks) = split(&read);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"), "{head}");
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\ndate: "), "{head}");
    assert!(body(chunks) == (expected, true));
    assert!(sending.await.unwrap());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_ended() {
    let (mut socket, mut client) = connected().await;
    let (tell, answer) = told();
    let sending = tokio::spawn(async move { Sending::new(&mut socket, answer, false).await });
    tell.send(Ok("some".into())).unwrap();
    let mut read = read_until(&mut client, b"some\r\n").await;
    tell.send(Ok("more".into())).unwrap();
    tell.send(Err(io::ErrorKind::Other.into())).unwrap();
    assert!(!sending.await.unwrap());
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(body(split(&read).1), (b"somemore".to_vec(), false));
}

#[tokio::test]
async fn it_ends_when_its_client_leaves() {
    let (mut socket, mut client) = connected().await;
    let (tell, answer) = told();
    let sending = tokio::spawn(async move { Sending::new(&mut socket, answer, false).await });
    tell.send(Ok("some".into())).unwrap();
    read_until(&mut client, b"some\r\n").await;
    drop(client);
    assert!(!sending.await.unwrap());
    tell.closed().await;
}

#[tokio::test]
async fn what_a_client_sends_meanwhile_is_left_for_what_comes_after_it() {
    let (mut socket, mut client) = connected().await;
    let (tell, answer) = told();
    tell.send(Ok("some".into())).unwrap();
    let sending = tokio::spawn(async move {
        let sent = Sending::new(&mut socket, answer, false).await;
        (sent, socket)
    });
    read_until(&mut client, b"some\r\n").await;
    client.write_all(b"What is it?").await.unwrap();
    tell.send(Ok("more".into())).unwrap();
    read_until(&mut client, b"more\r\n").await;
    drop(tell);
    assert_eq!(read_until(&mut client, b"0\r\n\r\n").await, b"0\r\n\r\n");
    let (sent, mut socket) = sending.await.unwrap();
    assert!(sent);
    let mut left = [0; 11];
    socket.read_exact(&mut left).await.unwrap();
    assert_eq!(&left, b"What is it?");
}

#[tokio::test]
async fn little_is_kept_for_a_client_that_takes_nothing() {
    let (mut socket, _client) = connected().await;
    let piece = Bytes::from_static(&[b'x'; 10_000]);
    let endless = stream::repeat_with(move || Ok(piece.clone()));
    let mut sending = Sending::new(&mut socket, answer(endless), false);
    // Each time it is asked anew it would be given more otherwise.
    for _ in 0..10_000 {
        assert!((&mut sending).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let kept: usize = sending.unsent.iter().map(Bytes::len).sum();
    assert!((1..100_000).contains(&kept), "{kept}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_when_the_body_breaks_off() {
    let (mut socket, _client) = connected().await;
    let (tell, answer) = told();
    let mut sending = Sending::new(&mut socket, answer, false);
    let mut full = 0;
    while full < 1_000 {
        assert!((&mut sending).now_or_never().is_none());
        match sending.unsent.is_empty() {
            true => tell.send(Ok(Bytes::from_static(&[b'x'; 10_000]))).unwrap(),
            false => full += 1,
        }
        tokio::task::yield_now().await;
    }
    tell.send(Err(io::ErrorKind::Other.into())).unwrap();
    assert!(!sending.await);
}

#[tokio::test]
async fn a_body_whose_length_is_known_is_sent_as_it_is() {
    for (closes, mark) in [(false, ""), (true, "connection: close\r\n")] {
        let (mut socket, mut client) = connected().await;
        let whole = Bytes::from(vec![b'x'; 3_000_000]);
        let answer = Response::new(Body::from(whole.clone()));
        let sending = tokio::spawn(async move {
            let sent = Sending::new(&mut socket, answer, closes).await;
            (sent, socket.poll_gone(&mut Context::from_waker(std::task::Waker::noop())).is_ready())
        });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        let (head, body) = split(&read);
        let start = format!("HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n{mark}date: ");
        assert!(head.starts_with(&start), "{head}");
        assert!(body == whole);
        assert_eq!(sending.await.unwrap(), (true, false), "the client is there");
    }
}

/// A body that is not as long as it says.
struct Lying(&'static str);

impl axum::body::HttpBody for Lying {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, io::Error>>> {
        let data = std::mem::take(&mut self.0);
        let data = (!data.is_empty())
            .then(|| hyper::body::Frame::data(Bytes::from_static(data.as_bytes())));
        Poll::Ready(data.map(Ok))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(4)
    }
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_was_said_breaks_off() {
    for (text, whole) in [("four", true), ("one", false), ("seven", false), ("", false)] {
        let (mut socket, _client) = connected().await;
        let answer = Response::new(Body::new(Lying(text)));
        assert_eq!(Sending::new(&mut socket, answer, false).await, whole, "{text}");
    }
}
