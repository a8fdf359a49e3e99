//! A busy database: many changes a second, in transactions of several rows, with lists that follow them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::bench::{Bench, Setting, Turn};
use crate::crowd::{AT_ONCE, Coming, fail_if_stuck, gather};
use crate::latency::{Made, evaluate, signed_ms};
use crate::layout::Layout;
use crate::ledger::Faults;
use crate::metrics::{Lag, sample_lag};
use crate::process::Spent;
use crate::report::{Report, events, others};
use crate::statistics::{Percentiles, median, middle_and_range};
use crate::trial::{Load, deliveries_of};
use crate::writer::Writer;

/// How long the last change may take to reach its last subscriber.
const LIMIT: Duration = Duration::from_secs(120);
/// The rate counts as sustained if the writers kept up to this share of it …
const KEPT: f64 = 0.98;
/// … and everybody had the last change so soon after its commit, in ms.
const CAUGHT_UP_MS: f64 = 1_000.0;

#[derive(Args)]
pub struct Updates {
    /// Changes per second
    #[arg(long, default_value_t = 5_000)]
    rate: usize,
    /// Changes in one transaction
    #[arg(long, default_value_t = 10)]
    rows: usize,
    /// For how many seconds
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// How many tags there are, of which each run carries three; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000])]
    tags: Vec<usize>,
    /// How many follow one tag each
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    /// How many runs are changed, round and round
    #[arg(long, default_value_t = 5_000)]
    runs: usize,
    /// How many connections commit
    #[arg(long, default_value_t = 4)]
    writers: usize,
}

struct Flow {
    achieved: f64,
    latency: Percentiles,
    first_fifth: f64,
    last_fifth: f64,
    caught_up: f64,
    lag: Lag,
    deliveries: usize,
    spent: Spent,
    faults: Faults,
    held_out: u64,
}

