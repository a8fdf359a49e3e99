//! Changes that reach held subscribers: one feed or many, of runs or of tags, all measured alike.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::bench::Bench;
use crate::layout::Layout;
use crate::report::Report;
use crate::scenarios::comparison::compare_all;
use crate::trial::Load;

#[derive(Args)]
pub struct Pace {
    /// Measured changes [default: enough for 200,000 deliveries, 20 to 200; with a rate ten seconds' worth]
    #[arg(long)]
    updates: Option<usize>,
    /// Changes before the measured ones
    #[arg(long, default_value_t = 3)]
    warm_up: usize,
    /// Milliseconds from a change's last delivery to the next change, where no rate is given. Below 40 the
    /// kernel sometimes sends an acknowledgement with the answer and sometimes before it, and the
    /// faster server gains by that alone
    #[arg(long, default_value_t = 60)]
    pause_ms: u64,
}

impl Pace {
    fn load(&self, layout: Layout, subscribers: usize, rate: Option<f64>) -> Load {
        let updates = match rate {
            None => (200_000 / (subscribers / layout.feeds).max(1)).clamp(20, 200),
            Some(rate) => (rate * 10.0) as usize,
        };
        Load {
            layout,
            subscribers,
            updates: self.updates.unwrap_or(updates).max(1),
            warm_up: self.warm_up,
            rate,
            pause: Duration::from_millis(if rate.is_none() { self.pause_ms } else { 0 }),
        }
    }
}

#[derive(Args)]
pub struct Fanout {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 5000, 10000])]
    subscribers: Vec<usize>,
    /// Changes per second, whether the ones before have arrived or not [default: each change when the
    /// one before has reached everyone]
    #[arg(long)]
    rate: Option<f64>,
    #[command(flatten)]
    pace: Pace,
}

impl Fanout {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let how = match self.rate {
            None => "each change after the last one reached everyone".to_owned(),
            Some(rate) => format!("{rate} changes a second"),
        };
        let load = |&n: &usize| self.pace.load(Layout::runs(1), n, self.rate);
        let heading = format!("Fan-out: N subscribers of one run, {how}");
        compare_all(bench, report, &heading, self.subscribers.iter().map(load)).await
    }
}

#[derive(Args)]
pub struct Spread {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10000])]
    subscribers: Vec<usize>,
    /// Changes per second, all runs together
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    #[command(flatten)]
    pace: Pace,
}

impl Spread {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let load = |&n: &usize| self.pace.load(Layout::runs(n), n, Some(self.rate));
        let heading = format!("Spread: N subscribers of N runs, {} changes a second", self.rate);
        compare_all(bench, report, &heading, self.subscribers.iter().map(load)).await
    }
}

#[derive(Args)]
pub struct Tag {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10000])]
    subscribers: Vec<usize>,
    /// How many runs carry the tag
    #[arg(long, default_value_t = 10)]
    runs: usize,
    #[command(flatten)]
    pace: Pace,
}

impl Tag {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let load = |&n: &usize| self.pace.load(Layout::tags(1, self.runs), n, None);
        let heading = format!(
            "Tag: N subscribers of one tag that {} runs carry, each change after the last one reached everyone",
            self.runs
        );
        compare_all(bench, report, &heading, self.subscribers.iter().map(load)).await
    }
}

#[derive(Args)]
pub struct Tags {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10000])]
    subscribers: Vec<usize>,
    /// Changes per second, all tags together
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    #[command(flatten)]
    pace: Pace,
}

impl Tags {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let load = |&n: &usize| self.pace.load(Layout::tags(n, n), n, Some(self.rate));
        let heading = format!("Tags: N subscribers of N tags, {} changes a second", self.rate);
        compare_all(bench, report, &heading, self.subscribers.iter().map(load)).await
    }
}
