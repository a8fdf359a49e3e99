//! Writers, subscribers and accidents at random. Of each subscription the version never goes back,
//! and after the writers stop the last one arrives.
//!
//! `RUNWIRE_TEST_SEED` repeats the choices of a run that failed, `RUNWIRE_TEST_SECONDS` says for how
//! long each variant writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use runwire::dev::{Options, Postgres};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::accidents::{accidents, stall};
use super::followed::{Followed, List, Rows, all_ids};
use super::node::{Kind, Node, client};
use super::population::{BATCHES, populate};
use super::subscriber::{Counts, Subscriber};
use super::writers::Writer;
use crate::support::chance;
use crate::support::cluster::database_in;
use crate::support::gateway::PATIENCE;

const RUNS: usize = 40;
const WRITERS: u64 = 12;
/// Of the writers, those that wait for a standby.
const PATIENT: u64 = 3;
const SUBSCRIBERS: u64 = 24;
const SECONDS: u64 = 8;
/// The first of the runs get half of the attention.
pub const HOT: usize = 6;

#[derive(Debug)]
struct Variant {
    kind: Kind,
    slots: &'static str,
    /// Whether commits wait until they are durable.
    commit: &'static str,
    /// Whether changes bring the row before them.
    identity: &'static str,
    /// Further arguments of the nodes.
    arguments: &'static [&'static str],
}

