//! Subscribers in numbers: brought up until all of them are held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bench::{Side, Turn};
use crate::layout::Layout;
use crate::ledger::Ledger;
use crate::metrics::{Metrics, SNAPSHOT_QUERIES};
use crate::process::{Spent, resident_kib};
use crate::subscriber::Crowd;
use crate::{http1, http2};

/// How many subscribers may be between their first request and their first live poll, where they are
/// not to come all at once.
pub const AT_ONCE: usize = 128;
/// Whatever takes longer ends the trial.
const LIMIT: Duration = Duration::from_secs(300);
/// Until the last poll, which has just been sent, is held, and freed memory has been given back.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Who is to come.
#[derive(Clone, Copy, Debug)]
pub struct Coming {
    /// How many; subscriber `i` follows feed `i % feeds`.
    pub subscribers: usize,
    /// The feeds.
    pub layout: Layout,
    /// How many may be on their way to their first live poll at once.
    pub at_once: usize,
    /// How many share an HTTP/2 connection; `None`: each has an HTTP/1.1 connection of its own.
    pub streams: Option<usize>,
}

/// Who has come. They leave when this is dropped.
pub struct Gathered {
    /// The subscribers' tasks.
    pub subscribers: JoinSet<()>,
    /// What they have seen.
    pub ledger: Arc<Ledger>,
    /// From the first connection until the last was up to date and had sent its live poll.
    pub setup: Duration,
    /// CPU times for it, until all was quiet.
    pub spent: Spent,
    /// Snapshot queries that Runwire needed for it.
    pub queries: Option<f64>,
    /// The server's memory before, in KiB.
    pub empty: u64,
    /// The same when all were held.
    pub held: u64,
}

/// Brings the subscribers up; fails if not all of them become live.
pub async fn gather(turn: &Turn<'_>, coming: Coming) -> Result<Gathered> {
    let pid = turn.parties.server;
    let empty = resident_kib(pid)?;
    let queries_before = snapshot_queries(turn)?;
    let before = turn.parties.read()?;
    let began = Instant::now();
    let ledger = Ledger::new();
    let crowd = Arc::new(Crowd {
        address: turn.server.address,
        ledger: Arc::clone(&ledger),
        admission: Semaphore::new(coming.at_once),
        runs: match turn.side {
            Side::Runwire => coming.layout.fewest_runs(),
            // Its first answer is about one run.
            Side::Bare => 1,
        },
    });
    let subscribers = spawn(&crowd, coming);
    let live = ledger.all_live(coming.subscribers, LIMIT).await;
    fail_if_stuck(live, &ledger, "not all subscribers became live")?;
    let setup = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let queries = snapshot_queries(turn)?.zip(queries_before).map(|(now, before)| now - before);
    Ok(Gathered {
        subscribers,
        ledger,
        setup,
        spent: turn.parties.since(&before)?,
        queries,
        empty,
        held: resident_kib(pid)?,
    })
}

/// Starts the subscribers on the runtime that this runs on.
pub fn spawn(crowd: &Arc<Crowd>, coming: Coming) -> JoinSet<()> {
    let mut subscribers = JoinSet::new();
    let mut connection = None;
    for index in 0..coming.subscribers {
        let target = coming.layout.target(index % coming.layout.feeds);
        let crowd = Arc::clone(crowd);
        let Some(streams) = coming.streams else {
            subscribers.spawn(http1::subscribe(crowd, target));
            continue;
        };
        if index % streams == 0 {
            connection = Some(http2::Late::new(crowd.address));
        }
        if let Some(connection) = connection.clone() {
            subscribers.spawn(http2::subscribe(crowd, target, connection));
        }
    }
    subscribers
}

fn snapshot_queries(turn: &Turn<'_>) -> Result<Option<f64>> {
    Ok(Metrics::of(turn.server)?.map(|metrics| metrics.sum(SNAPSHOT_QUERIES)))
}

/// Fails with what the ledger knows unless something was reached.
pub fn fail_if_stuck(reached: bool, ledger: &Ledger, what: &str) -> Result<()> {
    if !reached {
        bail!("{what}: {:?}", ledger.faults());
    }
    Ok(())
}

/// How much memory has grown per subscriber.
pub fn per_subscriber(empty: u64, now: u64, subscribers: usize) -> f64 {
    now.saturating_sub(empty) as f64 / (subscribers as f64).max(1.0)
}
