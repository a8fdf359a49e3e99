//! A long-poll client over HTTP/1.1 that costs little: one buffer, one request text, no HTTP library.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::{Framing, Head, join_chunks};
use crate::layout::Target;
use crate::poll::{Cursor, HEADERS};
use crate::runs;
use crate::subscriber::{Crowd, Next, PAUSE, Subscriber, conclude};

/// No answer is longer; more is a server gone wrong.
const LONGEST_ANSWER: usize = 64 << 20;

/// The text of a client's requests.
pub struct Requests {
    headers: Vec<u8>,
    text: Vec<u8>,
}

impl Requests {
    /// To the server at `address`, by who holds this secret key or public token.
    pub fn new(address: SocketAddr, bearer: &str) -> Requests {
        let mut headers = format!(
            " HTTP/1.1\r\nhost: {address}\r\nconnection: keep-alive\r\nauthorization: Bearer {bearer}\r\n"
        );
        for (name, value) in HEADERS {
            headers.push_str(&format!("{name}: {value}\r\n"));
        }
        headers.push_str("\r\n");
        Requests { headers: headers.into_bytes(), text: Vec::with_capacity(768) }
    }

    /// The whole request of the next poll.
    pub fn poll(&mut self, target: &Target, cursor: &Cursor) -> &[u8] {
        self.text.clear();
        self.text.extend_from_slice(b"GET ");
        cursor.write_to(target, &mut self.text);
        self.text.extend_from_slice(&self.headers);
        &self.text
    }
}

/// Follows one feed until the task is aborted or the server gives a reason to stop.
pub async fn subscribe(crowd: Arc<Crowd>, target: Target) {
    conclude(&crowd.ledger, follow(&crowd, target).await);
}

async fn follow(crowd: &Crowd, target: Target) -> Result<()> {
    let mut subscriber = Subscriber::admitted(crowd, target).await?;
    let mut requests = Requests::new(crowd.address, runs::SECRET_KEY);
    loop {
        if let Ok(mut stream) = TcpStream::connect(crowd.address).await {
            stream.set_nodelay(true)?;
            converse(&mut stream, &mut subscriber, &mut requests).await?;
        }
        subscriber.disconnected()?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Polls over one connection until that ends.
async fn converse(
    stream: &mut TcpStream,
    subscriber: &mut Subscriber<'_>,
    requests: &mut Requests,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(2048);
    while stream.write_all(requests.poll(&subscriber.target, &subscriber.cursor)).await.is_ok() {
        subscriber.sent();
        let take = |head: &Head, body: &[u8]| subscriber.take(head, body);
        match read_answer(stream, &mut buffer, take).await? {
            Some(Next::Poll) => {}
            Some(Next::Pause) => tokio::time::sleep(PAUSE).await,
            None => break,
        }
    }
    Ok(())
}

/// Reads one whole answer and shows it to `take`; `None` if the connection ended before the answer did.
pub async fn read_answer<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    take: impl FnOnce(&Head, &[u8]) -> Result<T>,
) -> Result<Option<T>> {
    buffer.clear();
    // Until the head is there nothing is known about the length.
    let mut wanted = 0;
    loop {
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
        if buffer.len() < wanted {
            continue;
        }
        if buffer.len() > LONGEST_ANSWER {
            bail!("an answer of more than {LONGEST_ANSWER} bytes");
        }
        let Some(head) = Head::read(buffer) else { continue };
        let joined;
        let (body, end) = match head.framing {
            Framing::Length(length) => {
                wanted = head.body_start + length;
                match buffer.get(head.body_start..wanted) {
                    Some(body) => (body, wanted),
                    None => continue,
                }
            }
            Framing::Chunked => match join_chunks(&buffer[head.body_start..]) {
                Some((body, taken)) => {
                    joined = body;
                    (&joined[..], head.body_start + taken)
                }
                None => continue,
            },
        };
        if buffer.len() != end {
            bail!("{} bytes after the end of an answer", buffer.len() - end);
        }
        return take(&head, body).map(Some);
    }
}
