//! Reading a long stream from its beginning.

use std::time::Duration;

use anyhow::Result;

use super::{LIMIT, SETTLE, STORES, Side, Streams, of, sound};
use crate::bench::Bench;
use crate::process::Spent;
use crate::report::{Report, others};
use crate::statistics::{middle_and_range, ratio};
use crate::streams::chunk::now;
use crate::streams::readers::{self, Reading};
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;
use crate::streams::writing::{Plan, prepare};

/// Chunks of one append while a stream is filled.
const BATCH: u64 = 1_000;

struct CaughtUp {
    seconds: f64,
    spent: Spent,
}

pub async fn run(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let attempt = async |stand: &Stand| {
        fill(stand, options.chunks).await?;
        let tally = Tally::new();
        let before = stand.parties.read()?;
        let began = now();
        let reading = Reading { until: Some(options.chunks), ..stand.reading(0) };
        let _reader = readers::start([reading], &tally);
        sound(tally.all_done(1, LIMIT).await, &tally, "the reader did not catch up")?;
        let seconds = tally.take().last.saturating_sub(began) as f64 / 1e6;
        let spent = stand.parties.since(&before)?;
        eprintln!("{:?}: {} chunks in {seconds:.2} s", stand.side, options.chunks);
        Ok(CaughtUp { seconds, spent })
    };
    let tried = options.in_turns(bench, &STORES, attempt).await?;
    report.heading(&format!("Streams: catching up with {} chunks", options.chunks));
    report.table([
        "server",
        "seconds (min–max)",
        "chunks/s",
        "server CPU, ms per 1,000 chunks",
        "other CPU, max",
    ]);
    let chunks = options.chunks as f64;
    for (side, trials) in &tried {
        let cpu = |t: &CaughtUp| t.spent.server.as_secs_f64() * 1e6 / chunks;
        report.row([
            side.name().to_owned(),
            middle_and_range(trials.iter().map(|t| t.seconds), 2),
            middle_and_range(trials.iter().map(|t| chunks / t.seconds), 0),
            middle_and_range(trials.iter().map(cpu), 2),
            others(trials.iter().map(|t| t.spent.others)),
        ]);
    }
    let seconds = |side| of(&tried, side).iter().map(|t| t.seconds).collect::<Vec<_>>();
    report.line("");
    let times = ratio(seconds(Side::Runwire), seconds(Side::Lite));
    report.line(&format!("- {times} times s2-lite's time"));
    Ok(())
}

/// Writes so many chunks into the first stream, which nobody reads.
pub async fn fill(stand: &Stand, chunks: u64) -> Result<()> {
    let leaves = stand.leaves(1).await?;
    let plan = Plan { leaves, first: 0, chunks, batch: BATCH, every: Duration::ZERO };
    prepare(plan).await?.go().await?;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}
