//! One trial: N subscribers are held by one server while changes are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::ledger::{Delivery, Faults, Ledger};
use crate::process::{Parties, Spent, load_average, resident_kib};
use crate::runs::FIRST_VERSION;
use crate::server::Server;
use crate::statistics::Percentiles;
use crate::subscriber::{Crowd, subscribe};
use crate::writer::{Change, Writer};

/// The load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many subscribers.
    pub subscribers: usize,
    /// Of how many runs; subscriber `i` follows run `i % runs`.
    pub runs: usize,
    /// How many changes are measured.
    pub updates: usize,
    /// How many changes are made before.
    pub warm_up: usize,
    /// Changes per second; `None`: each when the one before has reached everyone.
    pub rate: Option<f64>,
    /// Without a rate, the pause between a change's last delivery and the next change.
    pub pause: Duration,
}

/// Limits of one trial's parts; whatever exceeds them ends the trial.
const SETUP_LIMIT: Duration = Duration::from_secs(180);
const ROUND_LIMIT: Duration = Duration::from_secs(60);
/// Until the last poll, which has just been sent, is held.
const SETTLE: Duration = Duration::from_millis(500);
/// How many subscribers may be between their first request and their first live poll.
const AT_ONCE: usize = 128;

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
        self.resident[when].saturating_sub(self.resident[0]) as f64 / (subscribers as f64).max(1.0)
    }

    /// Deliveries that one core of the server would make in a second.
    pub fn per_core_second(&self) -> f64 {
        self.got as f64 / self.spent.server.as_secs_f64().max(1e-9)
    }
}

struct Made {
    run: usize,
    version: u64,
    change: Change,
}

/// Holds the subscribers, makes the changes and measures.
pub async fn hold_and_change(
    server: &Server,
    postgres: Option<u32>,
    writer: &Writer,
    load: Load,
    first_version: &mut [u64],
) -> Result<Found> {
    let parties = Parties { server: server.pid(), postgres };
    let empty = resident_kib(server.pid())?;
    let ledger = Ledger::new();
    let crowd = Arc::new(Crowd {
        address: server.address,
        ledger: ledger.clone(),
        admission: Semaphore::new(AT_ONCE),
    });
    let before = parties.read()?;
    let began = Instant::now();
    let mut subscribers = JoinSet::new();
    for index in 0..load.subscribers {
        subscribers.spawn(subscribe(crowd.clone(), index % load.runs));
    }
    let live = ledger.all_live(load.subscribers, SETUP_LIMIT).await;
    fail_if_stuck(live, &ledger, "not all subscribers became live")?;
    let setup = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let setup_cpu = parties.since(&before)?.server;
    let held = resident_kib(server.pid())?;

    let mut course = Course { ledger: &ledger, writer, load, versions: first_version, next: 0 };
    course.closed(load.warm_up).await?;
    ledger.forget_deliveries();
    let before = parties.read()?;
    let made = match load.rate {
        None => course.closed(load.updates).await?,
        Some(rate) => course.open(load.updates, rate).await?,
    };
    let spent = parties.since(&before)?;
    let resident = [empty, held, resident_kib(server.pid())?];
    // Everything that is still under way would come now; what comes twice is to be seen.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let deliveries = ledger.take_deliveries();
    subscribers.shutdown().await;

    let per_change = load.subscribers.div_ceil(load.runs);
    let sums = evaluate(&made, &deliveries);
    Ok(Found {
        setup,
        setup_cpu,
        latency: Percentiles::of(sums.latencies),
        last: Percentiles::of(sums.lasts),
        commit: Percentiles::of(made.iter().map(|made| ms(made.change.took)).collect()),
        got: deliveries.len() as u64,
        expected: (made.len() * per_change) as u64,
        per_second: deliveries.len() as f64 / sums.delivering.max(1e-9),
        spent,
        resident,
        load_average: load_average(),
        faults: ledger.faults(),
        held_out: ledger.polls_held_out(),
    })
}

