//! One stream with thousands of readers: the highest rate at which 99 of 100 deliveries take less than a second.

use std::time::Duration;

use anyhow::{Context, Result};

use super::measured::{COLUMNS, Measured, compare, row};
use super::search::Search;
use super::{LIMIT, MADE, SETTLE, STORES, Side, Streams, made, sound};
use crate::bench::Bench;
use crate::report::Report;
use crate::statistics::{median, ratio};
use crate::streams::readers;
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;
use crate::streams::writing::Plan;

/// How late a delivery may be, in ms.
const LATE: f64 = 1_000.0;
/// Where the search begins and ends, in chunks per second.
const FIRST: f64 = 2.0;
const MOST: f64 = 1_000.0;

pub async fn run(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let attempt = async |stand: &Stand| highest(options, stand).await;
    let tried = options.in_turns(bench, &STORES, attempt).await?;
    let tried: Vec<(Side, Vec<f64>, Vec<Measured>)> = tried
        .into_iter()
        .map(|(side, trials)| {
            let (rates, trials) = trials.into_iter().unzip();
            (side, rates, trials)
        })
        .collect();
    report
        .heading("Streams: one stream with N readers, at the highest rate with p99 under a second");
    report.table(COLUMNS);
    for (side, rates, trials) in &tried {
        row(report, *side, options.crowd, median(rates.iter().copied()), trials);
    }
    report.line("");
    if let [(_, _, ours), (_, _, theirs)] = &tried[..] {
        let of = |trials: &[Measured]| trials.iter().map(Measured::per_second).collect::<Vec<_>>();
        report.line(&format!(
            "- N = {}: {} times s2-lite's deliveries per second",
            options.crowd,
            ratio(of(ours), of(theirs)),
        ));
    }
    let tried: Vec<_> = tried.into_iter().map(|(side, _, trials)| (side, trials)).collect();
    compare(report, options.crowd, &tried);
    Ok(())
}

/// The highest rate and what was measured at it.
async fn highest(options: &Streams, stand: &Stand) -> Result<(f64, Measured)> {
    let tally = Tally::new();
    let leaves = made(stand, 1).await?;
    let readings = std::iter::repeat_n(stand.reading(0), options.crowd);
    let _readers = readers::start(readings, &tally);
    let live = tally.all_live(options.crowd, LIMIT).await;
    sound(live, &tally, "not every reader is live")?;
    let came = tally.reach(MADE * options.crowd as u64, LIMIT).await;
    sound(came, &tally, "not every reader got the first chunk")?;
    tokio::time::sleep(SETTLE).await;
    tally.take();

    let mut search = Search::new(FIRST, MOST);
    let (mut best, mut first) = (None, MADE);
    while let Some(rate) = search.next() {
        let chunks = ((options.step_seconds as f64 * rate) as u64).max(3);
        let every = Duration::from_secs_f64(1.0 / rate);
        let plan = Plan { leaves: leaves.clone(), first, chunks, batch: 1, every };
        first += chunks;
        let Some(found) = Measured::of(stand, &tally, plan, options.crowd).await? else {
            // It is so far behind that nothing more can be asked of it.
            eprintln!("{:?}, {rate:.1} chunks/s: not delivered in {LIMIT:?}", stand.side);
            break;
        };
        let borne = found.latency.p99 < LATE;
        eprintln!(
            "{:?}, {rate:.1} chunks/s: p50 {:.0} p99 {:.0} ms, {:.0} deliveries/s, {:.0} per core; client {:.0} %",
            stand.side,
            found.latency.p50,
            found.latency.p99,
            found.per_second(),
            found.per_core(),
            found.client_share() * 100.0
        );
        search.tell(rate, borne);
        if borne && best.as_ref().is_none_or(|(before, _)| *before < rate) {
            best = Some((rate, found));
        }
    }
    best.context("no rate was slow enough")
}
