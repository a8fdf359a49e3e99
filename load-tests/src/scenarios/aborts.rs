//! Clients that go away while their polls are held, again and again: nothing of them may stay behind.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hyper::client::conn::http2::SendRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::answer::Head;
use crate::bench::{Bench, Setting, Turn};
use crate::http1::{Requests, read_answer};
use crate::http2;
use crate::layout::{Layout, Target};
use crate::metrics::{CONNECTIONS, HOLDS, Metrics, WAITED_TOPICS};
use crate::poll::Cursor;
use crate::process::resident_kib;
use crate::report::Report;
use crate::runs;
use crate::statistics::{median, middle_and_range};

/// Longer than any trial, so that only the clients end a poll.
const HOLD: Duration = Duration::from_secs(3_600);
/// How long a wave may take to be held, or to be noticed as gone.
const LIMIT: Duration = Duration::from_secs(30);
/// Until freed memory has been given back and the gauges that are set once a second are.
const SETTLE: Duration = Duration::from_secs(4);

#[derive(Args)]
pub struct Aborts {
    /// Connect, poll, be held, go away: how often
    #[arg(long, default_value_t = 100_000)]
    cycles: usize,
    /// How many are held at once; all of a wave are held before the first of it goes
    #[arg(long, default_value_t = 1_000)]
    wave: usize,
    /// How many feeds they are of
    #[arg(long, default_value_t = 100)]
    feeds: usize,
    /// Over HTTP/2: streams are reset, this many to a connection, and each wave has new connections
    #[arg(long)]
    streams: Option<usize>,
}

/// What can stay behind.
#[derive(Clone, Copy, Debug)]
struct Traces {
    resident: u64,
    holds: f64,
    connections: f64,
    waited: f64,
}

struct Waves {
    before: Traces,
    after_first: u64,
    after: Traces,
    seconds: f64,
}

