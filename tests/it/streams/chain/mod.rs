//! Writers and readers that start, stop and resume anywhere, while the gateway is killed: every reader
//! ends with every chunk once, in order.
//!
//! A chunk carries its index and a hash of all chunks up to it, so that each says what came before. What is
//! promised of the records is exact: their numbers have no gap, a number is the same record for every
//! reader and for ever, and an acknowledged chunk is among them. A writer that was cut off sends again
//! what was not acknowledged (`streams-and-sessions.md`, 4.4), so a chunk may be stored twice, under the
//! id that it had; readers drop it by that, and the SDK's does so within one connection.

mod readers;
mod sdk_readers;
mod writers;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::readers::Reader;
use crate::support::chance;
use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::npm::Target;
use crate::support::program::Serving;
use crate::support::streams::{SOON, run, scratch};

const SECONDS: u64 = 8;
const SDK_WRITERS: u64 = 2;
const APPENDERS: u64 = 2;
const WRITERS: usize = (SDK_WRITERS + APPENDERS) as usize;
const READERS: u64 = 8;
const SDK_READERS: u64 = 2;

/// What all who take part know.
struct Play {
    target: Target,
    run: String,
    client: reqwest::Client,
    streams: Mutex<Vec<Arc<Stream>>>,
    /// Ends the writing.
    over: CancellationToken,
    /// The streams as they are in the end.
    logs: watch::Receiver<Option<Arc<Logs>>>,
    counts: Counts,
}

/// Each stream's records, by its key.
type Logs = HashMap<String, Vec<String>>;

#[derive(Debug, Default)]
struct Counts {
    sessions: AtomicU64,
    failed_sessions: AtomicU64,
    connections: AtomicU64,
    cut: AtomicU64,
    sdk_reads: AtomicU64,
}

/// A stream, and what is known of it.
struct Stream {
    key: String,
    /// Records that some reader has seen.
    seen: AtomicU64,
    /// Chunks that were given to a writer.
    written: AtomicU64,
    /// Of these, those that are known to be kept.
    acknowledged: AtomicU64,
}

impl Play {
    /// A stream that nobody has written yet.
    fn begin(&self, key: String) -> Arc<Stream> {
        let zero = || AtomicU64::new(0);
        let stream = Arc::new(Stream { key, seen: zero(), written: zero(), acknowledged: zero() });
        self.streams.lock().push(Arc::clone(&stream));
        stream
    }

    fn any_stream(&self, rng: &mut StdRng) -> Option<Arc<Stream>> {
        self.streams.lock().choose(rng).cloned()
    }

    fn url(&self, path: &str) -> String {
        format!("{}/realtime/v1/streams/{}/{path}", self.target.base_url, self.run)
    }
}

/// A stream's chunks, one after the other.
#[derive(Clone, Default)]
struct Chain {
    next: u64,
    hash: Vec<u8>,
}

impl Chain {
    fn next(&mut self) -> Value {
        let index = self.next;
        self.next += 1;
        let digest = Sha256::new().chain_update(&self.hash).chain_update(index.to_be_bytes());
        self.hash = digest.finalize().to_vec();
        let hash: String = self.hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        json!({ "i": index, "h": hash })
    }
}

/// The chunk in a record's body, and its id. A server's append is a text.
fn chunk(body: &str) -> (Value, String) {
    let envelope: Value = serde_json::from_str(body).expect("an envelope");
    let chunk = match &envelope["data"] {
        Value::String(text) => serde_json::from_str(text).expect("a chunk"),
        chunk => chunk.clone(),
    };
    (chunk, envelope["id"].as_str().expect("an id").to_owned())
}