const PLAIN: Variant = Variant {
    kind: Kind::Here,
    slots: "temporary",
    commit: "on",
    identity: "DEFAULT",
    arguments: &[],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_synchronous_commits() {
    play(&Variant { arguments: &["--window=200ms"], ..PLAIN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_asynchronous_commits() {
    play(&Variant { commit: "off", identity: "FULL", ..PLAIN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_synchronous_commits() {
    let arguments = &["--window-bytes=200KB"];
    play(&Variant { slots: "permanent", identity: "FULL", arguments, ..PLAIN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_asynchronous_commits() {
    play(&Variant { slots: "permanent", commit: "off", ..PLAIN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permanent_slots_and_nodes_that_are_killed() {
    play(&Variant { kind: Kind::Binary, slots: "permanent", ..PLAIN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_temporary_slots_and_nodes_that_are_killed() {
    let (kind, arguments) = (Kind::Binary, &["--window=700ms"]);
    play(&Variant { kind, commit: "off", identity: "FULL", arguments, ..PLAIN }).await;
}

/// All that there is to follow: the lists and batches first, then the runs.
fn feeds(runs: &[String]) -> Vec<Followed> {
    const WHOLE: List = List { tags: &[], recent: false, skipped: &[] };
    let lists = [
        WHOLE,
        List { tags: &["red"], ..WHOLE },
        List { tags: &["white"], recent: true, ..WHOLE },
        List { tags: &["red", "green"], ..WHOLE },
        List { tags: &["green", "blue", "red"], skipped: &["payload", "output"], ..WHOLE },
        List { skipped: &["output", "runTags", "error"], recent: true, ..WHOLE },
    ];
    let batches = BATCHES.iter().map(|batch| Followed::Batch(format!("batch_{batch}")));
    let runs = runs.iter().cloned().map(Followed::Run);
    lists.into_iter().map(Followed::List).chain(batches).chain(runs).collect()
}

/// One of them; the lists, the batches and the busy runs more often than others.
fn any_feed(feeds: &[Followed], rng: &mut StdRng) -> Followed {
    let groups = feeds.len() - RUNS;
    let among = match rng.random_range(0..4) {
        0 | 1 => &feeds[..groups],
        2 => &feeds[groups..groups + HOT],
        _ => &feeds[groups..],
    };
    among.choose(rng).expect("a feed").clone()
}

async fn play(variant: &Variant) {
    let seed = chance::seed();
    let duration = chance::duration(SECONDS);
    let named = format!("{variant:?}");
    println!("{named}: RUNWIRE_TEST_SEED={seed}");
    let rng = |n: u64| chance::choices(seed, n);
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
    let identity = format!(r#"ALTER TABLE "TaskRun" REPLICA IDENTITY {}"#, variant.identity);
    sqlx::raw_sql(AssertSqlSafe(identity)).execute(pool).await.expect("set the identity");
    let runs: Vec<String> = (0..RUNS).map(|i| format!("run_{i:02}")).collect();
    populate(pool, &environment, &runs, &mut rng(0)).await;

    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let slot = [format!("--slot=node_{name}"), format!("--slot-kind={}", variant.slots)];
        let mut arguments = vec![slot[0].as_str(), &slot[1], "--hold=1s"];
        arguments.extend(variant.arguments);
        let node = Node::unstarted(variant.kind, &database.url, &arguments);
        // So short that a restart depends on what was confirmed, and that most lists come in parts.
        let mut node = node.trailing(Duration::from_millis(200)).in_chunks_of(20_000);
        node.start_again().await;
        node.ready().await;
        nodes.push(node);
    }
    let urls: Vec<String> = nodes.iter().map(|node| node.url.clone()).collect();

    let (stop_writing, stop_following) = (CancellationToken::new(), CancellationToken::new());
    let mut writers = JoinSet::new();
    for i in 0..WRITERS {
        let writer = Writer {
            url: database.url.clone(),
            environment: environment.id,
            name: format!("w{i}"),
            runs: runs.clone(),
            seed: seed.wrapping_add(100 + i),
            // They flush the log for all, which would hide what asynchronous commits do.
            patient: variant.commit == "on" && i < PATIENT,
            stop: stop_writing.clone(),
        };
        writers.spawn(writer.write());
    }
    let feeds: Arc<[Followed]> = feeds(&runs).into();
    let mut subscribers = JoinSet::new();
    for i in 0..SUBSCRIBERS {
        let feed = feeds[i as usize].clone();
        let name = format!("subscriber {i}");
        let subscriber = Subscriber::new(client(), name, environment.secret_key, feed);
        let (urls, feeds, stop) = (urls.clone(), Arc::clone(&feeds), stop_following.clone());
        subscribers.spawn(follow(subscriber, urls, feeds, rng(1_000 + i), stop));
    }

    let until = Instant::now() + duration;
    let standby = stall(pool, rng(2_000), until);
    let accidents = accidents(pool, &mut nodes, rng(3_000), until);
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

    // All arrives, also at those who come back after a long time.
    let mut counts = Counts::default();
    let existing = Arc::new(all_ids(pool).await);
    let mut ends = JoinSet::new();
    while let Some(subscriber) = subscribers.join_next().await {
        let mut subscriber = subscriber.unwrap_or_else(|error| panic!("{named}, {seed}: {error}"));
        counts.add(&subscriber.counts);
        let wanted = subscriber.feed().rows(pool, environment.id).await;
        let (urls, existing) = (urls.clone(), Arc::clone(&existing));
        ends.spawn(async move {
            finish(&mut subscriber, &urls, &wanted, &existing).await;
            for at in 0..subscriber.stored.len().min(3) {
                subscriber.resume(at);
                finish(&mut subscriber, &urls, &wanted, &existing).await;
            }
            subscriber.begin_anew();
            finish(&mut subscriber, &urls, &wanted, &existing).await;
            assert!(
                !subscriber.has_leftovers(&wanted),
                "an opening answer with runs that are gone"
            );
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
    feeds: Arc<[Followed]>,
    mut rng: StdRng,
    stop: CancellationToken,
) -> Subscriber {
    let mut at = rng.random_range(0..urls.len());
    while !stop.is_cancelled() {
        if rng.random_bool(0.2) {
            at = rng.random_range(0..urls.len());
        }
        match rng.random_range(0..100) {
            0..8 => subscriber.begin(any_feed(&feeds, &mut rng)),
            8..20 => subscriber.store(),
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

/// Follows on all nodes until it holds what the table does.
async fn finish(
    subscriber: &mut Subscriber,
    urls: &[String],
    wanted: &Rows,
    existing: &BTreeSet<String>,
) {
    let deadline = Instant::now() + PATIENCE;
    for url in urls.iter().cycle() {
        let Some(difference) = subscriber.difference(wanted, existing) else { return };
        if Instant::now() > deadline {
            subscriber.fail(&format!("the last state does not arrive: {difference}"));
        }
        subscriber.step(url, true, PATIENCE).await;
        // The parts of a list are with the node that gave the first.
        while subscriber.is_loading() && Instant::now() < deadline {
            subscriber.step(url, true, PATIENCE).await;
        }
    }
}
