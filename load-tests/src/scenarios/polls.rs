//! How many polls a core answers when nothing is new and none is held: authentication, look-up, answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::answer::{Head, rows};
use crate::bench::{Bench, Setting, Sides, Turn};
use crate::http1::{Requests, read_answer};
use crate::layout::{Layout, Target};
use crate::poll::Cursor;
use crate::process::Spent;
use crate::record::Wanted;
use crate::report::{Report, others};
use crate::statistics::{middle_and_range, ratio};
use crate::subscriber::UP_TO_DATE;
use crate::token::public_token;

const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Polls {
    /// Connections, each with a feed and a public token of its own
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// For how many seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

struct Rate {
    polls: u64,
    wall: f64,
    spent: Spent,
}

impl Polls {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let n = self.connections;
        let mut all = Vec::new();
        for (of, layout) in [("runs", Layout::runs(n)), ("tags", Layout::tags(n, n))] {
            let setting = Setting { answer: Wanted::NothingNew, ..Setting::of(layout) };
            let attempt = async |turn: Turn<'_>| {
                let side = turn.side;
                let rate = self.attempt(turn, layout).await?;
                eprintln!("{side:?}, {of}: {:.0} polls/s, {:.1} µs", rate.per_second(), rate.us());
                Ok(rate)
            };
            all.push((of, bench.in_turns(setting, attempt).await?));
        }
        report.heading(&format!(
            "Polls: catch-up polls that find nothing new, a public token each, {n} connections in a closed loop"
        ));
        report.table([
            "server",
            "feeds of",
            "polls/s (min–max)",
            "polls per server core second",
            "server CPU, µs per poll",
            "client CPU, µs per poll",
            "other CPU, max",
        ]);
        for (of, sides) in &all {
            for (server, trials) in sides.tried() {
                report.row([
                    server.to_owned(),
                    (*of).to_owned(),
                    middle_and_range(trials.iter().map(Rate::per_second), 0),
                    middle_and_range(trials.iter().map(|t| 1e6 / t.us()), 0),
                    middle_and_range(trials.iter().map(Rate::us), 1),
                    middle_and_range(
                        trials.iter().map(|t| t.spent.client.as_secs_f64() * 1e6 / t.polls as f64),
                        1,
                    ),
                    others(trials.iter().map(|t| t.spent.others)),
                ]);
            }
        }
        report.line("");
        for (of, Sides { runwire, bare }) in &all {
            report.line(&format!(
                "- {of}: {} times the bare server's polls/s, {} times its CPU per poll",
                ratio(runwire.iter().map(Rate::per_second), bare.iter().map(Rate::per_second)),
                ratio(runwire.iter().map(Rate::us), bare.iter().map(Rate::us)),
            ));
        }
        Ok(())
    }

    async fn attempt(&self, turn: Turn<'_>, layout: Layout) -> Result<Rate> {
        let polls = Arc::new(AtomicU64::new(0));
        let mut pollers: JoinSet<Result<()>> = JoinSet::new();
        for feed in 0..self.connections {
            let target = layout.target(feed);
            let token = public_token(&target.scope)?;
            let stream = TcpStream::connect(turn.server.address).await?;
            stream.set_nodelay(true)?;
            let requests = Requests::new(turn.server.address, &token);
            pollers.spawn(poll(stream, requests, target, Arc::clone(&polls)));
        }
        tokio::time::sleep(WARM_UP).await;
        let before = turn.parties.read()?;
        let (began, first) = (Instant::now(), polls.load(Relaxed));
        // Nobody stops before the end, unless something was wrong.
        let limit = Duration::from_secs(self.seconds);
        if let Ok(Some(stopped)) = tokio::time::timeout(limit, pollers.join_next()).await {
            stopped?.context("a poller stopped")?;
        }
        let (polls, wall) = (polls.load(Relaxed) - first, began.elapsed().as_secs_f64());
        let spent = turn.parties.since(&before)?;
        pollers.shutdown().await;
        ensure!(polls > 0, "nothing was answered");
        Ok(Rate { polls, wall, spent })
    }
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.polls as f64 / self.wall
    }

    fn us(&self) -> f64 {
        self.spent.server.as_secs_f64() * 1e6 / self.polls as f64
    }
}

/// Polls without rest and checks that each answer says that nothing is new.
async fn poll(
    mut stream: TcpStream,
    mut requests: Requests,
    target: Target,
    polls: Arc<AtomicU64>,
) -> Result<()> {
    let mut cursor = Cursor::start();
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut first = true;
    loop {
        stream.write_all(requests.poll(&target, &cursor)).await?;
        let take = |head: &Head, body: &[u8]| {
            ensure!(head.status == 200, "{}: {}", head.status, String::from_utf8_lossy(body));
            ensure!(body.ends_with(UP_TO_DATE), "an answer that does not bring up to date");
            ensure!(first || rows(body).next().is_none(), "news where there can be none");
            cursor.follow(head);
            Ok(())
        };
        read_answer(&mut stream, &mut buffer, take).await?.context("the connection broke")?;
        first = false;
        polls.fetch_add(1, Relaxed);
    }
}
