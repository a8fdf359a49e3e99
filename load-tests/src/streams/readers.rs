//! Readers of server-sent events over HTTP/1.1 that cost little: one buffer for all of a thread's.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use memchr::memmem;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::chunk::{Mark, Scanner};
use super::tally::Tally;

/// How many may be on their way to the end of their stream at once.
const AT_ONCE: usize = 128;
const BUFFER: usize = 64 << 10;

/// What one reader is to do.
#[derive(Clone)]
pub struct Reading {
    /// The server.
    pub address: SocketAddr,
    /// Its whole request.
    pub request: Arc<[u8]>,
    /// The number of the chunk that comes first.
    pub first: u64,
    /// How many chunks it reads; for ever if not said.
    pub until: Option<u64>,
}

/// Starts readers. They leave when what is returned is dropped.
pub fn start(readings: impl IntoIterator<Item = Reading>, tally: &Arc<Tally>) -> JoinSet<()> {
    start_slowly(AT_ONCE, readings, tally)
}

/// Starts readers, at most so many of whom look for the end of their stream at once.
pub fn start_slowly(
    at_once: usize,
    readings: impl IntoIterator<Item = Reading>,
    tally: &Arc<Tally>,
) -> JoinSet<()> {
    let admission = Arc::new(Semaphore::new(at_once));
    let mut readers = JoinSet::new();
    for reading in readings {
        let (tally, admission) = (Arc::clone(tally), Arc::clone(&admission));
        readers.spawn(async move {
            if let Err(error) = follow(&reading, &tally, &admission).await {
                tally.failed(format!("{error:#}"));
            }
        });
    }
    readers
}

async fn follow(reading: &Reading, tally: &Tally, admission: &Semaphore) -> Result<()> {
    thread_local! {
        static SHARED: RefCell<(Vec<u8>, Vec<Mark>)> = RefCell::new((vec![0; BUFFER], Vec::new()));
    }
    let mut admitted = Some(admission.acquire().await?);
    let mut stream = TcpStream::connect(reading.address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&reading.request).await?;
    let (mut next, mut begun, mut scanner) = (reading.first, false, Scanner::default());
    loop {
        stream.readable().await?;
        SHARED.with_borrow_mut(|(buffer, marks)| {
            let read = match stream.try_read(buffer) {
                Ok(0) => bail!("the server ended the events"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => bail!("the connection broke: {error}"),
            };
            let piece = &buffer[..read];
            if !begun {
                let said = || String::from_utf8_lossy(&piece[..read.min(300)]).into_owned();
                ensure!(piece.starts_with(b"HTTP/1.1 200"), "{}", said());
                begun = true;
            }
            marks.clear();
            scanner.marks(piece, |mark| marks.push(mark))?;
            next = tally.enter(marks, next);
            // Whoever has everything is told that the stream lives.
            if admitted.is_some() && memmem::find(piece, b"event: ping").is_some() {
                admitted = None;
                tally.is_live();
            }
            Ok(())
        })?;
        if reading.until.is_some_and(|until| next >= reading.first + until) {
            tally.is_done();
            return Ok(());
        }
    }
}
