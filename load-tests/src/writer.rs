//! The one who makes changes, on a thread of its own, so that busy subscribers do not blur the moment
//! at which a commit has returned.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;

use crate::bare_server::publication_path;
use crate::runs;

/// A change that was made.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The moment that latencies count from: COMMIT has returned (Postgres), or the request is about
    /// to be sent (bare server).
    pub at: Instant,
    /// How long making it took, from its beginning to its confirmation.
    pub took: Duration,
}

/// A run and the version that it is to get.
pub type Version = (usize, u64);

struct Order {
    versions: Vec<Version>,
    due: Option<Instant>,
    done: oneshot::Sender<Result<Change>>,
}

/// Carries out orders one after another. Ends when it is dropped.
pub struct Writer {
    orders: mpsc::Sender<Order>,
}

/// How long a database or a bare server may take for one change.
const LIMIT: Duration = Duration::from_secs(30);

impl Writer {
    fn start<C: FnMut(&[Version]) -> Result<Change>>(
        connect: impl FnOnce() -> Result<C> + Send + 'static,
    ) -> Writer {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            let mut change = connect();
            for order in queue {
                if let Some(due) = order.due {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                let result = match &mut change {
                    Ok(change) => change(&order.versions),
                    Err(error) => Err(anyhow::anyhow!("the writer cannot connect: {error:#}")),
                };
                // Nobody waits any more when the trial has been given up.
                let _ = order.done.send(result);
            }
        });
        Writer { orders }
    }

    /// Commits one UPDATE of the runs' metadata per order, each a transaction of its own.
    pub fn postgres(url: String) -> Writer {
        Writer::start(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut connection = runtime.block_on(PgConnection::connect(&url))?;
            Ok(move |versions: &[Version]| {
                let ids: Vec<String> =
                    versions.iter().map(|(run, _)| runs::internal_id(*run)).collect();
                let numbers: Vec<i64> = versions.iter().map(|(_, v)| *v as i64).collect();
                let update = sqlx::query(
                    r#"UPDATE "TaskRun" SET metadata = '{"v":' || new.v || '}', "updatedAt" = now()
                       FROM unnest($1::text[], $2::int8[]) AS new (id, v) WHERE "TaskRun".id = new.id"#,
                )
                .bind(ids)
                .bind(numbers);
                let began = Instant::now();
                let done = runtime.block_on(async {
                    tokio::time::timeout(LIMIT, update.execute(&mut connection)).await
                });
                let at = Instant::now();
                let done = done.context("the database does not answer")??;
                let all = versions.len() as u64;
                anyhow::ensure!(done.rows_affected() == all, "not all of {versions:?} are there");
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
            Ok(move |versions: &[Version]| {
                let at = Instant::now();
                for (run, version) in versions {
                    publish(&mut stream, *run, *version)?;
                }
                Ok(Change { at, took: at.elapsed() })
            })
        })
    }

    /// Orders a change of some runs, not before it is due; the result comes when it is made.
    pub fn order(
        &self,
        versions: Vec<Version>,
        due: Option<Instant>,
    ) -> oneshot::Receiver<Result<Change>> {
        let (done, result) = oneshot::channel();
        // If the thread is gone, the receiver says so.
        let _ = self.orders.send(Order { versions, due, done });
        result
    }

    /// Makes a change.
    pub async fn change(&self, versions: &[Version]) -> Result<Change> {
        self.order(versions.to_vec(), None).await.context("the writer has ended")?
    }
}

fn publish(stream: &mut TcpStream, run: usize, version: u64) -> Result<()> {
    let path = publication_path(run, version);
    let request = format!("POST {path} HTTP/1.1\r\nhost: bare\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut some = [0; 512];
        let read = stream.read(&mut some)?;
        anyhow::ensure!(read > 0 && answer.len() < 4096, "the bare server hung up");
        answer.extend_from_slice(&some[..read]);
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 204"), "the bare server refused");
    Ok(())
}
