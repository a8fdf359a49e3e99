//! One trial: N subscribers are held by one server while changes are made.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::Turn;
use crate::crowd::{AT_ONCE, Coming, fail_if_stuck, gather, per_subscriber};
use crate::latency::{Made, evaluate, ms};
use crate::layout::Layout;
use crate::ledger::{Faults, Ledger};
use crate::process::{Spent, load_average, resident_kib};
use crate::statistics::Percentiles;
use crate::writer::{Version, Writer};

/// The load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The runs and their feeds.
    pub layout: Layout,
    /// How many subscribers.
    pub subscribers: usize,
    /// How many changes are measured.
    pub updates: usize,
    /// How many changes are made before.
    pub warm_up: usize,
    /// Changes per second; `None`: each when the one before has reached everyone.
    pub rate: Option<f64>,
    /// Without a rate, the pause between a change's last delivery and the next change.
    pub pause: Duration,
}

/// Whatever takes longer ends the trial.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// Memory while all are held and none has been told anything.
pub const HELD: usize = 1;
/// Memory after the last change.
pub const END: usize = 2;

/// What a trial found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Until all subscribers were live.
    pub setup: Duration,
    /// Server CPU time for it.
    pub setup_cpu: Duration,
    /// Snapshot queries that Runwire sent for it.
    pub queries: Option<f64>,
    /// From commit to delivery, in ms.
    pub latency: Percentiles,
    /// From commit to the last delivery of the same change, in ms.
    pub last: Percentiles,
    /// How long the changes themselves took, in ms.
    pub commit: Percentiles,
    /// Deliveries.
    pub got: u64,
    /// How many there should have been.
    pub expected: u64,
    /// Deliveries per second between a commit and its last delivery, all rounds together.
    pub per_second: f64,
    /// CPU times of the measured part.
    pub spent: Spent,
    /// The server's memory in KiB before the first subscriber, with all of them held ([`HELD`]), and
    /// after the last change ([`END`]).
    pub resident: [u64; 3],
    /// The load average at the end.
    pub load_average: String,
    /// What went wrong.
    pub faults: Faults,
    /// Live polls that ended without news.
    pub held_out: u64,
}

impl Found {
    /// Server CPU time per delivery, in µs.
    pub fn server_us(&self) -> f64 {
        self.spent.server.as_secs_f64() * 1e6 / (self.got as f64).max(1.0)
    }

    /// Client CPU time per delivery, in µs.
    pub fn client_us(&self) -> f64 {
        self.spent.client.as_secs_f64() * 1e6 / (self.got as f64).max(1.0)
    }

    /// Growth of the server's memory per subscriber, in KiB.
    pub fn kib_per_subscriber(&self, when: usize, subscribers: usize) -> f64 {
        per_subscriber(self.resident[0], self.resident[when], subscribers)
    }

    /// Deliveries that one core of the server would make in a second.
    pub fn per_core_second(&self) -> f64 {
        self.got as f64 / self.spent.server.as_secs_f64().max(1e-9)
    }
}

/// Holds the subscribers, makes the changes and measures.
pub async fn hold_and_change(turn: Turn<'_>, load: Load) -> Result<Found> {
    let coming = Coming {
        subscribers: load.subscribers,
        layout: load.layout,
        at_once: AT_ONCE,
        streams: None,
    };
    let mut gathered = gather(&turn, coming).await?;
    let ledger = &gathered.ledger;
    let Turn { parties, writer, versions, .. } = turn;

    let mut course = Course { ledger, writer, load, versions, next: 0 };
    course.closed(load.warm_up).await?;
    ledger.forget_deliveries();
    let before = parties.read()?;
    let made = match load.rate {
        None => course.closed(load.updates).await?,
        Some(rate) => course.open(load.updates, rate).await?,
    };
    let spent = parties.since(&before)?;
    let resident = [gathered.empty, gathered.held, resident_kib(parties.server)?];
    // Everything that is still under way would come now; what comes twice is to be seen.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let deliveries = ledger.take_deliveries();
    gathered.subscribers.shutdown().await;

    let sums = evaluate(&made, &deliveries);
    Ok(Found {
        setup: gathered.setup,
        setup_cpu: gathered.spent.server,
        queries: gathered.queries,
        latency: Percentiles::of(sums.latencies),
        last: Percentiles::of(sums.lasts),
        commit: Percentiles::of(made.iter().map(|made| ms(made.change.took)).collect()),
        got: deliveries.len() as u64,
        expected: made.iter().map(|made| deliveries_of(&load, made.run)).sum(),
        per_second: deliveries.len() as f64 / sums.delivering.max(1e-9),
        spent,
        resident,
        load_average: load_average(),
        faults: ledger.faults(),
        held_out: ledger.polls_held_out(),
    })
}

