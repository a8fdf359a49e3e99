//! Whether a lone subscriber suffers from a crowd: 10,000 on one tag that changes all the time, and one
//! on a run that has nothing to do with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::sync::Semaphore;

use crate::aside::Aside;
use crate::bench::{Bench, Setting, Side, Turn};
use crate::crowd::{AT_ONCE, Coming, fail_if_stuck, spawn};
use crate::http1;
use crate::latency::{Made, evaluate};
use crate::layout::{Layout, Target};
use crate::ledger::Ledger;
use crate::process::Spent;
use crate::report::{Report, events, others};
use crate::statistics::{Percentiles, median, middle_and_range};
use crate::subscriber::Crowd;
use crate::writer::Writer;

const LIMIT: Duration = Duration::from_secs(120);
/// The run that carries the crowd's tag, and the lone one's.
const CROWDED: usize = 0;
const LONE: usize = 1;

#[derive(Args)]
pub struct Lone {
    /// How many follow the tag
    #[arg(long, default_value_t = 10_000)]
    crowd: usize,
    /// How often the tag's run changes, per second
    #[arg(long, default_value_t = 2.0)]
    rate: f64,
    /// Milliseconds between two changes of the lone run; out of step with the tag's
    #[arg(long, default_value_t = 53)]
    every_ms: u64,
    /// For how many seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

struct Company {
    lone: Percentiles,
    last_of_crowd: f64,
    spent: Spent,
    events: String,
}

impl Lone {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let layout = Layout::tags(2, 2);
        let mut all = Vec::new();
        for crowd in [0, self.crowd] {
            let attempt = async |turn: Turn<'_>| {
                let side = turn.side;
                // The crowd's changes must not wait for the lone one's, nor the reverse.
                let second = match (side, &bench.gateway) {
                    (Side::Runwire, Some(gateway)) => {
                        Writer::postgres(gateway.database.url.clone())
                    }
                    _ => Writer::bare(turn.server.address),
                };
                let found = self.attempt(turn, layout, crowd, &second).await?;
                eprintln!(
                    "{side:?}, beside {crowd}: p50 {:.2} p99 {:.2} max {:.2} ms; crowd's last {:.0} ms",
                    found.lone.p50, found.lone.p99, found.lone.max, found.last_of_crowd
                );
                Ok(found)
            };
            all.push((crowd, bench.in_turns(Setting::of(layout), attempt).await?));
        }
        report.heading(&format!(
            "A lone subscriber of a run beside N of a tag that changes {} times a second",
            self.rate
        ));
        report.table([
            "server",
            "N",
            "lone, commit → delivery p50 / p90, ms",
            "p99, ms (min–max)",
            "max, ms",
            "last of the crowd p50, ms",
            "server CPU, s",
            "other CPU, max",
            "events, both",
        ]);
        for (crowd, sides) in &all {
            for (server, trials) in sides.tried() {
                let Some(latest) = trials.last() else { continue };
                let middle = |value: fn(&Company) -> f64| median(trials.iter().map(value));
                report.row([
                    server.to_owned(),
                    crowd.to_string(),
                    format!("{:.2} / {:.2}", middle(|t| t.lone.p50), middle(|t| t.lone.p90)),
                    middle_and_range(trials.iter().map(|t| t.lone.p99), 2),
                    middle_and_range(trials.iter().map(|t| t.lone.max), 2),
                    format!("{:.0}", middle(|t| t.last_of_crowd)),
                    middle_and_range(trials.iter().map(|t| t.spent.server.as_secs_f64()), 2),
                    others(trials.iter().map(|t| t.spent.others)),
                    latest.events.clone(),
                ]);
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        turn: Turn<'_>,
        layout: Layout,
        crowd: usize,
        second: &Writer,
    ) -> Result<Company> {
        let shared = |at_once| {
            let (ledger, admission) = (Ledger::new(), Semaphore::new(at_once));
            Arc::new(Crowd { address: turn.server.address, ledger, admission, runs: 1 })
        };
        let (many, lone) = (shared(AT_ONCE), shared(1));
        // Only the tag: the other run carries another.
        let on_tag = Layout { feeds: 1, ..layout };
        let coming = Coming { subscribers: crowd, layout: on_tag, at_once: AT_ONCE, streams: None };
        let theirs = Arc::clone(&many);
        let _crowd = Aside::start(async move |stopped| {
            let mut subscribers = spawn(&theirs, coming);
            let _ = stopped.await;
            subscribers.shutdown().await;
        })?;
        let subscriber = tokio::spawn(http1::subscribe(Arc::clone(&lone), Target::run(LONE)));
        fail_if_stuck(many.ledger.all_live(crowd, LIMIT).await, &many.ledger, "no crowd")?;
        fail_if_stuck(lone.ledger.all_live(1, LIMIT).await, &lone.ledger, "nobody alone")?;
        tokio::time::sleep(Duration::from_millis(500)).await;

        let before = turn.parties.read()?;
        let began = Instant::now();
        let span = Duration::from_secs(self.seconds);
        let mut order = |writer: &Writer, run: usize, every: Duration| {
            let count = (span.as_secs_f64() / every.as_secs_f64()) as u32;
            let orders = (0..count).map(|index| {
                turn.versions[run] += 1;
                let version = turn.versions[run];
                (version, writer.order(vec![(run, version)], Some(began + every * index)))
            });
            orders.collect::<Vec<_>>()
        };
        let of_tag = order(second, CROWDED, Duration::from_secs_f64(1.0 / self.rate));
        let of_lone = order(turn.writer, LONE, Duration::from_millis(self.every_ms));
        let goals = (of_tag.len() * crowd, of_lone.len());
        let mut made = [Vec::new(), Vec::new()];
        for (made, (run, orders)) in made.iter_mut().zip([(CROWDED, of_tag), (LONE, of_lone)]) {
            for (version, order) in orders {
                let change = order.await.context("the writer has ended")??;
                made.push(Made { run, version, change });
            }
        }
        let reached = many.ledger.reach(goals.0 as u64, LIMIT).await;
        fail_if_stuck(reached, &many.ledger, "not all of the crowd got every change")?;
        let reached = lone.ledger.reach(goals.1 as u64, LIMIT).await;
        fail_if_stuck(reached, &lone.ledger, "the lone one did not get every change")?;
        let spent = turn.parties.since(&before)?;
        subscriber.abort();
        let of_crowd = evaluate(&made[0], &many.ledger.take_deliveries());
        let of_lone = evaluate(&made[1], &lone.ledger.take_deliveries());
        let both = [&many.ledger, &lone.ledger].map(|l| (l.faults(), l.polls_held_out()));
        Ok(Company {
            lone: Percentiles::of(of_lone.latencies),
            last_of_crowd: median(of_crowd.lasts),
            spent,
            events: events(both.iter().map(|(faults, held_out)| (faults, *held_out))),
        })
    }
}