impl Aborts {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let mut all = Vec::new();
        for (of, layout) in
            [("runs", Layout::runs(self.feeds)), ("tags", Layout::tags(self.feeds, self.feeds))]
        {
            let setting = Setting { hold: Some(HOLD), bare: false, ..Setting::of(layout) };
            let attempt = async |turn: Turn<'_>| {
                let waves = self.attempt(turn, layout).await?;
                let Waves { before, after_first, after, seconds } = &waves;
                eprintln!(
                    "{of}: {before:?}, {after_first} KiB after one wave, {after:?}, {seconds:.1} s"
                );
                Ok(waves)
            };
            all.push((of, bench.in_turns(setting, attempt).await?.runwire));
        }
        let how = match self.streams {
            None => "connections closed, every other one by a reset".to_owned(),
            Some(streams) => format!("HTTP/2 streams reset, {streams} to a connection"),
        };
        let (cycles, wave) = (self.cycles, self.wave);
        report.heading(&format!("Aborts: {cycles} held polls given up, {wave} at a time; {how}"));
        report.table([
            "feeds of",
            "RSS before → after the first wave → after the last, MiB",
            "growth from the first wave on, bytes per cycle (min–max)",
            "holds, connections, waited topics before",
            "… and after",
            "cycles/s",
        ]);
        for (of, trials) in &all {
            let mib = |value: fn(&Waves) -> u64| {
                format!("{:.1}", median(trials.iter().map(|t| value(t) as f64 / 1024.0)))
            };
            let gauges = |value: fn(&Waves) -> Traces| {
                let most = |gauge: fn(&Traces) -> f64| {
                    trials.iter().map(|t| gauge(&value(t))).fold(0.0, f64::max)
                };
                format!(
                    "{}, {}, {}",
                    most(|t| t.holds),
                    most(|t| t.connections),
                    most(|t| t.waited)
                )
            };
            report.row([
                (*of).to_owned(),
                [mib(|t| t.before.resident), mib(|t| t.after_first), mib(|t| t.after.resident)]
                    .join(" → "),
                middle_and_range(trials.iter().map(|t| t.growth(cycles.saturating_sub(wave))), 1),
                gauges(|t| t.before),
                gauges(|t| t.after),
                middle_and_range(trials.iter().map(|t| cycles as f64 / t.seconds), 0),
            ]);
        }
        Ok(())
    }

    async fn attempt(&self, turn: Turn<'_>, layout: Layout) -> Result<Waves> {
        let address = turn.server.address;
        let admin = turn.server.admin.context("no admin address")?;
        let mut places = Vec::new();
        for feed in 0..self.feeds {
            let target = layout.target(feed);
            places.push((up_to_date(address, &target).await?, target));
        }
        let traces = async || {
            tokio::time::sleep(SETTLE).await;
            Traces::of(turn.parties.server, admin)
        };
        let before = traces().await?;
        let (mut after_first, mut seconds) = (0, 0.0);
        for wave in 0..self.cycles.div_ceil(self.wave) {
            let began = Instant::now();
            match self.streams {
                None => self.connections(address, admin, &places).await?,
                Some(streams) => self.streams(streams, address, admin, &places).await?,
            }
            seconds += began.elapsed().as_secs_f64();
            if wave == 0 {
                after_first = traces().await?.resident;
            }
        }
        Ok(Waves { before, after_first, after: traces().await?, seconds })
    }

    async fn connections(
        &self,
        address: SocketAddr,
        admin: SocketAddr,
        places: &[(Cursor, Target)],
    ) -> Result<()> {
        let mut requests = Requests::new(address, runs::SECRET_KEY);
        let mut held = Vec::with_capacity(self.wave);
        for index in 0..self.wave {
            let (cursor, target) = &places[index % places.len()];
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(requests.poll(target, cursor)).await?;
            if index % 2 == 0 {
                stream.set_zero_linger()?;
            }
            held.push(stream);
        }
        until_held(admin, self.wave).await?;
        drop(held);
        until_held(admin, 0).await
    }

    async fn streams(
        &self,
        streams: usize,
        address: SocketAddr,
        admin: SocketAddr,
        places: &[(Cursor, Target)],
    ) -> Result<()> {
        let mut held = JoinSet::new();
        let mut connections: Vec<SendRequest<_>> = Vec::new();
        for index in 0..self.wave {
            if index % streams == 0 {
                connections.push(http2::connect(address).await?);
            }
            let connection = connections.last_mut().context("streams of nothing")?;
            connection.ready().await?;
            let (cursor, target) = &places[index % places.len()];
            held.spawn(connection.send_request(http2::request(address, target, cursor)?));
        }
        until_held(admin, self.wave).await?;
        // The streams are reset; the connections stay until all of them have been noticed.
        held.shutdown().await;
        until_held(admin, 0).await
    }
}

/// The cursor of a client that has just been brought up to date, ready for a live poll.
async fn up_to_date(address: SocketAddr, target: &Target) -> Result<Cursor> {
    let mut cursor = Cursor::start();
    let mut stream = TcpStream::connect(address).await?;
    let mut requests = Requests::new(address, runs::SECRET_KEY);
    stream.write_all(requests.poll(target, &cursor)).await?;
    let take = |head: &Head, _: &[u8]| {
        ensure!(head.status == 200, "a snapshot with status {}", head.status);
        cursor.follow(head);
        Ok(())
    };
    read_answer(&mut stream, &mut Vec::new(), take).await?.context("no snapshot")?;
    cursor.live = true;
    Ok(cursor)
}

/// Waits until Runwire says that it holds so many polls.
async fn until_held(admin: SocketAddr, polls: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let held = Metrics::at(admin)?.sum(HOLDS);
        if held == polls as f64 {
            return Ok(());
        }
        ensure!(began.elapsed() < LIMIT, "{held} polls are held, not {polls}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Traces {
    fn of(pid: u32, admin: SocketAddr) -> Result<Traces> {
        let metrics = Metrics::at(admin)?;
        Ok(Traces {
            resident: resident_kib(pid)?,
            holds: metrics.sum(HOLDS),
            connections: metrics.sum(CONNECTIONS),
            waited: metrics.sum(WAITED_TOPICS),
        })
    }
}

impl Waves {
    fn growth(&self, cycles: usize) -> f64 {
        let kib = self.after.resident as f64 - self.after_first as f64;
        kib * 1024.0 / (cycles as f64).max(1.0)
    }
}