/// How many subscribers one change of the run reaches.
pub fn deliveries_of(load: &Load, run: usize) -> u64 {
    let Load { layout, subscribers, .. } = load;
    let of_feed =
        |feed| subscribers / layout.feeds + usize::from(feed < subscribers % layout.feeds);
    layout.feeds_of(run).map(of_feed).sum::<usize>() as u64
}

/// The making of changes and the waiting for their deliveries.
struct Course<'a> {
    ledger: &'a Ledger,
    writer: &'a Writer,
    load: Load,
    versions: &'a mut [u64],
    next: usize,
}

/// The run of the change of this number: a stride that visits every run, neighbours far apart.
pub fn run_of(change: usize, runs: usize) -> usize {
    (change * 7919) % runs
}

impl Course<'_> {
    fn next(&mut self) -> Version {
        let run = run_of(self.next, self.load.layout.runs);
        self.next += 1;
        self.versions[run] += 1;
        (run, self.versions[run])
    }

    /// Each change when the one before has reached everyone.
    async fn closed(&mut self, count: usize) -> Result<Vec<Made>> {
        let mut made = Vec::with_capacity(count);
        for _ in 0..count {
            let (run, version) = self.next();
            let goal = self.ledger.progress() + deliveries_of(&self.load, run);
            let change = self.writer.change(&[(run, version)]).await?;
            let reached = self.ledger.reach(goal, ROUND_LIMIT).await;
            fail_if_stuck(reached, self.ledger, "a change did not reach every subscriber")?;
            made.push(Made { run, version, change });
            if !self.load.pause.is_zero() {
                tokio::time::sleep(self.load.pause).await;
            }
        }
        Ok(made)
    }

    /// Changes on a clock, whether the ones before have arrived or not.
    async fn open(&mut self, count: usize, rate: f64) -> Result<Vec<Made>> {
        let mut goal = self.ledger.progress();
        let began = Instant::now();
        let mut orders = Vec::with_capacity(count);
        for index in 0..count {
            let (run, version) = self.next();
            goal += deliveries_of(&self.load, run);
            let due = began + Duration::from_secs_f64(index as f64 / rate.max(0.001));
            orders.push((run, version, self.writer.order(vec![(run, version)], Some(due))));
        }
        let mut made = Vec::with_capacity(count);
        for (run, version, order) in orders {
            let change = order.await.context("the writer has ended")??;
            made.push(Made { run, version, change });
        }
        let reached = self.ledger.reach(goal, ROUND_LIMIT).await;
        fail_if_stuck(reached, self.ledger, "not every change reached its subscribers")?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_expected_by_every_subscriber_of_each_of_its_runs_feeds() {
        let load = |layout, subscribers| Load {
            layout,
            subscribers,
            updates: 1,
            warm_up: 0,
            rate: None,
            pause: Duration::ZERO,
        };
        assert_eq!(deliveries_of(&load(Layout::runs(3), 10), 0), 4);
        assert_eq!(deliveries_of(&load(Layout::runs(3), 10), 2), 3);
        assert_eq!(deliveries_of(&load(Layout::tags(1, 10), 500), 7), 500);
        let three = Layout { feeds_per_run: 3, ..Layout::tags(100, 5_000) };
        assert_eq!(deliveries_of(&load(three, 1_000), 7), 30);
    }
}
