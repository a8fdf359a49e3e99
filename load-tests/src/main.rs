//! Load generator for Runwire: what it delivers, how fast, and what that costs beside a bare server.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod backlog;
mod bare;
mod calibration;
mod comparison;
mod cores;
mod database;
mod intake;
mod ledger;
mod prepared;
mod process;
mod recorded;
mod report;
mod runs;
mod server;
mod statistics;
mod subscriber;
mod trial;
mod walsender;
mod writer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use comparison::{Bench, Gateway};
use database::Settings;
use report::Report;
use server::Scratch;
use trial::Load;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures Runwire beside a bare hyper server, on loopback, with a throw-away Postgres.
#[derive(Parser)]
#[command(name = "load-tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// N subscribers of one run.
    Fanout(Fanout),
    /// N subscribers of N runs.
    Spread(Spread),
    /// The walsender's own latency: from COMMIT to a bare logical receiver.
    Walsender(Walsender),
    /// Decoder and window alone, on a stream made beforehand, on one core.
    Intake(Intake),
    /// A backlog that grew while Runwire was down, and a restart on a full window.
    Backlog(Backlog),
    /// Everything that goes into docs/BENCHMARKS.md.
    All(All),
    /// The bare server itself; started by the other commands.
    #[command(hide = true)]
    Bare(Bare),
}

impl Command {
    fn needs_gateway(&self) -> bool {
        !matches!(self, Command::Intake(_))
    }
}

#[derive(Args)]
struct Common {
    /// Runwire's program [default: `runwire` beside this one]
    #[arg(long)]
    runwire_bin: Option<PathBuf>,
    /// Try the bare server alone: no Runwire, no database
    #[arg(long)]
    bare_only: bool,
    /// The core that the servers under test run on
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the subscribers, the writer and Postgres
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// How often each server is tried; medians are reported
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Run Postgres with fsync=off
    #[arg(long)]
    no_fsync: bool,
    /// Run Postgres with synchronous_commit=off
    #[arg(long)]
    asynchronous_commit: bool,
    /// Also write the report to this file
    #[arg(long)]
    out: Option<PathBuf>,
}

/// See `--pause-ms`.
const PAUSE_MS: u64 = 60;

#[derive(Args)]
struct Pace {
    /// Measured changes [default: enough for 200,000 deliveries, 20 to 200]
    #[arg(long)]
    updates: Option<usize>,
    /// Changes before the measured ones
    #[arg(long, default_value_t = 3)]
    warm_up: usize,
    /// Milliseconds from a change's last delivery to the next change, where no rate is given. Below 40 the
    /// kernel sometimes sends an acknowledgement with the answer and sometimes before it, and the
    /// faster server gains by that alone
    #[arg(long, default_value_t = PAUSE_MS)]
    pause_ms: u64,
}

