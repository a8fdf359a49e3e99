//! A flood of garbage tokens: whether anybody else notices, and what the database sees of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sqlx::{Connection, PgConnection, Row};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::answer::Head;
use crate::bench::{Bench, Setting, Turn};
use crate::crowd::fail_if_stuck;
use crate::http1::{self, Requests, read_answer};
use crate::latency::{Made, evaluate, ms};
use crate::layout::{Layout, Target};
use crate::ledger::Ledger;
use crate::poll::Cursor;
use crate::process::Spent;
use crate::report::{Report, others};
use crate::statistics::{Percentiles, median, middle_and_range};
use crate::subscriber::Crowd;
use crate::token::garbage_token;

const LIMIT: Duration = Duration::from_secs(60);
/// From a key's creation until somebody comes with it.
const KEY_AGE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Flood {
    /// Garbage tokens per minute, each a different one
    #[arg(long, default_value_t = 100_000)]
    per_minute: u32,
    /// Connections that they come over
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Milliseconds between two changes of the run that somebody follows meanwhile
    #[arg(long, default_value_t = 53)]
    every_ms: u64,
    /// For how many seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

struct Seen {
    delivery: Percentiles,
    refused: u64,
    unavailable: u64,
    queries_per_second: f64,
    new_key_ms: f64,
    spent: Spent,
}

#[derive(Default)]
struct Refusals {
    refused: AtomicU64,
    unavailable: AtomicU64,
}

impl Flood {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let Some(gateway) = &bench.gateway else { bail!("the bare server has no door") };
        let url = &gateway.database.url;
        let setting = Setting { bare: false, ..Setting::of(Layout::runs(1)) };
        let mut all = Vec::new();
        for per_minute in [0, self.per_minute] {
            let attempt = async |turn: Turn<'_>| {
                let seen = self.attempt(turn, url, per_minute).await?;
                eprintln!(
                    "{per_minute} a minute: p99 {:.2} ms, {:.0} transactions/s, a new key after {:.1} ms",
                    seen.delivery.p99, seen.queries_per_second, seen.new_key_ms
                );
                Ok(seen)
            };
            all.push((per_minute, bench.in_turns(setting, attempt).await?.runwire));
        }
        report.heading("A flood of garbage tokens, each a different one");
        report.table([
            "per minute",
            "answered 401",
            "answered 503",
            "commit → delivery of a held poll p50 / p99, ms",
            "transactions in the database per second, but for the writer's",
            "a key that is a second old is answered after, ms",
            "server CPU, s",
            "other CPU, max",
        ]);
        for (per_minute, trials) in &all {
            let middle = |value: fn(&Seen) -> f64| median(trials.iter().map(value));
            report.row([
                per_minute.to_string(),
                format!("{:.0}", middle(|t| t.refused as f64)),
                format!("{:.0}", middle(|t| t.unavailable as f64)),
                format!("{:.2} / {:.2}", middle(|t| t.delivery.p50), middle(|t| t.delivery.p99)),
                middle_and_range(trials.iter().map(|t| t.queries_per_second), 0),
                middle_and_range(trials.iter().map(|t| t.new_key_ms), 1),
                middle_and_range(trials.iter().map(|t| t.spent.server.as_secs_f64()), 2),
                others(trials.iter().map(|t| t.spent.others)),
            ]);
        }
        Ok(())
    }

    async fn attempt(&self, turn: Turn<'_>, url: &str, per_minute: u32) -> Result<Seen> {
        let address = turn.server.address;
        let (ledger, admission) = (Ledger::new(), Semaphore::new(1));
        let follower = Arc::new(Crowd { address, ledger, admission, runs: 1 });
        let subscriber = tokio::spawn(http1::subscribe(Arc::clone(&follower), Target::run(0)));
        fail_if_stuck(follower.ledger.all_live(1, LIMIT).await, &follower.ledger, "nobody")?;
        let mut database = PgConnection::connect(url).await?;

        let refusals = Arc::new(Refusals::default());
        let mut flood: JoinSet<Result<()>> = JoinSet::new();
        if per_minute > 0 {
            let every = Duration::from_secs(60) * self.connections / per_minute;
            for _ in 0..self.connections {
                flood.spawn(pour(address, every, Arc::clone(&refusals)));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = turn.parties.read()?;
        let (began, queries) = (Instant::now(), transactions(&mut database).await?);
        let every = Duration::from_millis(self.every_ms);
        let count = (Duration::from_secs(self.seconds).as_millis() / every.as_millis()) as u32;
        let orders: Vec<_> = (0..count)
            .map(|index| {
                turn.versions[0] += 1;
                let version = turn.versions[0];
                (version, turn.writer.order(vec![(0, version)], Some(began + every * index)))
            })
            .collect();
        let new_key_ms = new_key(&mut database, address).await?;
        let mut made = Vec::with_capacity(orders.len());
        for (version, order) in orders {
            let change = order.await.context("the writer has ended")??;
            made.push(Made { run: 0, version, change });
        }
        let reached = follower.ledger.reach(u64::from(count), LIMIT).await;
        fail_if_stuck(reached, &follower.ledger, "the follower did not get every change")?;
        let took = began.elapsed().as_secs_f64();
        let queries = transactions(&mut database).await? - queries - i64::from(count);
        let spent = turn.parties.since(&before)?;
        if let Some(Ok(Err(error))) = flood.try_join_next() {
            return Err(error.context("the flood dried up"));
        }
        flood.shutdown().await;
        subscriber.abort();
        let faults = follower.ledger.faults();
        let met = faults.repeated
            + faults.backward
            + faults.refetches
            + faults.refusals
            + faults.disconnects;
        ensure!(met == 0 && faults.failed == 0, "the follower met faults");
        let deliveries = evaluate(&made, &follower.ledger.take_deliveries());
        Ok(Seen {
            delivery: Percentiles::of(deliveries.latencies),
            refused: refusals.refused.load(Relaxed),
            unavailable: refusals.unavailable.load(Relaxed),
            queries_per_second: queries as f64 / took,
            new_key_ms,
            spent,
        })
    }
}

/// Sends garbage at a steady pace.
async fn pour(
    address: std::net::SocketAddr,
    every: Duration,
    refusals: Arc<Refusals>,
) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4 << 10);
    let mut beat = tokio::time::interval(every);
    loop {
        beat.tick().await;
        let mut requests = Requests::new(address, &garbage_token());
        stream.write_all(requests.poll(&Target::run(0), &Cursor::start())).await?;
        let take = |head: &Head, _: &[u8]| {
            match head.status {
                401 => refusals.refused.fetch_add(1, Relaxed),
                503 => refusals.unavailable.fetch_add(1, Relaxed),
                other => bail!("garbage was answered {other}"),
            };
            Ok(())
        };
        read_answer(&mut stream, &mut buffer, take).await?.context("the connection broke")?;
    }
}

