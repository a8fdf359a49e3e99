//! A long-poll client that costs little: one buffer, one request text, no HTTP library.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::answer::{Framing, Head, join_chunks, versions};
use crate::ledger::{Answer, Ledger};
use crate::runs;

/// How often a subscriber connects anew or comes again after a refusal before it gives up.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(100);
/// No answer is longer; more is a server gone wrong.
const LONGEST_ANSWER: usize = 64 << 20;

/// What all subscribers of a trial share.
pub struct Crowd {
    /// The server.
    pub address: SocketAddr,
    /// Where deliveries are entered.
    pub ledger: Arc<Ledger>,
    /// How many may be on their way to their first live poll at once.
    pub admission: Semaphore,
}

/// Where a subscriber stands: what its next poll says.
struct Cursor {
    handle: Vec<u8>,
    offset: Vec<u8>,
    cursor: Vec<u8>,
    live: bool,
}

impl Cursor {
    fn start() -> Cursor {
        Cursor { handle: Vec::new(), offset: b"-1".to_vec(), cursor: Vec::new(), live: false }
    }

    fn keep(slot: &mut Vec<u8>, value: Option<&[u8]>) {
        if let Some(value) = value {
            slot.clear();
            slot.extend_from_slice(value);
        }
    }

    fn follow(&mut self, head: &Head) {
        Cursor::keep(&mut self.handle, head.handle);
        Cursor::keep(&mut self.offset, head.offset);
        Cursor::keep(&mut self.cursor, head.cursor);
    }
}

/// Requests as SDK 4.x sends them, but without `accept-encoding`, so that bodies can be searched.
struct Requests {
    line: Vec<u8>,
    headers: Vec<u8>,
    text: Vec<u8>,
}

impl Requests {
    fn of(run: usize, address: SocketAddr) -> Requests {
        let line = format!("GET /realtime/v1/runs/{}?", runs::friendly_id(run)).into_bytes();
        let headers = format!(
            " HTTP/1.1\r\nhost: {address}\r\nconnection: keep-alive\r\n\
            authorization: Bearer {}\r\ntrigger-version: 4.8.3\r\n\
            x-trigger-electric-version: 1.0.0-beta.1\r\nx-trigger-api-version: 2025-07-16\r\n\
            accept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\n\r\n",
            runs::SECRET_KEY
        );
        Requests { line, headers: headers.into_bytes(), text: Vec::with_capacity(768) }
    }

    /// The parameters are in the order of the real client, which sorts them.
    fn poll(&mut self, at: &Cursor) -> &[u8] {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(10);
        parts.push(&self.line);
        if at.live {
            parts.extend([&b"cursor="[..], &at.cursor, b"&handle=", &at.handle, b"&live=true&"]);
        } else if !at.handle.is_empty() {
            parts.extend([&b"handle="[..], &at.handle, b"&"]);
        }
        parts.extend([&b"log=full&offset="[..], &at.offset, &self.headers]);
        self.text.clear();
        for part in parts {
            self.text.extend_from_slice(part);
        }
        &self.text
    }
}

/// Follows one run until the task is aborted or the server gives a reason to stop.
pub async fn subscribe(crowd: Arc<Crowd>, run: usize) {
    if let Err(error) = follow(&crowd, run).await {
        crowd.ledger.fault(|faults| {
            faults.failed += 1;
            faults.first_failure.get_or_insert_with(|| format!("{error:#}"));
        });
    }
}

async fn follow(crowd: &Crowd, run: usize) -> Result<()> {
    let mut requests = Requests::of(run, crowd.address);
    let mut cursor = Cursor::start();
    let mut last = None;
    let mut tries = 0;
    // Held until the first live poll is out, so that the server is not asked for all at once.
    let mut admitted = Some(crowd.admission.acquire().await.context("admission closed")?);
    loop {
        let mut stream = match TcpStream::connect(crowd.address).await {
            Ok(stream) => stream,
            Err(error) => {
                tries += 1;
                if tries > TRIES {
                    return Err(error).context("cannot connect");
                }
                crowd.ledger.fault(|faults| faults.disconnects += 1);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(2048);
        loop {
            if stream.write_all(requests.poll(&cursor)).await.is_err() {
                break;
            }
            if cursor.live && admitted.take().is_some() {
                crowd.ledger.is_live();
            }
            let Some(status) = read_answer(&mut stream, &mut buffer, |head, body| {
                let answer = if cursor.live { Answer::Live } else { Answer::Snapshot };
                if head.status == 200 {
                    let now = Instant::now();
                    let mut any = false;
                    for (_, version) in versions(body) {
                        last = Some(crowd.ledger.enter(answer, run as u32, version, last, now));
                        any = true;
                    }
                    if !any && cursor.live {
                        crowd.ledger.held_out();
                    }
                    cursor.follow(head);
                    cursor.live = true;
                } else if head.status == 409 {
                    cursor = Cursor::start();
                    Cursor::keep(&mut cursor.handle, head.handle);
                }
                (head.status >= 400 && !matches!(head.status, 409 | 429 | 503)).then(|| {
                    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
                    format!("status {}: {text}", head.status)
                })
            })
            .await?
            else {
                break;
            };
            match status {
                200 => tries = 0,
                409 => crowd.ledger.fault(|faults| faults.refetches += 1),
                _ => crowd.ledger.fault(|faults| faults.refusals += 1),
            }
            if status != 200 {
                tries += 1;
                if tries > TRIES {
                    bail!("status {status} {TRIES} times");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        crowd.ledger.fault(|faults| faults.disconnects += 1);
        tries += 1;
        if tries > TRIES {
            bail!("the connection broke {TRIES} times");
        }
    }
}

/// Reads one whole answer and shows it to `take`, which may return a reason to give up. The result is
/// the status; `None` if the connection ended before the answer did.
pub async fn read_answer(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    take: impl FnOnce(&Head, &[u8]) -> Option<String>,
) -> Result<Option<u16>> {
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
        if let Some(reason) = take(&head, body) {
            bail!(reason);
        }
        return Ok(Some(head.status));
    }
}

/// Follows a run through some changes, which `change` makes, and returns the last live answer as it was
/// on the wire, head and body.
pub async fn record_live_answer<F: Future<Output = Result<()>>>(
    address: SocketAddr,
    run: usize,
    changes: usize,
    mut change: impl FnMut() -> F,
) -> Result<Vec<u8>> {
    let mut requests = Requests::of(run, address);
    let mut cursor = Cursor::start();
    let mut stream = TcpStream::connect(address).await?;
    let mut buffer = Vec::new();
    // The first answer is the snapshot.
    for answer in 0..=changes {
        stream.write_all(requests.poll(&cursor)).await?;
        let read = read_answer(&mut stream, &mut buffer, |head, _| {
            cursor.follow(head);
            cursor.live = true;
            None
        });
        let change = async {
            if answer > 0 {
                // The poll is held first, as those of the trials are.
                tokio::time::sleep(PAUSE).await;
                change().await?;
            }
            anyhow::Ok(())
        };
        let limit = Duration::from_secs(30);
        let both = tokio::time::timeout(limit, async { tokio::join!(read, change) });
        let (status, changed) = both.await.context("no answer to record")?;
        changed?;
        anyhow::ensure!(status? == Some(200), "the answer to record was not 200");
    }
    Ok(buffer)
}
