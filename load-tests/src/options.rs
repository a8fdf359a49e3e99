//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use s2_lite::server::LiteArgs;

use crate::bare_server;
use crate::scenarios::{
    aborts, backlog, cold, deliveries, door, flood, idle, index, intake, lone, polls, streams,
    updates, walsender,
};

/// Measures Runwire beside a bare hyper server, on loopback, with a throw-away Postgres.
#[derive(Parser)]
#[command(name = "load-tests")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Subcommand)]
pub enum Command {
    /// N subscribers of one run
    Fanout(deliveries::Fanout),
    /// N subscribers of N runs
    Spread(deliveries::Spread),
    /// N subscribers of one tag: each change of one of its runs goes to all of them
    Tag(deliveries::Tag),
    /// N subscribers of N tags
    Tags(deliveries::Tags),
    /// Everybody connects at once, each on a run of its own, then all on one tag: until all are up to
    /// date, and how many queries that took
    Cold(cold::Cold),
    /// Memory and CPU of held polls that nothing happens to, over HTTP/1.1 and multiplexed HTTP/2
    Idle(idle::Idle),
    /// Thousands of changes a second in transactions of several rows, with lists that follow them
    Updates(updates::Updates),
    /// Catch-up polls with public tokens in a closed loop: how many a core answers
    Polls(polls::Polls),
    /// The same polls by callers who are known, new, and refused: what the door costs
    Door(door::Door),
    /// Garbage tokens, 100,000 a minute: what others and the database notice
    Flood(flood::Flood),
    /// A lone subscriber of a run, with and without a crowd on a busy tag
    Lone(lone::Lone),
    /// Held polls given up by their clients: what stays behind
    Aborts(aborts::Aborts),
    /// Decoding and matching a change while up to a million feeds are registered, in process
    Index(index::Index),
    /// The walsender's own latency: from COMMIT to a bare logical receiver
    Walsender(walsender::Walsender),
    /// Decoder and window alone, on a stream made beforehand, on one core
    Intake(intake::Intake),
    /// A backlog that grew while Runwire was down, and a restart on a full window
    Backlog(backlog::Backlog),
    /// Streams: append to reader, crowds of readers, catching up, memory; beside plain s2-lite
    Streams(streams::Streams),
    /// Everything that goes into docs/BENCHMARKS.md, one command after another
    All,
    /// The bare server itself; started by the other commands
    #[command(hide = true)]
    Bare(bare_server::Settings),
    /// A bare server of events; started by `streams`
    #[command(hide = true)]
    BareEvents,
    /// Plain s2-lite; started by `streams`
    #[command(hide = true)]
    Lite(Box<LiteArgs>),
}

#[derive(Args, Clone)]
pub struct Common {
    /// Runwire's program [default: `runwire` beside this one]
    #[arg(long, global = true)]
    pub runwire_bin: Option<PathBuf>,
    /// Try the bare server alone: no Runwire, no database
    #[arg(long, global = true)]
    pub bare_only: bool,
    /// The core that the servers under test run on
    #[arg(long, global = true, default_value_t = 0)]
    pub server_core: usize,
    /// The core of the subscribers, the writer and Postgres
    #[arg(long, global = true, default_value_t = 1)]
    pub client_core: usize,
    /// How often each server is tried; medians are reported
    #[arg(long, global = true, default_value_t = 3)]
    pub repeat: usize,
    /// Run Postgres with fsync=off
    #[arg(long, global = true)]
    pub no_fsync: bool,
    /// Run Postgres with synchronous_commit=off
    #[arg(long, global = true)]
    pub asynchronous_commit: bool,
    /// Also write the report to this file
    #[arg(long, global = true)]
    pub out: Option<PathBuf>,
}

/// What `all` runs. Where a line says `--repeat`, it is not repeated more often than that.
pub const ALL: [&str; 22] = [
    "walsender",
    "fanout --subscribers 1,100,1000 --updates 60",
    "fanout --subscribers 10000",
    "fanout --subscribers 1000 --rate 10 --repeat 1",
    "spread --subscribers 1000 --updates 500",
    "tag --subscribers 100,1000 --updates 60",
    "tag --subscribers 10000",
    "tags --subscribers 10000 --updates 500",
    "cold",
    "idle --http2 0 --repeat 1",
    "idle --http1 0 --repeat 1",
    "updates --repeat 2",
    "polls",
    "door",
    "flood --repeat 2",
    "lone --seconds 15 --repeat 2",
    "aborts --repeat 1",
    "aborts --streams 200 --cycles 20000 --repeat 1",
    "index",
    "intake",
    "backlog --repeat 1",
    "streams",
];

impl Command {
    /// Whether Runwire and a database take part.
    pub fn needs_gateway(&self) -> bool {
        !matches!(self, Command::Intake(_) | Command::Index(_))
    }
}

/// The commands that `all` stands for, with how often each is repeated at most.
pub fn all() -> Result<Vec<(&'static str, Cli)>, clap::Error> {
    let parse = |line: &'static str| {
        let words = ["load-tests"].into_iter().chain(line.split(' '));
        Ok((line, Cli::try_parse_from(words)?))
    };
    ALL.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_of_all_is_one_and_not_all_itself() {
        let all = all().unwrap();
        assert_eq!(all.len(), ALL.len());
        assert!(!all.iter().any(|(_, cli)| matches!(cli.command, Command::All)));
    }

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