/// Makes an environment, waits for a second and comes with its key: how long that takes, in ms.
async fn new_key(database: &mut PgConnection, address: std::net::SocketAddr) -> Result<f64> {
    let key = format!("tr_prod_{:024}", rand_number());
    let insert = r#"INSERT INTO "RuntimeEnvironment" (id, slug, type, "apiKey", "pkApiKey", shortcode,
            "organizationId", "projectId", "updatedAt")
        VALUES ($1, $1, 'PRODUCTION', $1, 'pk_' || $1, $1, 'org_load', 'proj_load', now())"#;
    sqlx::query(insert).bind(&key).execute(database).await?;
    tokio::time::sleep(KEY_AGE).await;
    let mut stream = TcpStream::connect(address).await?;
    let mut requests = Requests::new(address, &key);
    let began = Instant::now();
    let target = Target { path: "/realtime/v1/runs".to_owned(), ..Target::run(0) };
    stream.write_all(requests.poll(&target, &Cursor::start())).await?;
    let take = |head: &Head, _: &[u8]| {
        ensure!(head.status == 200, "a new key was answered {}", head.status);
        Ok(())
    };
    read_answer(&mut stream, &mut Vec::new(), take).await?.context("the connection broke")?;
    Ok(ms(began.elapsed()))
}

fn rand_number() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos()
}

/// How many transactions have ended in this database, our own questions included.
async fn transactions(database: &mut PgConnection) -> Result<i64> {
    let sql = "SELECT pg_stat_clear_snapshot(), xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    Ok(sqlx::query(sql).fetch_one(database).await?.try_get(1)?)
}
