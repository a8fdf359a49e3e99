//! What the door costs: the same catch-up poll by a caller who is known, by one who is new each time, and by
//! one who is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hyper::header::{AUTHORIZATION, HeaderMap};
use runwire::auth::{Door as TheDoor, Settings};
use sqlx::postgres::PgPoolOptions;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::answer::Head;
use crate::bench::{Bench, Setting, Turn};
use crate::http1::{Requests, read_answer};
use crate::layout::{Layout, Target};
use crate::poll::Cursor;
use crate::process::{Spent, cpu};
use crate::report::{Report, others};
use crate::runs;
use crate::statistics::{median, middle_and_range};
use crate::token::{forged_token, new_token, public_token};

const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct Door {
    /// Connections that ask without rest
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// For how many seconds each kind of caller asks
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often the door alone is asked in this process
    #[arg(long, default_value_t = 300_000)]
    asked: u32,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    KnownToken,
    SecretKey,
    NewToken,
    Forger,
}

const CALLERS: [Caller; 4] =
    [Caller::KnownToken, Caller::SecretKey, Caller::NewToken, Caller::Forger];

impl Caller {
    fn name(self) -> &'static str {
        match self {
            Caller::KnownToken => "a token that is known",
            Caller::SecretKey => "a secret key that is known",
            Caller::NewToken => "a good token that is new each time",
            Caller::Forger => "a forged token, another each time: 401",
        }
    }

    /// What the next request presents; `None` to go on with the same.
    fn next(self) -> Result<Option<String>> {
        match self {
            Caller::KnownToken | Caller::SecretKey => Ok(None),
            Caller::NewToken => new_token(&Target::run(0).scope).map(Some),
            Caller::Forger => forged_token().map(Some),
        }
    }

    fn first(self) -> Result<String> {
        match self {
            Caller::KnownToken | Caller::NewToken => public_token(&Target::run(0).scope),
            Caller::SecretKey => Ok(runs::SECRET_KEY.to_owned()),
            Caller::Forger => forged_token(),
        }
    }
}

struct Rate {
    answers: u64,
    wall: f64,
    spent: Spent,
}

impl Rate {
    fn us(&self) -> f64 {
        self.spent.server.as_secs_f64() * 1e6 / self.answers as f64
    }
}

impl Door {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let setting = Setting { bare: false, ..Setting::of(Layout::runs(1)) };
        let attempt = async |turn: Turn<'_>| {
            let mut rates = Vec::with_capacity(CALLERS.len());
            for caller in CALLERS {
                let rate = self.attempt(&turn, caller).await?;
                eprintln!("{}: {:.1} µs of server CPU", caller.name(), rate.us());
                rates.push(rate);
            }
            Ok(rates)
        };
        let tried = bench.in_turns(setting, attempt).await?.runwire;
        report.heading(&format!(
            "The door: catch-up polls of one run in a closed loop over {} connections",
            self.connections
        ));
        report.table([
            "the caller presents",
            "answers/s (min–max)",
            "server CPU, µs per answer",
            "more than a known token, µs",
            "other CPU, max",
        ]);
        let of = |at: usize| tried.iter().filter_map(move |rates| rates.get(at));
        let known = median(of(0).map(Rate::us));
        for (at, caller) in CALLERS.into_iter().enumerate() {
            report.row([
                caller.name().to_owned(),
                middle_and_range(of(at).map(|rate| rate.answers as f64 / rate.wall), 0),
                middle_and_range(of(at).map(Rate::us), 1),
                format!("{:.1}", median(of(at).map(Rate::us)) - known),
                others(of(at).map(|rate| rate.spent.others)),
            ]);
        }
        report.line("");
        if let Some(gateway) = &bench.gateway {
            let alone = self.alone(&gateway.database.url).await?;
            report.line(&format!(
                "- the door alone, in process, for a token that is known: {alone:.2} µs of CPU, {:.1} % of such a poll",
                100.0 * alone / known
            ));
        }
        Ok(())
    }

    async fn attempt(&self, turn: &Turn<'_>, caller: Caller) -> Result<Rate> {
        let answers = Arc::new(AtomicU64::new(0));
        let mut askers: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..self.connections {
            let stream = TcpStream::connect(turn.server.address).await?;
            stream.set_nodelay(true)?;
            askers.spawn(ask(stream, turn.server.address, caller, Arc::clone(&answers)));
        }
        tokio::time::sleep(WARM_UP).await;
        let before = turn.parties.read()?;
        let (began, first) = (Instant::now(), answers.load(Relaxed));
        let limit = Duration::from_secs(self.seconds);
        if let Ok(Some(stopped)) = tokio::time::timeout(limit, askers.join_next()).await {
            stopped?.context("a caller stopped")?;
        }
        let (answers, wall) = (answers.load(Relaxed) - first, began.elapsed().as_secs_f64());
        let spent = turn.parties.since(&before)?;
        askers.shutdown().await;
        ensure!(answers > 0, "nothing was answered");
        Ok(Rate { answers, wall, spent })
    }

    /// What a door costs that knows the token, in microseconds of this process' CPU.
    async fn alone(&self, url: &str) -> Result<f64> {
        let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
        let door = TheDoor::new(pool, Settings::default());
        let bearer = format!("Bearer {}", public_token(&Target::run(0).scope)?);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.parse()?)]);
        let admit = async || door.admit(&headers).await.context("the door refuses");
        admit().await?;
        let before = cpu(std::process::id())?;
        for _ in 0..self.asked {
            std::hint::black_box(admit().await?);
        }
        let spent = cpu(std::process::id())?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e6 / f64::from(self.asked))
    }
}

/// Asks without rest and checks each answer's status.
async fn ask(
    mut stream: TcpStream,
    address: std::net::SocketAddr,
    caller: Caller,
    answers: Arc<AtomicU64>,
) -> Result<()> {
    let target = Target::run(0);
    let mut requests = Requests::new(address, &caller.first()?);
    let mut cursor = Cursor::start();
    let mut buffer = Vec::with_capacity(8 << 10);
    let status = if caller == Caller::Forger { 401 } else { 200 };
    loop {
        stream.write_all(requests.poll(&target, &cursor)).await?;
        let take = |head: &Head, body: &[u8]| {
            let text = || String::from_utf8_lossy(body);
            ensure!(head.status == status, "{} and not {status}: {}", head.status, text());
            cursor.follow(head);
            Ok(())
        };
        read_answer(&mut stream, &mut buffer, take).await?.context("the connection broke")?;
        answers.fetch_add(1, Relaxed);
        if let Some(bearer) = caller.next()? {
            requests = Requests::new(address, &bearer);
        }
    }
}