impl Updates {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let url = &bench.gateway.as_ref().context("changes need a database")?.database.url;
        ensure!(self.runs / self.writers >= self.rows, "too few runs for the transactions");
        let mut all = Vec::new();
        for &tags in &self.tags {
            let layout = Layout { feeds_per_run: 3, ..Layout::tags(tags, self.runs) };
            let setting = Setting { bare: false, ..Setting::of(layout) };
            let attempt = async |turn: Turn<'_>| {
                let writers = (0..self.writers).map(|_| Writer::postgres(url.clone())).collect();
                let flow = self.flow(turn, layout, writers).await?;
                eprintln!(
                    "{tags} tags: {:.0} changes/s, p50 {:.1} p99 {:.1} ms, caught up after {:.0} ms, {:?}",
                    flow.achieved, flow.latency.p50, flow.latency.p99, flow.caught_up, flow.spent
                );
                Ok(flow)
            };
            all.push((tags, bench.in_turns(setting, attempt).await?.runwire));
        }
        self.tell(&all, report);
        Ok(())
    }

    /// The runs that a transaction changes. Each writer has runs of its own, so that the versions of
    /// a run are committed in order.
    fn runs_of(&self, transaction: usize) -> impl Iterator<Item = usize> {
        let (writer, turn) = (transaction % self.writers, transaction / self.writers);
        let own = self.runs / self.writers;
        (0..self.rows).map(move |row| (turn * self.rows + row) % own * self.writers + writer)
    }

    async fn flow(&self, turn: Turn<'_>, layout: Layout, writers: Vec<Writer>) -> Result<Flow> {
        let coming =
            Coming { subscribers: self.subscribers, layout, at_once: AT_ONCE, streams: None };
        let mut gathered = gather(&turn, coming).await?;
        let load = Load {
            layout,
            subscribers: self.subscribers,
            updates: 0,
            warm_up: 0,
            rate: None,
            pause: Duration::ZERO,
        };
        for writer in &writers {
            // Connects.
            writer.change(&[]).await?;
        }
        let (stop_sampling, lag) = sample_lag(turn.server.admin.context("no admin address")?);
        let ledger = &gathered.ledger;
        ledger.forget_deliveries();
        let mut goal = ledger.progress();
        let before = turn.parties.read()?;
        let began = Instant::now();
        let transactions = self.rate * self.seconds / self.rows;
        let mut orders = Vec::with_capacity(transactions);
        for transaction in 0..transactions {
            let mut versions = Vec::with_capacity(self.rows);
            for run in self.runs_of(transaction) {
                turn.versions[run] += 1;
                goal += deliveries_of(&load, run);
                versions.push((run, turn.versions[run]));
            }
            let seconds = (transaction * self.rows) as f64 / self.rate as f64;
            let due = began + Duration::from_secs_f64(seconds);
            let order = writers[transaction % self.writers].order(versions.clone(), Some(due));
            orders.push((versions, order));
        }
        let mut made = Vec::with_capacity(transactions * self.rows);
        for (versions, order) in orders {
            let change = order.await.context("the writer has ended")??;
            made.extend(versions.into_iter().map(|(run, version)| Made { run, version, change }));
        }
        let reached = ledger.reach(goal, LIMIT).await;
        fail_if_stuck(reached, ledger, "not every change reached its subscribers")?;
        let spent = turn.parties.since(&before)?;
        drop(stop_sampling);
        let lag = lag.join().map_err(|_| anyhow::anyhow!("the sampling thread panicked"))?;
        let lag = lag.context("Runwire never told its lag")?;

        let deliveries = ledger.take_deliveries();
        let last_commit = made.iter().map(|made| made.change.at).max().unwrap_or(began);
        let last = deliveries.iter().map(|delivery| delivery.at).max().unwrap_or(began);
        let latencies = evaluate(&made, &deliveries).latencies;
        let fifth = latencies.len() / 5;
        let flow = Flow {
            achieved: made.len() as f64 / (last_commit - began).as_secs_f64(),
            first_fifth: median(latencies[..fifth].iter().copied()),
            last_fifth: median(latencies[latencies.len() - fifth..].iter().copied()),
            latency: Percentiles::of(latencies),
            // The last changes may be of runs that nobody follows.
            caught_up: signed_ms(last, last_commit).max(0.0),
            lag,
            deliveries: deliveries.len(),
            spent,
            faults: ledger.faults(),
            held_out: ledger.polls_held_out(),
        };
        gathered.subscribers.shutdown().await;
        Ok(flow)
    }

    fn tell(&self, all: &[(usize, Vec<Flow>)], report: &mut Report) {
        report.heading(&format!(
            "Updates: {} changes a second, {} to a transaction, three tags each, {} subscribers",
            self.rate, self.rows, self.subscribers
        ));
        report.table([
            "tags",
            "changes/s committed (min–max)",
            "sustained",
            "commit → delivery p50 / p90 / p99 / max, ms",
            "p50 of the first and the last fifth, ms",
            "last subscriber after the last commit, ms",
            "Runwire's own lag, max, s and MiB",
            "deliveries",
            "server CPU, µs per change",
            "Postgres CPU, µs per change",
            "client CPU, s",
            "other CPU, max",
            "events",
        ]);
        for (tags, flows) in all {
            let changes = (self.rate * self.seconds) as f64;
            let middle = |value: &dyn Fn(&Flow) -> f64| median(flows.iter().map(value));
            let per_change = |value: fn(&Spent) -> Duration| {
                let each = flows.iter().map(|f| value(&f.spent).as_secs_f64() * 1e6 / changes);
                middle_and_range(each, 1)
            };
            let sustained = flows.iter().filter(|flow| flow.sustained(self.rate)).count();
            report.row([
                tags.to_string(),
                middle_and_range(flows.iter().map(|flow| flow.achieved), 0),
                format!("{sustained} of {} times", flows.len()),
                format!(
                    "{:.1} / {:.1} / {:.1} / {:.1}",
                    middle(&|f| f.latency.p50),
                    middle(&|f| f.latency.p90),
                    middle(&|f| f.latency.p99),
                    middle(&|f| f.latency.max)
                ),
                format!("{:.1}, {:.1}", middle(&|f| f.first_fifth), middle(&|f| f.last_fifth)),
                middle_and_range(flows.iter().map(|flow| flow.caught_up), 0),
                format!(
                    "{:.2}, {:.2}",
                    middle(&|f| f.lag.seconds),
                    middle(&|f| f.lag.bytes / f64::from(1 << 20))
                ),
                middle_and_range(flows.iter().map(|flow| flow.deliveries as f64), 0),
                per_change(|spent| spent.server),
                per_change(|spent| spent.postgres),
                middle_and_range(flows.iter().map(|f| f.spent.client.as_secs_f64()), 1),
                others(flows.iter().map(|flow| flow.spent.others)),
                events(flows.iter().map(|flow| (&flow.faults, flow.held_out))),
            ]);
        }
    }
}

impl Flow {
    fn sustained(&self, rate: usize) -> bool {
        self.achieved >= KEPT * rate as f64 && self.caught_up <= CAUGHT_UP_MS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn no_two_writers_share_a_run_and_no_transaction_changes_one_twice() {
        let updates = Updates {
            rate: 1,
            rows: 10,
            seconds: 1,
            tags: Vec::new(),
            subscribers: 1,
            runs: 100,
            writers: 4,
        };
        let mut writer_of = BTreeMap::new();
        for transaction in 0..100 {
            let mut runs: Vec<usize> = updates.runs_of(transaction).collect();
            runs.sort_unstable();
            runs.dedup();
            assert_eq!(runs.len(), 10);
            for run in runs {
                assert!(run < 100);
                assert_eq!(*writer_of.entry(run).or_insert(transaction % 4), transaction % 4);
            }
        }
        assert_eq!(writer_of.len(), 100, "every run gets its turn");
    }
}