/// Holds a stream's records against its chain: nothing is missing, and what is there twice has one id.
fn check(stream: &Stream, records: &[String]) -> u64 {
    let (mut chain, mut ids, mut again) = (Chain::default(), Vec::<(Value, String)>::new(), 0);
    for (number, body) in records.iter().enumerate() {
        let (found, id) = chunk(body);
        let index = found["i"].as_u64().expect("an index") as usize;
        match ids.get(index) {
            Some(known) => {
                assert_eq!(*known, (found, id), "{}, record {number}", stream.key);
                again += 1;
            }
            None => {
                assert_eq!(found, chain.next(), "{}, record {number}", stream.key);
                ids.push((found, id));
            }
        }
    }
    let (kept, written) = (ids.len() as u64, stream.written.load(Ordering::Relaxed));
    let acknowledged = stream.acknowledged.load(Ordering::Relaxed);
    let key = &stream.key;
    assert!(acknowledged <= kept, "{key}: {kept} of {acknowledged} acknowledged chunks are there");
    assert!(kept <= written, "{key}: {kept} chunks of {written}");
    again
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reader_ends_with_every_chunk_once_in_order() {
    let (seed, duration) = (chance::seed(), chance::duration(SECONDS));
    println!("RUNWIRE_TEST_SEED={seed}");
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let run = run(&database).await;
    let gateway = Serving::start(&database.url, &[&directory]).await;
    let access_token = database.seeded.production.secret_key.to_owned();
    let target = Target { base_url: gateway.url.clone(), access_token };
    let (end, logs) = watch::channel(None);
    let play = Arc::new(Play {
        target,
        run,
        client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        streams: Mutex::default(),
        over: CancellationToken::new(),
        logs,
        counts: Counts::default(),
    });
    let (mut writing, mut reading) = (JoinSet::new(), JoinSet::new());
    for n in 0..SDK_WRITERS {
        writing.spawn(writers::pipe(Arc::clone(&play), n, chance::choices(seed, n)));
    }
    for n in 0..APPENDERS {
        writing.spawn(writers::append(Arc::clone(&play), n, chance::choices(seed, 100 + n)));
    }
    for n in 0..READERS {
        let rng = chance::choices(seed, 200 + n);
        reading.spawn(Reader::new(Arc::clone(&play), n, rng).read_on());
    }
    for n in 0..SDK_READERS {
        let rng = chance::choices(seed, 300 + n);
        reading.spawn(sdk_readers::read_on(Arc::clone(&play), n, rng));
    }
    // Node takes its time.
    let is_read = |stream: &Arc<Stream>| stream.seen.load(Ordering::Relaxed) > 0;
    let begun = async {
        while play.streams.lock().iter().filter(|stream| is_read(stream)).count() < WRITERS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, begun).await.expect("all to be written and read");
    let accidents = accidents(gateway, &database.url, &directory, duration, seed);
    let (gateway, killed) = accidents.await;
    play.over.cancel();
    while let Some(done) = writing.join_next().await {
        done.unwrap_or_else(|error| panic!("{seed}: {error}"));
    }
    let mut logs = Logs::new();
    let (mut records, mut again) = (0, 0);
    let streams = play.streams.lock().clone();
    for stream in &streams {
        let log = readers::whole(&play, &stream.key).await;
        again += check(stream, &log);
        records += log.len();
        logs.insert(stream.key.clone(), log);
    }
    end.send_replace(Some(Arc::new(logs)));
    while let Some(done) = reading.join_next().await {
        done.unwrap_or_else(|error| panic!("{seed}: {error}"));
    }
    let (counts, streams) = (&play.counts, streams.len());
    println!("{streams} streams, {records} records, {again} again, {killed} ends, {counts:?}");
    let enough = |count: &AtomicU64, least| count.load(Ordering::Relaxed) >= least;
    assert!(killed >= 2 && records > 200, "too little happened");
    assert!(enough(&counts.sessions, 4) && enough(&counts.cut, 4), "too little happened");
    gateway.stop().await;
}

/// Ends the gateway again and again, mostly without a word, and starts it where it was.
async fn accidents(
    mut gateway: Serving,
    database_url: &str,
    directory: &str,
    duration: Duration,
    seed: u64,
) -> (Serving, u32) {
    let mut rng = chance::choices(seed, 400);
    let (until, mut ends) = (Instant::now() + duration, 0);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..2_000))).await;
        let url = gateway.url.clone();
        if rng.random_bool(0.8) {
            gateway.kill().await;
        } else {
            gateway.stop().await;
        }
        ends += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        gateway = Serving::start_at(&url, database_url, &[directory]).await;
        // Now and then it is killed while it starts.
        if rng.random_bool(0.8) {
            eventually("the gateway to be ready", || gateway.is_ready()).await;
        }
    }
    eventually("the gateway to be ready", || gateway.is_ready()).await;
    (gateway, ends)
}
