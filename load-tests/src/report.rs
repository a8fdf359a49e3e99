//! Results as Markdown.

use std::fmt::Write;

use crate::backlog::{Backlog, Drain};
use crate::comparison::Comparison;
use crate::statistics::{Percentiles, median};
use crate::trial::{END, Found, HELD, ms};

/// A document that grows by sections.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Adds a heading.
    pub fn heading(&mut self, heading: &str) {
        self.line("");
        self.line(&format!("### {heading}"));
        self.line("");
    }

    /// Adds a list of facts.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        for (name, value) in facts {
            self.line(&format!("- {name}: {value}"));
        }
    }

    /// Adds the table of comparisons of one kind.
    pub fn comparisons(&mut self, comparisons: &[Comparison]) {
        self.line(
            "| server | N | p50 / p90 / p99 / max, ms | last of all p50 / max, ms | deliveries/s (min–max) | got/expected | server CPU, ms per 1,000 (min–max) | client CPU, ms per 1,000 | RSS per subscriber held / at the end, KiB | RSS empty → held → end, MiB | all live after, s (CPU, s) | other CPU, max | load average | events |",
        );
        self.line("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
        for comparison in comparisons {
            self.row("Runwire", comparison, &comparison.runwire);
            self.row("bare hyper", comparison, &comparison.bare);
        }
        self.ratios(comparisons);
    }

    /// Adds how fast the decoder and the window took a recorded stream.
    pub fn intake(&mut self, found: &[crate::intake::Intake]) {
        self.line(
            "| part | changes per CPU second (min–max) | µs per change | MB per CPU second |",
        );
        self.line("|---|---|---|---|");
        for (name, decoding_only) in
            [("decoder", true), ("decoder and window, postings included", false)]
        {
            let seconds = |found: &crate::intake::Intake| {
                (if decoding_only { found.decoding } else { found.whole }).as_secs_f64()
            };
            let rates: Vec<f64> =
                found.iter().map(|found| found.changes as f64 / seconds(found)).collect();
            let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
            let rates = Percentiles::of(rates);
            let bytes = median(found.iter().map(|found| found.bytes as f64 / seconds(found)));
            // Writing into a String cannot fail.
            let _ = writeln!(
                self.text,
                "| {name} | {:.0} ({least:.0}–{:.0}) | {:.2} | {:.0} |",
                rates.p50,
                rates.max,
                1e6 / rates.p50,
                bytes / 1e6,
            );
        }
    }

    /// Adds what became of a backlog.
    pub fn backlog(&mut self, found: &Backlog) {
        self.line(
            "| who drains | wall, s (median; min–max) | CPU, µs per change | Postgres CPU, µs per change | changes/s |",
        );
        self.line("|---|---|---|---|---|");
        self.drains("Runwire, from start to ready", &found.runwire, found.changes);
        match &found.receiver[..] {
            [] => self.line("| pg_recvlogical is not beside this Postgres | – | – | – | – |"),
            drains => self.drains("pg_recvlogical to /dev/null", drains, found.changes),
        }
        self.line("");
        let list = |values: &[f64]| {
            values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(", ")
        };
        self.line(&format!(
            "Ready again after a restart on the window that the backlog had filled: {} s. Stopping by SIGTERM before it took {} s.",
            list(&found.restarts),
            list(&found.stops),
        ));
    }

    fn drains(&mut self, who: &str, drains: &[Drain], changes: usize) {
        let wall = Percentiles::of(drains.iter().map(|drain| drain.wall.as_secs_f64()).collect());
        let least =
            drains.iter().map(|drain| drain.wall.as_secs_f64()).fold(f64::INFINITY, f64::min);
        let each = |value: fn(&Drain) -> std::time::Duration| {
            median(drains.iter().map(|drain| value(drain).as_secs_f64())) * 1e6 / changes as f64
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            self.text,
            "| {who} | {:.2} ({least:.2}–{:.2}) | {:.1} | {:.1} | {:.0} |",
            wall.p50,
            wall.max,
            each(|drain| drain.cpu),
            each(|drain| drain.postgres),
            changes as f64 / wall.p50.max(1e-9),
        );
    }

    fn row(&mut self, server: &str, comparison: &Comparison, trials: &[Found]) {
        if trials.is_empty() {
            return;
        }
        let subscribers = comparison.load.subscribers;
        let middle = |value: &dyn Fn(&Found) -> f64| median(trials.iter().map(value));
        let range = |value: &dyn Fn(&Found) -> f64| {
            let all = Percentiles::of(trials.iter().map(value).collect());
            let least = trials.iter().map(value).fold(f64::INFINITY, f64::min);
            (all.p50, least, all.max)
        };
        let (rate, rate_min, rate_max) = range(&|t| t.per_second);
        let (cpu, cpu_min, cpu_max) = range(&Found::server_us);
        let sum = |value: &dyn Fn(&Found) -> u64| trials.iter().map(value).sum::<u64>();
        let mib = |index: usize| middle(&|t| t.resident[index] as f64 / 1024.0);
        let others = trials.iter().map(|t| t.spent.others).fold(0.0, f64::max);
        let load = trials.last().map_or("", |t| &t.load_average);
        // Writing into a String cannot fail.
        let _ = writeln!(
            self.text,
            "| {server} | {subscribers} | {:.2} / {:.2} / {:.2} / {:.2} | {:.2} / {:.2} | {rate:.0} ({rate_min:.0}–{rate_max:.0}) | {}/{} | {cpu:.1} ({cpu_min:.1}–{cpu_max:.1}) | {:.1} | {:.1} / {:.1} | {:.0} → {:.0} → {:.0} | {:.2} ({:.2}) | {:.0} % | {load} | {} |",
            middle(&|t| t.latency.p50),
            middle(&|t| t.latency.p90),
            middle(&|t| t.latency.p99),
            middle(&|t| t.latency.max),
            middle(&|t| t.last.p50),
            middle(&|t| t.last.max),
            sum(&|t| t.got),
            sum(&|t| t.expected),
            middle(&Found::client_us),
            middle(&|t| t.kib_per_subscriber(HELD, subscribers)),
            middle(&|t| t.kib_per_subscriber(END, subscribers)),
            mib(0),
            mib(1),
            mib(2),
            middle(&|t| ms(t.setup) / 1e3),
            middle(&|t| t.setup_cpu.as_secs_f64()),
            others * 100.0,
            events(trials),
        );
    }

    fn ratios(&mut self, comparisons: &[Comparison]) {
        if comparisons.iter().all(|comparison| comparison.runwire.is_empty()) {
            return;
        }
        self.line("");
        self.line(
            "| Runwire as a ratio to bare hyper | deliveries/s | deliveries per server core second | server CPU per delivery | RSS per subscriber held | … at the end | commit, p50 ms | Postgres CPU, ms per change |",
        );
        self.line("|---|---|---|---|---|---|---|---|");
        for comparison in comparisons {
            let Comparison { load, runwire, bare } = comparison;
            let ratio = |value: &dyn Fn(&Found) -> f64| {
                median(runwire.iter().map(value)) / median(bare.iter().map(value))
            };
            let changes = load.updates as f64;
            let _ = writeln!(
                self.text,
                "| N = {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                load.subscribers,
                ratio(&|t| t.per_second),
                ratio(&Found::per_core_second),
                ratio(&Found::server_us),
                ratio(&|t| t.kib_per_subscriber(HELD, load.subscribers)),
                ratio(&|t| t.kib_per_subscriber(END, load.subscribers)),
                median(runwire.iter().map(|t| t.commit.p50)),
                median(runwire.iter().map(|t| ms(t.spent.postgres) / changes)),
            );
        }
    }
}

/// What happened beside plain deliveries in all trials together, in words; a dash when nothing did.
fn events(trials: &[Found]) -> String {
    let total = |value: fn(&Found) -> u64| trials.iter().map(value).sum::<u64>();
    let counts = [
        ("skipped", total(|t| t.faults.skipped)),
        ("repeated", total(|t| t.faults.repeated)),
        ("backward", total(|t| t.faults.backward)),
        ("refetches", total(|t| t.faults.refetches)),
        ("refusals", total(|t| t.faults.refusals)),
        ("disconnects", total(|t| t.faults.disconnects)),
        ("empty polls", total(|t| t.held_out)),
    ];
    let named: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if named.is_empty() { "–".to_owned() } else { named.join(", ") }
}
