//! Writers, subscribers and accidents at random. Of each subscription the version never goes back,
//! and after the writers stop the last one arrives.
//!
//! `RUNWIRE_TEST_SEED` repeats the choices of a run that failed, `RUNWIRE_TEST_SECONDS` says for how
//! long each variant writes.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use runwire::dev::{Options, Postgres};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::node::{Kind, Node, client};
use super::standby::{enlarge, require_standby, version_in};
use super::subscriber::{Counts, Subscriber};
use super::writers::write;
use crate::support::cluster::database_in;
use crate::support::gateway::PATIENCE;
use crate::support::runs::insert_run;

const RUNS: usize = 50;
const WRITERS: u64 = 12;
/// Of the writers, those that wait for a standby.
const PATIENT: u64 = 3;
const SUBSCRIBERS: u64 = 24;
const SECONDS: u64 = 8;
/// The first of the runs get half of the attention.
pub const HOT: usize = 6;

struct Variant {
    kind: Kind,
    slot_kind: &'static str,
    /// Whether commits wait until they are durable.
    commit: &'static str,
    /// Further arguments of the nodes.
    arguments: &'static [&'static str],
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_synchronous_commits() {
    let arguments = &["--window=200ms"];
    play(&Variant { kind: Kind::Here, slot_kind: "temporary", commit: "on", arguments }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_asynchronous_commits() {
    let arguments = &[];
    play(&Variant { kind: Kind::Here, slot_kind: "temporary", commit: "off", arguments }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_synchronous_commits() {
    let arguments = &["--window-bytes=200KB"];
    play(&Variant { kind: Kind::Here, slot_kind: "permanent", commit: "on", arguments }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_asynchronous_commits() {
    let arguments = &[];
    play(&Variant { kind: Kind::Here, slot_kind: "permanent", commit: "off", arguments }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_nodes_that_are_killed() {
    let arguments = &[];
    play(&Variant { kind: Kind::Binary, slot_kind: "permanent", commit: "on", arguments }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_nodes_that_are_killed() {
    let arguments = &["--window=700ms"];
    play(&Variant { kind: Kind::Binary, slot_kind: "temporary", commit: "off", arguments }).await;
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is not a number")))
}

async fn play(variant: &Variant) {
    let seed = number("RUNWIRE_TEST_SEED").unwrap_or_else(rand::random);
    let duration = Duration::from_secs(number("RUNWIRE_TEST_SECONDS").unwrap_or(SECONDS));
    let named = format!(
        "{:?} nodes, {} slots, synchronous_commit {}",
        variant.kind, variant.slot_kind, variant.commit
    );
    println!("{named}: RUNWIRE_TEST_SEED={seed}");
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![
        set("synchronous_commit", if variant.commit == "on" { "local" } else { "off" }),
        set("fsync", "on"),
    ];
    let postgres = Postgres::start(Options { settings, ..Options::default() }).await;
    let postgres = postgres.expect("start Postgres");
    let database = database_in(&postgres).await;
    let pool = &database.pool;
    let environment = database.seeded.production;
    let runs: Vec<String> = (0..RUNS).map(|i| format!("run_{i:02}")).collect();
    for run in &runs {
        insert_run(pool, environment.id, run).await;
    }
    for run in runs.iter().step_by(2) {
        enlarge(pool, run).await;
    }

    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let slot = [format!("--slot=node_{name}"), format!("--slot-kind={}", variant.slot_kind)];
        let mut arguments = vec![slot[0].as_str(), &slot[1], "--hold=1s"];
        arguments.extend(variant.arguments);
        let node = Node::unstarted(variant.kind, &database.url, &arguments);
        // So short that a restart depends on what was confirmed.
        let mut node = node.trailing(Duration::from_millis(200));
        node.start_again().await;
        node.ready().await;
        nodes.push(node);
    }
    let urls: Vec<String> = nodes.iter().map(|node| node.url.clone()).collect();

    let (stop_writing, stop_following) = (CancellationToken::new(), CancellationToken::new());
    let mut writers = JoinSet::new();
    for i in 0..WRITERS {
        // They flush the log for all, which would hide what asynchronous commits do.
        let patient = variant.commit == "on" && i < PATIENT;
        let (url, runs, stop) = (database.url.clone(), runs.clone(), stop_writing.clone());
        writers.spawn(write(url, runs, seed.wrapping_add(i), patient, stop));
    }
    let mut subscribers = JoinSet::new();
    for i in 0..SUBSCRIBERS {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(1_000 + i));
        let subscriber = Subscriber::new(
            client(),
            format!("subscriber {i}"),
            environment.secret_key,
            runs[i as usize % RUNS].clone(),
        );
        let (urls, runs, stop) = (urls.clone(), runs.clone(), stop_following.clone());
        subscribers.spawn(follow(subscriber, urls, runs, rng, stop));
    }

    let until = Instant::now() + duration;
    let standby = stall(pool, StdRng::seed_from_u64(seed.wrapping_add(2_000)), until);
    let accidents =
        accidents(pool, &mut nodes, StdRng::seed_from_u64(seed.wrapping_add(3_000)), until);
    tokio::join!(standby, accidents);
    stop_writing.cancel();
    let mut transactions = 0;
    while let Some(written) = writers.join_next().await {
        transactions += written.expect("a writer");
    }
    stop_following.cancel();
    for node in &nodes {
        node.ready().await;
    }

    // The last version arrives, also at those who come back after a long time.
    let mut counts = Counts::default();
    let mut ends = JoinSet::new();
    while let Some(subscriber) = subscribers.join_next().await {
        let mut subscriber = subscriber.unwrap_or_else(|error| panic!("{named}, {seed}: {error}"));
        counts.add(&subscriber.counts);
        let last = version_in(pool, subscriber.run()).await;
        let urls = urls.clone();
        ends.spawn(async move {
            finish(&mut subscriber, &urls, last).await;
            for at in 0..subscriber.stored.len().min(3) {
                subscriber.resume(at);
                finish(&mut subscriber, &urls, last).await;
            }
        });
    }
    while let Some(end) = ends.join_next().await {
        end.unwrap_or_else(|error| panic!("{named}, {seed}: {error}"));
    }
    println!("{named}: {transactions} transactions, {counts:?}");
    assert!(transactions > 20 && counts.rows > 20, "too little happened");
    for mut node in nodes {
        node.stop().await;
    }
}

/// Attaches, drops and resumes until it is told to stop.
async fn follow(
    mut subscriber: Subscriber,
    urls: Vec<String>,
    runs: Vec<String>,
    mut rng: StdRng,
    stop: CancellationToken,
) -> Subscriber {
    let mut at = rng.random_range(0..urls.len());
    while !stop.is_cancelled() {
        if rng.random_bool(0.2) {
            at = rng.random_range(0..urls.len());
        }
        match rng.random_range(0..100) {
            0..12 => {
                let of = if rng.random_bool(0.5) { HOT } else { RUNS };
                subscriber.begin(runs[..of].choose(&mut rng).expect("a run").clone());
            }
            12..20 => subscriber.store(),
            20..26 if !subscriber.stored.is_empty() => {
                subscriber.resume(rng.random_range(0..subscriber.stored.len()));
            }
            // A poll that is left in the middle.
            26..36 => {
                let within = Duration::from_millis(rng.random_range(1..60));
                subscriber.step(&urls[at], true, within).await;
            }
            36..56 => subscriber.step(&urls[at], false, PATIENCE).await,
            _ => subscriber.step(&urls[at], true, PATIENCE).await,
        }
        if rng.random_bool(0.1) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        }
    }
    subscriber
}

/// Follows on all nodes until the last version is there.
async fn finish(subscriber: &mut Subscriber, urls: &[String], last: i64) {
    let deadline = Instant::now() + PATIENCE;
    for url in urls.iter().cycle() {
        if subscriber.version() == Some(last) {
            return;
        }
        if Instant::now() > deadline {
            subscriber.fail(&format!("the last version, {last}, does not arrive"));
        }
        subscriber.step(url, true, PATIENCE).await;
    }
}

/// Lets those commits hang now and then that wait for a standby.
async fn stall(pool: &PgPool, mut rng: StdRng, until: Instant) {
    while Instant::now() < until {
        require_standby(pool, true).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(10..1_000))).await;
        require_standby(pool, false).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..800))).await;
    }
}

/// Ends walsenders and nodes.
async fn accidents(pool: &PgPool, nodes: &mut [Node], mut rng: StdRng, until: Instant) {
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..900))).await;
        let at = rng.random_range(0..nodes.len());
        match rng.random_range(0..4) {
            0 | 1 => {
                let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                           WHERE active_pid IS NOT NULL AND slot_name LIKE $1 || '%'";
                let name = ["node_a", "node_b"][at];
                sqlx::query(sql).bind(name).execute(pool).await.expect("end a walsender");
            }
            2 => {
                nodes[at].stop().await;
                nodes[at].start_again().await;
            }
            _ => {
                nodes[at].kill().await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
                nodes[at].start_again().await;
            }
        }
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.answers += other.answers;
        self.rows += other.rows;
        self.opens += other.opens;
        self.refetches += other.refetches;
        self.unavailable += other.unavailable;
        self.broken += other.broken;
    }
}
