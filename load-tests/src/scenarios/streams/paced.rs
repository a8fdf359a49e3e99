//! Chunks at a steady pace: many streams with a reader each, one stream with many readers.

use std::time::Duration;

use anyhow::{Context, Result};

use super::measured::{COLUMNS, Measured, compare, row};
use super::{LIMIT, MADE, SETTLE, STORES, Streams, made, sound};
use crate::bench::Bench;
use crate::report::Report;
use crate::streams::readers;
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;
use crate::streams::writing::{Plan, prepare};

/// Chunks of each stream before those that are measured.
const WARM_UP: u64 = 2;

/// N streams with a writer and a reader each.
pub async fn streams(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let settings = options.streams.iter().map(|streams| (*streams, *streams, 1));
    let title = "Streams: append → reader, N streams with a writer and a reader each";
    measure(options, bench, report, title, settings.collect()).await
}

/// One stream with N readers.
pub async fn readers(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let settings = options.readers.iter().map(|readers| (*readers, 1, *readers));
    let title = "Streams: append → reader, one stream with N readers";
    measure(options, bench, report, title, settings.collect()).await
}

async fn measure(
    options: &Streams,
    bench: &Bench,
    report: &mut Report,
    title: &str,
    settings: Vec<(usize, usize, usize)>,
) -> Result<()> {
    let mut all = Vec::new();
    for (n, streams, readers) in settings {
        let rate = rate(options, streams);
        let attempt = async |stand: &Stand| attempt(options, stand, streams, readers, rate).await;
        let tried = options.in_turns(bench, &STORES, attempt).await?;
        all.push((n, rate, tried));
    }
    report.heading(title);
    report.table(COLUMNS);
    for (n, rate, tried) in &all {
        tried.iter().for_each(|(side, trials)| row(report, *side, *n, *rate, trials));
    }
    report.line("");
    all.iter().for_each(|(n, _, tried)| compare(report, *n, tried));
    Ok(())
}

/// Chunks per second of each stream, so that all together are no more than allowed.
fn rate(options: &Streams, streams: usize) -> f64 {
    options.rate.min(options.most / streams.max(1) as f64)
}

async fn attempt(
    options: &Streams,
    stand: &Stand,
    streams: usize,
    readers: usize,
    rate: f64,
) -> Result<Measured> {
    let tally = Tally::new();
    let leaves = made(stand, streams).await?;
    let readings = (0..streams * readers).map(|reader| stand.reading(reader % streams));
    let _readers = readers::start(readings, &tally);
    let all = streams * readers;
    sound(tally.all_live(all, LIMIT).await, &tally, "not every reader is live")?;
    tokio::time::sleep(SETTLE).await;

    let every = Duration::from_secs_f64(1.0 / rate);
    let warm_up = Plan { leaves, first: MADE, chunks: WARM_UP, batch: 1, every };
    prepare(warm_up.clone()).await?.go().await?;
    let goal = (MADE + WARM_UP) * all as u64;
    sound(tally.reach(goal, LIMIT).await, &tally, "not every reader got the first chunks")?;
    tally.take();

    let chunks = ((options.seconds as f64 * rate) as u64).max(1);
    let plan = Plan { first: MADE + WARM_UP, chunks, ..warm_up };
    let found = Measured::of(stand, &tally, plan, readers).await?;
    let found = found.context("not every chunk was delivered in time")?;
    eprintln!(
        "{:?}, {streams} streams, {readers} readers each: p50 {:.2} p99 {:.2} ms, {:.1} ms of CPU per 1,000",
        stand.side,
        found.latency.p50,
        found.latency.p99,
        found.per_thousand()
    );
    Ok(found)
}
