//! What one trial with deliveries has found, and its row.

use std::time::Duration;

use anyhow::Result;

use super::{LIMIT, Side, of, sound};
use crate::ledger::Faults;
use crate::process::Spent;
use crate::report::{Report, events, others};
use crate::statistics::{Percentiles, median, middle_and_range, ratio};
use crate::streams::chunk::now;
use crate::streams::stand::Stand;
use crate::streams::tally::Tally;
use crate::streams::writing::{Plan, prepare};

/// What was found while some chunks were written and delivered.
pub struct Measured {
    /// From just before a chunk was sent until a reader had it, in ms.
    pub latency: Percentiles,
    pub deliveries: u64,
    /// From the first chunk to the last delivery, in seconds.
    pub wall: f64,
    pub spent: Spent,
    pub faults: Faults,
}

impl Measured {
    /// Writes the plan's chunks, each of which goes to so many readers, and waits for all deliveries.
    pub async fn of(
        stand: &Stand,
        tally: &Tally,
        plan: Plan,
        readers: usize,
    ) -> Result<Option<Measured>> {
        let goal = plan.chunks * (plan.leaves.len() * readers) as u64;
        let writing = prepare(plan).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = stand.parties.read()?;
        let began = now();
        let reached = async { anyhow::Ok(tally.reach(goal, LIMIT).await) };
        let ((), reached) = tokio::try_join!(writing.go(), reached)?;
        let spent = stand.parties.since(&before)?;
        let faults = tally.faults();
        if !reached && faults.failed == 0 {
            return Ok(None);
        }
        sound(reached, tally, "not every reader got every chunk once")?;
        let delivered = tally.take();
        Ok(Some(Measured {
            latency: Percentiles::of(delivered.latencies),
            deliveries: delivered.count,
            wall: delivered.last.saturating_sub(began) as f64 / 1e6,
            spent,
            faults,
        }))
    }

    pub fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.wall.max(1e-9)
    }

    /// Milliseconds of the server's CPU.
    pub fn per_thousand(&self) -> f64 {
        self.spent.server.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }

    /// How busy readers and writers were, who have one core.
    pub fn client_share(&self) -> f64 {
        self.spent.client.as_secs_f64() / self.wall.max(1e-9)
    }

    /// Deliveries for a second of the server's CPU.
    pub fn per_core(&self) -> f64 {
        self.deliveries as f64 / self.spent.server.as_secs_f64().max(0.01)
    }
}

/// The columns of [`row`].
pub const COLUMNS: [&str; 11] = [
    "server",
    "N",
    "chunks/s of a stream",
    "append → reader p50, ms (min–max)",
    "p99, ms (min–max)",
    "deliveries/s",
    "server CPU, ms per 1,000 deliveries",
    "deliveries per second of a core",
    "client CPU, % of a core",
    "other CPU, max",
    "events",
];

/// One server's row for some trials alike.
pub fn row(report: &mut Report, side: Side, n: usize, rate: f64, trials: &[Measured]) {
    let all = |value: fn(&Measured) -> f64| trials.iter().map(value);
    report.row([
        side.name().to_owned(),
        n.to_string(),
        format!("{rate:.1}"),
        middle_and_range(all(|t| t.latency.p50), 2),
        middle_and_range(all(|t| t.latency.p99), 2),
        format!("{:.0}", median(all(Measured::per_second))),
        middle_and_range(all(Measured::per_thousand), 1),
        format!("{:.0}", median(all(Measured::per_core))),
        format!("{:.0}", median(all(Measured::client_share)) * 100.0),
        others(trials.iter().map(|t| t.spent.others)),
        events(trials.iter().map(|t| (&t.faults, 0))),
    ]);
}

/// How the two compare, in a line.
pub fn compare(report: &mut Report, n: usize, tried: &[(Side, Vec<Measured>)]) {
    let (ours, theirs) = (of(tried, Side::Runwire), of(tried, Side::Lite));
    if ours.is_empty() || theirs.is_empty() {
        return;
    }
    let p50 = |trials: &[Measured]| median(trials.iter().map(|t| t.latency.p50));
    report.line(&format!(
        "- N = {n}: p50 {:+.2} ms from s2-lite's; {} times its deliveries per second of a core",
        p50(ours) - p50(theirs),
        ratio(ours.iter().map(Measured::per_core), theirs.iter().map(Measured::per_core)),
    ));
}
