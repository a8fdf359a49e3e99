//! What a change costs while ever more feeds are registered that it does not concern: it must not matter.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use runwire::feed::{Feed, Runs};
use runwire::postgres::{Lsn, Snapshot};
use runwire::replication::change::{Event, Reset};
use runwire::replication::pgoutput::Decoder;

use crate::bench::Bench;
use crate::cores;
use crate::process::{cpu, resident_kib};
use crate::report::Report;
use crate::scenarios::intake::{LIMITS, SETTLE_EVERY, WARM_UP, decode};
use crate::scenarios::recorded::{self, Recorded, Transaction};
use crate::scenarios::registration::{Registration, Registry, tagged};
use crate::statistics::{median, middle_and_range};

const EPOCH: u64 = 1;
/// Of the registered feeds, so many are of runs that do change.
const CONCERNED: usize = 100;

#[derive(Args)]
pub struct Index {
    /// Registered feeds; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000, 1_000_000])]
    feeds: Vec<usize>,
    /// Measured changes for each number
    #[arg(long, default_value_t = 300_000)]
    changes: usize,
}

struct Cost {
    per_change: Duration,
    kib_per_feed: f64,
}

impl Index {
    pub fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let mut all: Vec<(usize, Vec<Cost>)> =
            self.feeds.iter().map(|feeds| (*feeds, Vec::new())).collect();
        for _ in 0..bench.repeat {
            for (feeds, costs) in &mut all {
                let cost = cores::on_core(bench.server_core, || measure(*feeds, self.changes))?;
                eprintln!("{feeds} feeds: {:?} per change", cost.per_change);
                costs.push(cost);
            }
        }
        report.heading(
            "Index: decoding a change and finding whom it concerns, N feeds registered, in process",
        );
        report.table([
            "N",
            "CPU per change, µs (min–max)",
            "as a ratio to the first",
            "memory per feed, KiB",
        ]);
        let us = |costs: &[Cost]| -> Vec<f64> {
            costs.iter().map(|cost| cost.per_change.as_secs_f64() * 1e6).collect()
        };
        let first = all.first().map_or(0.0, |(_, costs)| median(us(costs)));
        for (feeds, costs) in &all {
            report.row([
                feeds.to_string(),
                middle_and_range(us(costs), 2),
                format!("{:.2}", median(us(costs)) / first),
                format!("{:.2}", median(costs.iter().map(|cost| cost.kib_per_feed))),
            ]);
        }
        Ok(())
    }
}

/// Registers the feeds and takes a recorded stream in, on the calling thread.
fn measure(feeds: usize, changes: usize) -> Result<Cost> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let recorded = Recorded::new();
    let own = std::process::id();
    let feed = Feed::new(LIMITS);
    feed.apply(Event::Reset(Reset { epoch: EPOCH, floor: Lsn(0), server: Lsn(0), past: None }));
    let mut stream = Stream::new(&feed, &recorded)?;
    // Until the window is full and evicts as it does in the long run.
    stream.advance(WARM_UP)?;

    let before = resident_kib(own)?;
    let mut held = register(&feed, feeds)?;
    let grown = resident_kib(own)?.saturating_sub(before);
    let before = cpu(own)?;
    stream.advance(changes)?;
    let spent = cpu(own)?.saturating_sub(before);

    let answered = held.iter_mut().filter_map(|held| held.is_answered().then_some(())).count();
    let concerned = feeds.min(CONCERNED);
    ensure!(answered == concerned, "{answered} polls were answered and not {concerned}");
    Ok(Cost {
        per_change: spent.div_f64(changes as f64),
        kib_per_feed: grown as f64 / feeds as f64,
    })
}

fn register(feed: &Arc<Feed>, feeds: usize) -> Result<Vec<Registration>> {
    let registry = Registry::new(Arc::clone(feed), EPOCH)?;
    let mut held = Vec::with_capacity(feeds);
    for number in 0..feeds {
        let (environment, runs) = feed_of(number);
        let mut registration = registry.register(&environment, runs);
        ensure!(!registration.is_answered(), "feed {number} was answered before any change");
        held.push(registration);
    }
    Ok(held)
}

/// The first hundred are of runs of the stream; the others, in the same environments, of runs and tags
/// that it does not have.
fn feed_of(number: usize) -> (String, Runs) {
    let runs = match number {
        ..CONCERNED => Runs::One(recorded::friendly_id(number).into()),
        _ if number.is_multiple_of(2) => Runs::One(format!("run_elsewhere{number:012}").into()),
        _ => tagged(&format!("elsewhere:{number}")),
    };
    (recorded::environment(number), runs)
}

/// A recorded stream on its way into a window.
struct Stream<'a, T> {
    feed: &'a Feed,
    decoder: Decoder,
    transactions: T,
}

impl<'a> Stream<'a, ()> {
    fn new(
        feed: &'a Feed,
        recorded: &'a Recorded,
    ) -> Result<Stream<'a, impl Iterator<Item = (usize, Transaction)>>> {
        let mut decoder = Decoder::default();
        decoder.decode(recorded.relation.clone(), &mut Vec::new())?;
        Ok(Stream { feed, decoder, transactions: recorded.transactions().enumerate() })
    }
}

impl<T: Iterator<Item = (usize, Transaction)>> Stream<'_, T> {
    fn advance(&mut self, changes: usize) -> Result<()> {
        for (number, transaction) in self.transactions.by_ref().take(changes) {
            let next = u64::from(transaction.xid) + 1;
            self.feed.apply(Event::Tx(decode(&mut self.decoder, transaction)?));
            if number % SETTLE_EVERY == 0 {
                // A query that shows everything up to here.
                self.feed.settle(Snapshot { xmin: next, xmax: next, xip: Vec::new() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_feeds_of_changing_runs_are_answered() {
        let recorded = Recorded::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let feed = Feed::new(LIMITS);
        feed.apply(Event::Reset(Reset { epoch: EPOCH, floor: Lsn(0), server: Lsn(0), past: None }));
        let mut stream = Stream::new(&feed, &recorded).unwrap();
        stream.advance(10).unwrap();
        let mut held = register(&feed, 300).unwrap();
        // The stream goes on with runs 10, 11 and 12.
        stream.advance(3).unwrap();
        let answered = held
            .iter_mut()
            .enumerate()
            .filter_map(|(number, held)| held.is_answered().then_some(number));
        let answered: Vec<usize> = answered.collect();
        assert_eq!(answered, [10, 11, 12]);
    }
}
