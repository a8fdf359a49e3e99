//! What readers at the end of a stream notice of others who read it from its beginning.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::catch_up::fill;
use super::{LIMIT, SETTLE, STORES, Side, Streams, of, sound};
use crate::aside::Aside;
use crate::bench::Bench;
use crate::process::Spent;
use crate::report::{Report, others};
use crate::statistics::{Percentiles, median, middle_and_range, ratio};
use crate::streams::chunk::now;
use crate::streams::readers::{self, Reading};
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;
use crate::streams::writing::{Plan, prepare};

struct Followed {
    alone: Percentiles,
    beside: Percentiles,
    /// Until the last one had caught up, in seconds.
    caught_up: f64,
    spent: Spent,
}

pub async fn run(options: &Streams, bench: &Bench, report: &mut Report) -> Result<()> {
    let attempt = async |stand: &Stand| {
        let found = follow(options, stand).await?;
        eprintln!(
            "{:?}: p99 {:.2} ms alone, {:.2} ms beside; caught up after {:.1} s",
            stand.side, found.alone.p99, found.beside.p99, found.caught_up
        );
        Ok(found)
    };
    let tried = options.in_turns(bench, &STORES, attempt).await?;
    let Streams { tail, catching_up, chunks, rate, .. } = options;
    report.heading(&format!(
        "Streams: {tail} readers at the end, {rate} chunks/s, while {catching_up} catch up with {chunks} chunks each"
    ));
    report.table([
        "server",
        "tail alone p50 / p99, ms",
        "tail beside p50 / p99, ms",
        "p99, times that alone",
        "all caught up after, s",
        "server CPU, s",
        "other CPU, max",
    ]);
    for (side, trials) in &tried {
        let middle = |value: fn(&Followed) -> f64| median(trials.iter().map(value));
        report.row([
            side.name().to_owned(),
            format!("{:.2} / {:.2}", middle(|t| t.alone.p50), middle(|t| t.alone.p99)),
            format!("{:.2} / {:.2}", middle(|t| t.beside.p50), middle(|t| t.beside.p99)),
            ratio(trials.iter().map(|t| t.beside.p99), trials.iter().map(|t| t.alone.p99)),
            middle_and_range(trials.iter().map(|t| t.caught_up), 1),
            middle_and_range(trials.iter().map(|t| t.spent.server.as_secs_f64()), 2),
            others(trials.iter().map(|t| t.spent.others)),
        ]);
    }
    report.line("");
    let p99 = |side| of(&tried, side).iter().map(|t| t.beside.p99).collect::<Vec<_>>();
    let times = ratio(p99(Side::Runwire), p99(Side::Lite));
    report.line(&format!("- beside those who catch up: {times} times s2-lite's p99"));
    Ok(())
}

async fn follow(options: &Streams, stand: &Stand) -> Result<Followed> {
    fill(stand, options.chunks).await?;
    let tally = Tally::new();
    let reading = stand.reading_after(0, options.chunks);
    let _tail = readers::start(std::iter::repeat_n(reading, options.tail), &tally);
    sound(tally.all_live(options.tail, LIMIT).await, &tally, "not every reader is live")?;
    tokio::time::sleep(SETTLE).await;

    let leaves = stand.leaves(1).await?;
    let every = Duration::from_secs_f64(1.0 / options.rate);
    let chunks = ((options.seconds as f64 * options.rate) as u64).max(1);
    let plan = Plan { leaves, first: options.chunks, chunks, batch: 1, every };
    let goal = chunks * options.tail as u64;
    prepare(plan.clone()).await?.go().await?;
    sound(tally.reach(goal, LIMIT).await, &tally, "the tail lacks chunks")?;
    let alone = Percentiles::of(tally.take().latencies);

    // Written for as long as somebody catches up, and a little longer.
    let others = Tally::new();
    let before = stand.parties.read()?;
    let began = now();
    let reading = Reading { until: Some(options.chunks), ..stand.reading(0) };
    let (count, theirs) = (options.catching_up, Arc::clone(&others));
    let _aside = Aside::start(async move |stopped| {
        let _readers = readers::start(std::iter::repeat_n(reading, count), &theirs);
        let _ = stopped.await;
    })?;
    let (mut first, mut beside) = (plan.first + chunks, Vec::new());
    let caught_up = loop {
        // Pieces of a second, so that what came while they caught up can be told from what came after.
        let chunks = (options.rate as u64).max(1);
        let plan = Plan { first, chunks, ..plan.clone() };
        first += chunks;
        prepare(plan).await?.go().await?;
        let goal = chunks * options.tail as u64;
        sound(tally.reach(goal, LIMIT).await, &tally, "the tail lacks chunks")?;
        beside.extend(tally.take().latencies);
        if others.all_done(count, Duration::ZERO).await {
            break others.take().last.saturating_sub(began) as f64 / 1e6;
        }
        let late = now().saturating_sub(began) > LIMIT.as_micros() as u64;
        sound(!late, &others, "not all caught up")?;
    };
    let spent = stand.parties.since(&before)?;
    sound(true, &others, "those who caught up")?;
    Ok(Followed { alone, beside: Percentiles::of(beside), caught_up, spent })
}
