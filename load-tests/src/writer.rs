//! The one who makes changes, on a thread of its own, so that busy subscribers do not blur the moment
//! at which a commit has returned.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;

use crate::bare::publication_path;
use crate::runs;

/// A change that was made.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The moment that latencies count from: COMMIT has returned (Postgres), or the request is about
    /// to be sent (bare server).
    pub at: Instant,
    /// How long making it took, from the order to its confirmation.
    pub took: Duration,
}

struct Order {
    run: usize,
    version: u64,
    done: oneshot::Sender<Result<Change>>,
}

/// Carries out orders one after another. Ends when it is dropped.
pub struct Writer {
    orders: mpsc::Sender<Order>,
}

/// How long a database or a bare server may take for one change.
const LIMIT: Duration = Duration::from_secs(30);

impl Writer {
    fn start<C: FnMut(usize, u64) -> Result<Change>>(
        connect: impl FnOnce() -> Result<C> + Send + 'static,
    ) -> Writer {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            let mut change = connect();
            for order in queue {
                let result = match &mut change {
                    Ok(change) => change(order.run, order.version),
                    Err(error) => Err(anyhow::anyhow!("the writer cannot connect: {error:#}")),
                };
                // Nobody waits any more when the trial has been given up.
                let _ = order.done.send(result);
            }
        });
        Writer { orders }
    }

    /// Commits one UPDATE of the run's metadata after another, each a transaction of its own.
    pub fn postgres(url: String) -> Writer {
        Writer::start(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut connection = runtime.block_on(PgConnection::connect(&url))?;
            Ok(move |run: usize, version: u64| {
                let id = runs::internal_id(run);
                let metadata = format!(r#"{{"v":{version}}}"#);
                let update = sqlx::query(
                    r#"UPDATE "TaskRun" SET metadata = $1, "updatedAt" = now() WHERE id = $2"#,
                )
                .bind(metadata)
                .bind(id);
                let began = Instant::now();
                let done = runtime.block_on(async {
                    tokio::time::timeout(LIMIT, update.execute(&mut connection)).await
                });
                let at = Instant::now();
                let done = done.context("the database does not answer")??;
                anyhow::ensure!(done.rows_affected() == 1, "there is no run {run}");
                Ok(Change { at, took: at - began })
            })
        })
    }

    /// Publishes versions to a bare server.
    pub fn bare(address: SocketAddr) -> Writer {
        Writer::start(move || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(move |run: usize, version: u64| {
                let path = publication_path(run, version);
                let request =
                    format!("POST {path} HTTP/1.1\r\nhost: bare\r\ncontent-length: 0\r\n\r\n");
                let at = Instant::now();
                stream.write_all(request.as_bytes())?;
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    let mut some = [0; 512];
                    let read = stream.read(&mut some)?;
                    anyhow::ensure!(read > 0 && answer.len() < 4096, "the bare server hung up");
                    answer.extend_from_slice(&some[..read]);
                }
                anyhow::ensure!(answer.starts_with(b"HTTP/1.1 204"), "the bare server refused");
                Ok(Change { at, took: at.elapsed() })
            })
        })
    }

    /// Orders a change; the result comes when it is made.
    pub fn order(&self, run: usize, version: u64) -> oneshot::Receiver<Result<Change>> {
        let (done, result) = oneshot::channel();
        // If the thread is gone, the receiver says so.
        let _ = self.orders.send(Order { run, version, done });
        result
    }

    /// Makes a change.
    pub async fn change(&self, run: usize, version: u64) -> Result<Change> {
        self.order(run, version).await.context("the writer has ended")?
    }
}