#[derive(Args)]
struct Fanout {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 5000, 10000])]
    subscribers: Vec<usize>,
    /// Changes per second, whether the ones before have arrived or not [default: each change when the
    /// one before has reached everyone]
    #[arg(long)]
    rate: Option<f64>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Spread {
    /// How many; several numbers are tried one after another
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10000])]
    subscribers: Vec<usize>,
    /// Changes per second, all runs together
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Walsender {
    /// Measured commits
    #[arg(long, default_value_t = 300)]
    updates: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Intake {
    /// Measured changes
    #[arg(long, default_value_t = 1_000_000)]
    changes: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Backlog {
    /// Changes committed while Runwire is down, each a transaction of its own
    #[arg(long, default_value_t = 200_000)]
    changes: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct All {
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Bare {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    answer: PathBuf,
    #[arg(long)]
    runs: usize,
}

fn main() -> Result<()> {
    let command = match Cli::parse().command {
        Command::Bare(bare) => return bare::serve(bare.listen, &bare.answer, bare.runs),
        command => command,
    };
    let common = match &command {
        Command::Fanout(fanout) => &fanout.common,
        Command::Spread(spread) => &spread.common,
        Command::Walsender(walsender) => &walsender.common,
        Command::Intake(intake) => &intake.common,
        Command::Backlog(backlog) => &backlog.common,
        Command::All(all) => &all.common,
        Command::Bare(_) => unreachable!("it has returned above"),
    };
    // Before the first thread, which would otherwise stay where it is.
    cores::pin_this_thread(common.client_core)?;
    let descriptors = cores::allow_all_descriptors()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    let result = runtime.block_on(run(&command, common, descriptors, &mut report));
    // What was measured before a failure is worth having.
    println!("{}", report.text());
    if let Some(out) = &common.out {
        std::fs::write(out, report.text()).with_context(|| out.display().to_string())?;
    }
    result
}

async fn run(
    command: &Command,
    common: &Common,
    descriptors: u64,
    report: &mut Report,
) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut facts = machine(common, descriptors);
    let gateway = match common.bare_only || !command.needs_gateway() {
        true => None,
        false => Some(gateway(common).await?),
    };
    if let Some(gateway) = &gateway {
        facts.extend(database::facts(&gateway.database.url).await?);
    }
    let loopback = calibration::loopback_us(common.server_core)?;
    facts
        .push(("one write and one read of 1,500 bytes over loopback", format!("{loopback:.1} µs")));
    report.facts(&facts);
    let bench = Bench { scratch, gateway, server_core: common.server_core, repeat: common.repeat };
    match command {
        Command::Fanout(fanout) => {
            run_fanout(&bench, &fanout.subscribers, fanout.rate, &fanout.pace, report).await
        }
        Command::Spread(spread) => {
            run_spread(&bench, &spread.subscribers, spread.rate, &spread.pace, report).await
        }
        Command::Walsender(walsender) => run_walsender(&bench, walsender.updates, report).await,
        Command::Intake(intake) => run_intake(common, intake.changes, report),
        Command::Backlog(backlog) => run_backlog(&bench, backlog.changes, report).await,
        Command::All(_) => {
            let pace = Pace { updates: None, warm_up: 3, pause_ms: PAUSE_MS };
            run_walsender(&bench, 300, report).await?;
            run_fanout(&bench, &[1, 100, 1000, 5000, 10000], None, &pace, report).await?;
            run_fanout(&bench, &[1000], Some(10.0), &pace, report).await?;
            run_spread(&bench, &[1000, 10000], 100.0, &pace, report).await?;
            run_intake(common, 1_000_000, report)?;
            run_backlog(&bench, 200_000, report).await
        }
        Command::Bare(_) => unreachable!("it has returned in main"),
    }
}

async fn gateway(common: &Common) -> Result<Gateway> {
    let program = match &common.runwire_bin {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("runwire"),
    };
    let hint = "build it with `cargo build --release`, or try --bare-only";
    anyhow::ensure!(program.exists(), "there is no {}; {hint}", program.display());
    let settings =
        Settings { fsync: !common.no_fsync, synchronous_commit: !common.asynchronous_commit };
    let database = database::start(settings).await?;
    Ok(Gateway { program, database })
}

fn machine(common: &Common, descriptors: u64) -> Vec<(&'static str, String)> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    vec![
        ("cores", cores.to_string()),
        ("kernel", kernel.trim().to_owned()),
        ("server under test on core", common.server_core.to_string()),
        ("subscribers, writer and Postgres on core", common.client_core.to_string()),
        ("descriptors per process", descriptors.to_string()),
        ("trials of each server", common.repeat.to_string()),
    ]
}

fn updates_for(pace: &Pace, deliveries_per_update: usize) -> usize {
    pace.updates.unwrap_or((200_000 / deliveries_per_update.max(1)).clamp(20, 200))
}

async fn run_fanout(
    bench: &Bench,
    sizes: &[usize],
    rate: Option<f64>,
    pace: &Pace,
    report: &mut Report,
) -> Result<()> {
    let how = match rate {
        None => "each change after the last one reached everyone".to_owned(),
        Some(rate) => format!("{rate} changes a second"),
    };
    let mut comparisons = Vec::new();
    for &subscribers in sizes {
        let load = Load {
            subscribers,
            runs: 1,
            updates: match rate {
                None => updates_for(pace, subscribers),
                // Ten seconds' worth.
                Some(rate) => pace.updates.unwrap_or((rate * 10.0) as usize).max(1),
            },
            warm_up: pace.warm_up,
            rate,
            pause: Duration::from_millis(pace.pause_ms),
        };
        comparisons.push(bench.compare(load).await?);
    }
    report.heading(&format!("Fan-out: N subscribers of one run, {how}"));
    report.comparisons(&comparisons);
    Ok(())
}

async fn run_spread(
    bench: &Bench,
    sizes: &[usize],
    rate: f64,
    pace: &Pace,
    report: &mut Report,
) -> Result<()> {
    let mut comparisons = Vec::new();
    for &subscribers in sizes {
        let load = Load {
            subscribers,
            runs: subscribers,
            updates: pace.updates.unwrap_or((rate * 10.0) as usize).max(1),
            warm_up: pace.warm_up,
            rate: Some(rate),
            pause: Duration::ZERO,
        };
        comparisons.push(bench.compare(load).await?);
    }
    report.heading(&format!("Spread: N subscribers of N runs, {rate} changes a second"));
    report.comparisons(&comparisons);
    Ok(())
}

async fn run_walsender(bench: &Bench, updates: usize, report: &mut Report) -> Result<()> {
    let gateway = bench.gateway.as_ref().context("the walsender needs a database")?;
    report.heading("The walsender alone: from COMMIT to a bare logical receiver");
    match walsender::latency(&gateway.database, updates).await? {
        Some(found) => report.line(&format!(
            "p50 {:.2} / p90 {:.2} / p99 {:.2} / max {:.2} ms over {updates} commits, received by \
             pg_recvlogical and read from its pipe.",
            found.p50, found.p90, found.p99, found.max
        )),
        None => report.line("Not measured: there is no pg_recvlogical beside this Postgres."),
    }
    Ok(())
}

async fn run_backlog(bench: &Bench, changes: usize, report: &mut Report) -> Result<()> {
    let gateway = bench.gateway.as_ref().context("a backlog needs a database")?;
    let found = backlog::measure(bench, gateway, changes).await?;
    report.heading(&format!(
        "Backlog: {changes} changes, each a transaction, committed while Runwire was down"
    ));
    report.backlog(&found);
    Ok(())
}

fn run_intake(common: &Common, changes: usize, report: &mut Report) -> Result<()> {
    let mut found = Vec::new();
    for _ in 0..common.repeat {
        found.push(cores::on_core(common.server_core, || intake::measure(changes))?);
    }
    report.heading("Intake: decoder and window on a recorded stream, one core, nobody listening");
    report.intake(&found);
    Ok(())
}
