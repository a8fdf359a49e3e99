//! Load generator for Runwire: what it delivers, how fast, and what that costs beside a bare server.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod aside;
mod bare_server;
mod bench;
mod calibration;
mod cores;
mod crowd;
mod database;
mod http1;
mod http2;
mod latency;
mod layout;
mod ledger;
mod metrics;
mod options;
mod poll;
mod prepared;
mod process;
mod record;
mod report;
mod runs;
mod scenarios;
mod server;
mod statistics;
mod streams;
mod subscriber;
mod token;
mod trial;
mod writer;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use bench::{Bench, Gateway};
use database::Settings;
use options::{Cli, Command, Common};
use report::Report;
use s2_lite::server::LiteArgs;
use server::Scratch;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<()> {
    let Cli { command, common } = Cli::parse();
    match &command {
        Command::Bare(settings) => return bare_server::serve(settings),
        Command::BareEvents => return streams::bare::serve(),
        Command::Lite(settings) => return streams::lite::serve(LiteArgs::clone(settings)),
        _ => {}
    }
    // Before the first thread, which would otherwise stay where it is.
    cores::pin_this_thread(common.client_core)?;
    let descriptors = cores::allow_all_descriptors()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    let result = runtime.block_on(run(&command, &common, descriptors, &mut report));
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
    let Common { server_core, repeat, .. } = *common;
    let mut bench = Bench { scratch, gateway, server_core, repeat, descriptors };
    let Command::All = command else { return measure(command, &bench, report).await };
    let mut failed = Vec::new();
    for (line, cli) in options::all()? {
        eprintln!("load-tests {line}");
        let began = std::time::Instant::now();
        bench.repeat = repeat.min(cli.common.repeat);
        // One that fails does not take the others with it.
        if let Err(error) = measure(&cli.command, &bench, report).await {
            report.line(&format!("\n`load-tests {line}` failed: {error:#}"));
            failed.push(line);
        }
        eprintln!("{:.0} s", began.elapsed().as_secs_f64());
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

async fn measure(command: &Command, bench: &Bench, report: &mut Report) -> Result<()> {
    match command {
        Command::Fanout(fanout) => fanout.run(bench, report).await,
        Command::Spread(spread) => spread.run(bench, report).await,
        Command::Tag(tag) => tag.run(bench, report).await,
        Command::Tags(tags) => tags.run(bench, report).await,
        Command::Cold(cold) => cold.run(bench, report).await,
        Command::Idle(idle) => idle.run(bench, report).await,
        Command::Updates(updates) => updates.run(bench, report).await,
        Command::Polls(polls) => polls.run(bench, report).await,
        Command::Door(door) => door.run(bench, report).await,
        Command::Flood(flood) => flood.run(bench, report).await,
        Command::Lone(lone) => lone.run(bench, report).await,
        Command::Aborts(aborts) => aborts.run(bench, report).await,
        Command::Index(index) => index.run(bench, report),
        Command::Walsender(walsender) => walsender.run(bench, report).await,
        Command::Intake(intake) => intake.run(bench, report),
        Command::Backlog(backlog) => backlog.run(bench, report).await,
        Command::Streams(streams) => streams.run(bench, report).await,
        Command::All | Command::Bare(_) | Command::BareEvents | Command::Lite(_) => {
            bail!("not a scenario")
        }
    }
}

async fn gateway(common: &Common) -> Result<Gateway> {
    let program = match &common.runwire_bin {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("runwire"),
    };
    let hint = "build it with `cargo build --release`, or try --bare-only";
    ensure!(program.exists(), "there is no {}; {hint}", program.display());
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
