//! What it costs to hold polls that nothing happens to.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::bench::{Bench, Setting, Sides};
use crate::crowd::{AT_ONCE, Coming, gather};
use crate::layout::Layout;
use crate::ledger::Faults;
use crate::process::{Spent, resident_kib};
use crate::report::{Report, events, others};
use crate::statistics::{median, middle_and_range, ratio};

/// Descriptors that a process needs besides those of its connections.
const SPARE_DESCRIPTORS: u64 = 200;

#[derive(Args)]
pub struct Idle {
    /// Subscribers over HTTP/1.1, each with a connection [default: up to the limit of descriptors]
    #[arg(long)]
    http1: Option<usize>,
    /// Subscribers over HTTP/2; 0 leaves it out
    #[arg(long, default_value_t = 100_000)]
    http2: usize,
    /// How many of those share a connection
    #[arg(long, default_value_t = 400)]
    streams: usize,
    /// For how many seconds the CPU time of doing nothing is taken
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How long Runwire holds a poll, in seconds, with its ±15 %; by 20 every poll ends about once in the measured time
    #[arg(long, default_value_t = 20)]
    hold: u64,
    /// Follow this many runs instead of one each
    #[arg(long)]
    runs: Option<usize>,
}

struct Quiet {
    empty: u64,
    held: u64,
    end: u64,
    setup: f64,
    idle: Spent,
    held_out: u64,
    faults: Faults,
}

impl Idle {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let descriptors = bench.descriptors;
        let most = usize::try_from(descriptors.saturating_sub(SPARE_DESCRIPTORS))?;
        let http1 = self.http1.unwrap_or(most.min(100_000));
        ensure!(http1 <= most, "{http1} connections need more than {descriptors} descriptors");
        let mut all = Vec::new();
        for (version, subscribers, streams) in
            [("HTTP/1.1", http1, None), ("HTTP/2", self.http2, Some(self.streams))]
        {
            if subscribers > 0 {
                all.push((version, subscribers, self.hold(bench, subscribers, streams).await?));
            }
        }
        report.heading("Idle: N held polls that nothing happens to");
        report.table([
            "server",
            "over",
            "N",
            "RSS per hold, KiB (min–max)",
            "… after the quiet time",
            "RSS empty → held → end, MiB",
            "all held after, s",
            "server CPU while quiet, % of a core",
            "polls ended and sent again",
            "CPU per such poll, µs",
            "other CPU, max",
            "events",
        ]);
        for (version, subscribers, sides) in &all {
            for (server, trials) in sides.tried() {
                let n = *subscribers;
                let mib = |value: fn(&Quiet) -> u64| {
                    format!("{:.0}", median(trials.iter().map(|t| value(t) as f64 / 1024.0)))
                };
                let polls = trials.iter().filter(|t| t.held_out > 0);
                report.row([
                    server.to_owned(),
                    (*version).to_owned(),
                    n.to_string(),
                    middle_and_range(trials.iter().map(|t| t.kib(t.held, n)), 2),
                    middle_and_range(trials.iter().map(|t| t.kib(t.end, n)), 2),
                    [mib(|t| t.empty), mib(|t| t.held), mib(|t| t.end)].join(" → "),
                    middle_and_range(trials.iter().map(|t| t.setup), 1),
                    middle_and_range(trials.iter().map(|t| t.busy(self.seconds) * 100.0), 2),
                    middle_and_range(trials.iter().map(|t| t.held_out as f64), 0),
                    middle_and_range(
                        polls.map(|t| t.idle.server.as_secs_f64() * 1e6 / t.held_out as f64),
                        1,
                    ),
                    others(trials.iter().map(|t| t.idle.others)),
                    events(trials.iter().map(|t| (&t.faults, 0))),
                ]);
            }
        }
        report.line("");
        for (version, subscribers, Sides { runwire, bare }) in &all {
            let kib = |trials: &[Quiet], value: fn(&Quiet) -> u64| -> Vec<f64> {
                trials.iter().map(|t| t.kib(value(t), *subscribers)).collect()
            };
            report.line(&format!(
                "- {version}: {} times the bare server's RSS per hold, {} times after the quiet time",
                ratio(kib(runwire, |t| t.held), kib(bare, |t| t.held)),
                ratio(kib(runwire, |t| t.end), kib(bare, |t| t.end)),
            ));
        }
        Ok(())
    }

    async fn hold(
        &self,
        bench: &Bench,
        subscribers: usize,
        streams: Option<usize>,
    ) -> Result<Sides<Quiet>> {
        let layout = Layout::runs(self.runs.unwrap_or(subscribers));
        let setting = Setting {
            http2: streams.is_some(),
            hold: Some(Duration::from_secs(self.hold)),
            ..Setting::of(layout)
        };
        let coming = Coming { subscribers, layout, at_once: AT_ONCE, streams };
        let seconds = Duration::from_secs(self.seconds);
        bench
            .in_turns(setting, async |turn| {
                let mut gathered = gather(&turn, coming).await?;
                let held_out = gathered.ledger.polls_held_out();
                let before = turn.parties.read()?;
                tokio::time::sleep(seconds).await;
                let idle = turn.parties.since(&before)?;
                let quiet = Quiet {
                    empty: gathered.empty,
                    held: gathered.held,
                    end: resident_kib(turn.parties.server)?,
                    setup: gathered.setup.as_secs_f64(),
                    idle,
                    held_out: gathered.ledger.polls_held_out() - held_out,
                    faults: gathered.ledger.faults(),
                };
                gathered.subscribers.shutdown().await;
                let faults = &quiet.faults;
                ensure!(faults.failed == 0, "subscribers gave up: {faults:?}");
                eprintln!(
                    "{:?}, N={subscribers}: {:.2} KiB per hold, {:.3} of a core",
                    turn.side,
                    quiet.kib(quiet.held, subscribers),
                    quiet.busy(self.seconds)
                );
                Ok(quiet)
            })
            .await
    }
}

impl Quiet {
    fn kib(&self, resident: u64, subscribers: usize) -> f64 {
        crate::crowd::per_subscriber(self.empty, resident, subscribers)
    }

    fn busy(&self, seconds: u64) -> f64 {
        self.idle.server.as_secs_f64() / (seconds as f64).max(1.0)
    }
}