/// The making of changes and the waiting for their deliveries.
struct Course<'a> {
    ledger: &'a Ledger,
    writer: &'a Writer,
    load: Load,
    versions: &'a mut [u64],
    next: usize,
}

impl Course<'_> {
    fn next(&mut self) -> (usize, u64) {
        // A stride that visits every run, neighbours far apart.
        let run = (self.next * 7919) % self.load.runs;
        self.next += 1;
        self.versions[run] += 1;
        (run, self.versions[run])
    }

    fn deliveries_of(&self, run: usize) -> u64 {
        let (subscribers, runs) = (self.load.subscribers, self.load.runs);
        (subscribers / runs + usize::from(run < subscribers % runs)) as u64
    }

    /// Each change when the one before has reached everyone.
    async fn closed(&mut self, count: usize) -> Result<Vec<Made>> {
        let mut made = Vec::with_capacity(count);
        for _ in 0..count {
            let (run, version) = self.next();
            let goal = self.ledger.progress() + self.deliveries_of(run);
            let change = self.writer.change(run, version).await?;
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
        let mut clock = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.max(0.001)));
        let mut orders = Vec::with_capacity(count);
        for _ in 0..count {
            clock.tick().await;
            let (run, version) = self.next();
            goal += self.deliveries_of(run);
            orders.push((run, version, self.writer.order(run, version)));
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

fn fail_if_stuck(reached: bool, ledger: &Ledger, what: &str) -> Result<()> {
    if !reached {
        bail!("{what}: {:?}", ledger.faults());
    }
    Ok(())
}

struct Sums {
    latencies: Vec<f64>,
    lasts: Vec<f64>,
    delivering: f64,
}

/// Joins deliveries to their changes. A delivery may precede its commit's return: the walsender and the
/// writer's backend are woken together.
fn evaluate(made: &[Made], deliveries: &[Delivery]) -> Sums {
    let index: std::collections::HashMap<(u32, u64), usize> =
        made.iter().enumerate().map(|(i, made)| ((made.run as u32, made.version), i)).collect();
    let mut lasts: Vec<Option<f64>> = vec![None; made.len()];
    let mut latencies = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let Some(&i) = index.get(&(delivery.run, delivery.version)) else { continue };
        let latency = signed_ms(delivery.at, made[i].change.at);
        latencies.push(latency);
        lasts[i] = Some(lasts[i].map_or(latency, |last| last.max(latency)));
    }
    let lasts: Vec<f64> = lasts.into_iter().flatten().collect();
    let delivering = lasts.iter().map(|last| last.max(0.0)).sum::<f64>() / 1e3;
    Sums { latencies, lasts, delivering }
}

/// A duration in milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How much later `at` is than `origin`, in milliseconds.
pub fn signed_ms(at: Instant, origin: Instant) -> f64 {
    match at.checked_duration_since(origin) {
        Some(later) => ms(later),
        None => -ms(origin - at),
    }
}

/// The versions of `runs` runs that nobody has changed yet.
pub fn untouched(runs: usize) -> Vec<u64> {
    vec![FIRST_VERSION; runs]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_measured_from_its_own_commit_and_may_precede_it() {
        let at = Instant::now() + Duration::from_secs(1);
        let made = [Made { run: 2, version: 9, change: Change { at, took: Duration::ZERO } }];
        let delivery = |at| Delivery { run: 2, version: 9, at };
        let sums = evaluate(
            &made,
            &[
                delivery(at - Duration::from_millis(1)),
                delivery(at + Duration::from_millis(3)),
                Delivery { run: 1, version: 9, at },
            ],
        );
        assert_eq!(sums.latencies, [-1.0, 3.0]);
        assert_eq!(sums.lasts, [3.0]);
        assert_eq!(sums.delivering, 0.003);
    }
}
