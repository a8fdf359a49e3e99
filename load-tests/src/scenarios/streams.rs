//! Streams: how soon a chunk is with its readers, how many deliveries a core makes, how fast a reader
//! catches up, and what one that waits costs; beside plain s2-lite, and a bare server of events.

mod catch_up;
mod crowd;
mod idle;
mod measured;
mod paced;
mod search;
mod tail;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use sqlx::{Connection, PgConnection};

use crate::bench::Bench;
use crate::database;
use crate::layout::Layout;
use crate::report::Report;
use crate::streams::session::Leave;
use crate::streams::stand::{Side, Stand};
use crate::streams::tally::Tally;
use crate::streams::writing::{Plan, prepare};

/// Whatever takes longer ends the trial.
const LIMIT: Duration = Duration::from_secs(120);
/// Until what has just been connected is quiet.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct Streams {
    /// What is measured [default: everything]
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Numbers of streams with a writer and a reader each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000])]
    streams: Vec<usize>,
    /// Numbers of readers of one stream
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100])]
    readers: Vec<usize>,
    /// Chunks per second of a stream
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Chunks per second of all streams together, at most
    #[arg(long, default_value_t = 2_000.0)]
    most: f64,
    /// For how many seconds chunks are written
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Readers of one stream whose highest rate is looked for
    #[arg(long, default_value_t = 5_000)]
    crowd: usize,
    /// For how many seconds each rate is tried
    #[arg(long, default_value_t = 4)]
    step_seconds: u64,
    /// Chunks of the stream that is caught up with
    #[arg(long, default_value_t = 100_000)]
    chunks: u64,
    /// How many catch up beside the tail
    #[arg(long, default_value_t = 100)]
    catching_up: usize,
    /// How many follow the tail meanwhile
    #[arg(long, default_value_t = 10)]
    tail: usize,
    /// Readers that nothing happens to
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// For how many milliseconds a server collects chunks before they are made durable
    #[arg(long, default_value_t = 5)]
    flush_ms: u64,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// N streams with a reader each
    Streams,
    /// One stream with N readers
    Readers,
    /// One stream with a crowd of readers, at its highest rate
    Crowd,
    /// Reading a long stream from its beginning
    CatchUp,
    /// The tail's latency while others catch up
    Tail,
    /// Memory of readers that nothing happens to
    Idle,
}

impl Streams {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        ensure!(
            self.tail > 0 && self.rate > 0.0 && self.most > 0.0,
            "nobody and nothing to measure"
        );
        if let Some(gateway) = &bench.gateway {
            let runs = self.streams.iter().copied().max().unwrap_or(1).max(1);
            database::seed(&gateway.database.url, Layout::runs(runs)).await?;
            let mut connection = PgConnection::connect(&gateway.database.url).await?;
            let v2 = r#"UPDATE "TaskRun" SET "realtimeStreamsVersion" = 'v2'"#;
            sqlx::query(v2).execute(&mut connection).await?;
        }
        let parts: Vec<Part> = match self.parts.is_empty() {
            true => Part::value_variants().to_vec(),
            false => self.parts.clone(),
        };
        for part in parts {
            match part {
                Part::Streams => paced::streams(self, bench, report).await?,
                Part::Readers => paced::readers(self, bench, report).await?,
                Part::Crowd => crowd::run(self, bench, report).await?,
                Part::CatchUp => catch_up::run(self, bench, report).await?,
                Part::Tail => tail::run(self, bench, report).await?,
                Part::Idle => idle::run(self, bench, report).await?,
            }
        }
        Ok(())
    }

    /// Tries these servers in turns, each time a fresh one, and gives each one's trials.
    async fn in_turns<T>(
        &self,
        bench: &Bench,
        sides: &[Side],
        mut attempt: impl AsyncFnMut(&Stand) -> Result<T>,
    ) -> Result<Vec<(Side, Vec<T>)>> {
        let there = |side: &&Side| **side != Side::Runwire || bench.gateway.is_some();
        let mut tried: Vec<_> =
            sides.iter().filter(there).map(|side| (*side, Vec::new())).collect();
        for _ in 0..bench.repeat {
            for (side, trials) in &mut tried {
                let flush = Duration::from_millis(self.flush_ms);
                let stand = Stand::start(bench, *side, flush).await?;
                trials.push(attempt(&stand).await?);
            }
        }
        Ok(tried)
    }
}

/// Makes so many streams with one chunk each: where many come to read one that is not there, s2-lite
/// refuses some of them.
async fn made(stand: &Stand, streams: usize) -> Result<Vec<Leave>> {
    let leaves = stand.leaves(streams).await?;
    let every = Duration::ZERO;
    let plan = Plan { leaves: leaves.clone(), first: 0, chunks: MADE, batch: 1, every };
    prepare(plan).await?.go().await?;
    Ok(leaves)
}

/// Chunks of a stream that was made.
const MADE: u64 = 1;
/// Both that keep chunks.
const STORES: [Side; 2] = [Side::Runwire, Side::Lite];

/// The trials of one server.
fn of<T>(tried: &[(Side, Vec<T>)], side: Side) -> &[T] {
    tried.iter().find(|(each, _)| *each == side).map_or(&[], |(_, trials)| trials)
}

/// Ends the trial unless all went as it should.
fn sound(reached: bool, tally: &Tally, what: &str) -> Result<()> {
    let faults = tally.faults();
    let clean = faults.skipped + faults.repeated + faults.backward + faults.failed == 0;
    ensure!(reached && clean, "{what}: {faults:?}");
    Ok(())
}
