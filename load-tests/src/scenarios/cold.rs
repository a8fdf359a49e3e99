//! Everybody comes at once, as after a restart of what stands in front.

use anyhow::Result;
use clap::Args;

use crate::bench::{Bench, Setting, Sides};
use crate::crowd::{Coming, gather};
use crate::layout::Layout;
use crate::ledger::Faults;
use crate::process::Spent;
use crate::report::{Report, events, others};
use crate::statistics::{middle_and_range, ratio};

#[derive(Args)]
pub struct Cold {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [15_000])]
    subscribers: Vec<usize>,
    /// How many runs carry the one tag
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Only the subscribers of runs of their own
    #[arg(long, conflicts_with = "tag_only")]
    own_only: bool,
    /// Only the subscribers of one tag
    #[arg(long)]
    tag_only: bool,
}

struct Arrival {
    seconds: f64,
    spent: Spent,
    queries: Option<f64>,
    faults: Faults,
}

impl Cold {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let mut all = Vec::new();
        for &subscribers in &self.subscribers {
            if !self.tag_only {
                let sides = arrive(bench, Layout::runs(subscribers), subscribers).await?;
                all.push(("a run of its own each", subscribers, sides));
            }
            if !self.own_only {
                let sides = arrive(bench, Layout::tags(1, self.runs), subscribers).await?;
                all.push(("all on one tag", subscribers, sides));
            }
        }
        report.heading("Cold start: N subscribers connect at once");
        report.table([
            "server",
            "N",
            "of",
            "all up to date after, s (min–max)",
            "server CPU, s",
            "Postgres CPU, s",
            "client CPU, s",
            "snapshot queries",
            "other CPU, max",
            "events",
        ]);
        for (of, subscribers, sides) in &all {
            for (server, trials) in sides.tried() {
                let cpu = |value: fn(&Spent) -> std::time::Duration| {
                    middle_and_range(trials.iter().map(|t| value(&t.spent).as_secs_f64()), 2)
                };
                report.row([
                    server.to_owned(),
                    subscribers.to_string(),
                    (*of).to_owned(),
                    middle_and_range(trials.iter().map(|t| t.seconds), 2),
                    cpu(|spent| spent.server),
                    cpu(|spent| spent.postgres),
                    cpu(|spent| spent.client),
                    middle_and_range(trials.iter().filter_map(|t| t.queries), 0),
                    others(trials.iter().map(|t| t.spent.others)),
                    events(trials.iter().map(|t| (&t.faults, 0))),
                ]);
            }
        }
        report.line("");
        for (of, subscribers, Sides { runwire, bare }) in &all {
            let cpu = |trials: &[Arrival]| -> Vec<f64> {
                trials.iter().map(|t| t.spent.server.as_secs_f64()).collect()
            };
            let time =
                |trials: &[Arrival]| -> Vec<f64> { trials.iter().map(|t| t.seconds).collect() };
            report.line(&format!(
                "- {subscribers}, {of}: {} times the bare server's time, {} times its CPU",
                ratio(time(runwire), time(bare)),
                ratio(cpu(runwire), cpu(bare)),
            ));
        }
        Ok(())
    }
}

async fn arrive(bench: &Bench, layout: Layout, subscribers: usize) -> Result<Sides<Arrival>> {
    let coming = Coming { subscribers, layout, at_once: subscribers, streams: None };
    bench
        .in_turns(Setting::of(layout), async |turn| {
            let mut gathered = gather(&turn, coming).await?;
            gathered.subscribers.shutdown().await;
            let arrival = Arrival {
                seconds: gathered.setup.as_secs_f64(),
                spent: gathered.spent,
                queries: gathered.queries,
                faults: gathered.ledger.faults(),
            };
            let Arrival { seconds, queries, spent, .. } = &arrival;
            eprintln!(
                "{:?}, N={subscribers}: {seconds:.2} s, {queries:?} queries, {spent:?}",
                turn.side
            );
            Ok(arrival)
        })
        .await
}
