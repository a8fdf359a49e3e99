//! The same load on Runwire and on the bare server, and the tables of it.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Setting, Side, Sides};
use crate::latency::ms;
use crate::report::{Report, events, others};
use crate::statistics::{Percentiles, median, middle_and_range, ratio};
use crate::trial::{END, Found, HELD, Load, hold_and_change};

/// The trials of one load.
struct Comparison {
    load: Load,
    sides: Sides<Found>,
}

/// Tries each load on both servers in turns, and reports all of them under one heading.
pub async fn compare_all(
    bench: &Bench,
    report: &mut Report,
    heading: &str,
    loads: impl Iterator<Item = Load>,
) -> Result<()> {
    let mut comparisons = Vec::new();
    for load in loads {
        comparisons.push(Comparison { load, sides: compare(bench, load).await? });
    }
    report.heading(heading);
    report.table([
        "server",
        "N",
        "p50 / p90 / p99 / max, ms",
        "last of all p50 / max, ms",
        "deliveries/s (min–max)",
        "got/expected",
        "server CPU, ms per 1,000 (min–max)",
        "client CPU, ms per 1,000",
        "RSS per subscriber held / at the end, KiB",
        "RSS empty → held → end, MiB",
        "all live after, s (CPU, s)",
        "snapshot queries",
        "other CPU, max",
        "load average",
        "events",
    ]);
    for Comparison { load, sides } in &comparisons {
        for (server, trials) in sides.tried() {
            row(report, server, load, trials);
        }
    }
    ratios(report, &comparisons);
    Ok(())
}

async fn compare(bench: &Bench, load: Load) -> Result<Sides<Found>> {
    // The bare server needs no commit. It is given the time of one before each change, so that
    // both have the same time to take the next polls in.
    let mut commits = Vec::new();
    let mut paused = load;
    bench
        .in_turns(Setting::of(load.layout), async |turn| {
            let side = turn.side;
            if side == Side::Bare {
                let commit = Duration::from_secs_f64(median(commits.iter().copied()) / 1e3);
                paused.pause = load.pause + commit;
            }
            let load = if side == Side::Bare { paused } else { load };
            let found = hold_and_change(turn, load).await?;
            if side == Side::Runwire {
                commits.push(found.commit.p50);
            }
            progress(side, &load, &found);
            Ok(found)
        })
        .await
}

/// Says on standard error what a trial found, so that a long invocation shows that it moves.
fn progress(side: Side, load: &Load, found: &Found) {
    eprintln!(
        "{side:?}, N={}: p50 {:.2} ms, last {:.2} ms, {:.0}/s, {:.1} µs per delivery, others {:.0} %",
        load.subscribers,
        found.latency.p50,
        found.last.p50,
        found.per_second,
        found.server_us(),
        found.spent.others * 100.0,
    );
}

fn row(report: &mut Report, server: &str, load: &Load, trials: &[Found]) {
    let Some(latest) = trials.last() else { return };
    let subscribers = load.subscribers;
    let middle = |value: &dyn Fn(&Found) -> f64| median(trials.iter().map(value));
    let sum = |value: &dyn Fn(&Found) -> u64| trials.iter().map(value).sum::<u64>();
    let mib = |index: usize| middle(&|t| t.resident[index] as f64 / 1024.0);
    let latency = |value: fn(&Percentiles) -> f64| {
        format!("{:.2}", median(trials.iter().map(|t| value(&t.latency))))
    };
    report.row([
        server.to_owned(),
        subscribers.to_string(),
        [latency(|l| l.p50), latency(|l| l.p90), latency(|l| l.p99), latency(|l| l.max)]
            .join(" / "),
        format!("{:.2} / {:.2}", middle(&|t| t.last.p50), middle(&|t| t.last.max)),
        middle_and_range(trials.iter().map(|t| t.per_second), 0),
        format!("{}/{}", sum(&|t| t.got), sum(&|t| t.expected)),
        middle_and_range(trials.iter().map(Found::server_us), 1),
        format!("{:.1}", middle(&Found::client_us)),
        format!(
            "{:.1} / {:.1}",
            middle(&|t| t.kib_per_subscriber(HELD, subscribers)),
            middle(&|t| t.kib_per_subscriber(END, subscribers))
        ),
        format!("{:.0} → {:.0} → {:.0}", mib(0), mib(HELD), mib(END)),
        format!(
            "{:.2} ({:.2})",
            middle(&|t| ms(t.setup) / 1e3),
            middle(&|t| t.setup_cpu.as_secs_f64())
        ),
        middle_and_range(trials.iter().filter_map(|t| t.queries), 0),
        others(trials.iter().map(|t| t.spent.others)),
        latest.load_average.clone(),
        events(trials.iter().map(|t| (&t.faults, t.held_out))),
    ]);
}

fn ratios(report: &mut Report, comparisons: &[Comparison]) {
    if comparisons.iter().all(|comparison| comparison.sides.runwire.is_empty()) {
        return;
    }
    report.line("");
    report.table([
        "Runwire as a ratio to bare hyper",
        "deliveries/s",
        "deliveries per server core second",
        "server CPU per delivery",
        "RSS per subscriber held",
        "… at the end",
        "commit, p50 ms",
        "Postgres CPU, ms per change",
    ]);
    for Comparison { load, sides } in comparisons {
        let Sides { runwire, bare } = sides;
        let ratio = |value: &dyn Fn(&Found) -> f64| {
            ratio(runwire.iter().map(value), bare.iter().map(value))
        };
        let changes = load.updates as f64;
        report.row([
            format!("N = {}", load.subscribers),
            ratio(&|t| t.per_second),
            ratio(&Found::per_core_second),
            ratio(&Found::server_us),
            ratio(&|t| t.kib_per_subscriber(HELD, load.subscribers)),
            ratio(&|t| t.kib_per_subscriber(END, load.subscribers)),
            format!("{:.2}", median(runwire.iter().map(|t| t.commit.p50))),
            format!("{:.2}", median(runwire.iter().map(|t| ms(t.spent.postgres) / changes))),
        ]);
    }
}
