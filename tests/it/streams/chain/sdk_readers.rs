//! Who reads by the SDK, which goes on by itself when it is cut off.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Play, chunk};
use crate::support::npm::Client;
use crate::support::streams::{SOON, task};

/// How long it waits for a chunk before it takes the stream for ended, in seconds.
const WAIT: u64 = 2;

/// What one read gave.
struct Read {
    key: String,
    from: u64,
    chunks: Vec<Value>,
    /// Whether it was there until the stream was said to end, and not left before.
    ended: bool,
}

/// Reads anything from anywhere; some reads are left in the middle. What is read in the end is whole.
pub async fn read_on(play: Arc<Play>, n: u64, mut rng: StdRng) {
    let mut reads = Vec::new();
    let mut client = task("sdk-4.8.3", &play.target, &play.run).await;
    loop {
        let over = play.over.is_cancelled();
        let stream = play.any_stream(&mut rng).filter(|_| !over || play.logs.borrow().is_some());
        let Some(stream) = stream else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // A number that the stream has not come to would be clamped.
        let from = rng.random_range(0..=stream.seen.load(Ordering::Relaxed));
        let read = json!({
            "order": "read", "key": stream.key, "startIndex": from, "timeoutInSeconds": WAIT,
        });
        client.tell(&read).await;
        // While the gateway is killed again and again nothing may come for as long.
        let most = if rng.random_bool(0.3) { 3_000 } else { 10_000 };
        let left = (!over).then(|| Duration::from_millis(rng.random_range(200..most)));
        let (chunks, ended) = chunks(&mut client, left).await;
        reads.push(Read { key: stream.key.clone(), from, chunks, ended });
        play.counts.sdk_reads.fetch_add(1, Ordering::Relaxed);
        if !ended {
            client = task("sdk-4.8.3", &play.target, &play.run).await;
        } else if over {
            break;
        }
    }
    let logs = play.logs.borrow().clone().expect("the logs");
    let last = reads.len() - 1;
    for (n_read, read) in reads.iter().enumerate() {
        let name = format!("SDK's reader {n}, {} from {}", read.key, read.from);
        check(&name, read, &logs[&read.key], n_read == last);
    }
}

/// The chunks until the end, or until it is left.
async fn chunks(client: &mut Client, within: Option<Duration>) -> (Vec<Value>, bool) {
    let until = within.map(|within| Instant::now() + within);
    let mut chunks = Vec::new();
    loop {
        // It is never silent for long: it ends when nothing comes.
        let next = client.next(SOON);
        let next = match until {
            Some(until) => tokio::time::timeout_at(until, next).await,
            None => Ok(next.await),
        };
        match next {
            Ok(Some(said)) if said["type"] == "chunk" => chunks.push(said["chunk"].clone()),
            Ok(Some(said)) if said["type"] == "end" => return (chunks, true),
            Ok(Some(said)) if said["type"] == "done" => {}
            Ok(said) => panic!("it said {said:?}"),
            Err(_) => return (chunks, false),
        }
    }
}

/// What it gave are the records in their order from where it began; it left out none but those whose id it
/// had given before.
fn check(name: &str, read: &Read, log: &[String], whole: bool) {
    let mut records = log.iter().enumerate().skip(read.from as usize).map(|(number, body)| {
        let (found, id) = chunk(body);
        (number, found, id)
    });
    let mut given = HashSet::new();
    for value in &read.chunks {
        // `streams.read` gives a server's text as it is.
        let value = match value {
            Value::String(text) => serde_json::from_str(text).expect("a chunk"),
            value => value.clone(),
        };
        loop {
            let Some((number, found, id)) = records.next() else {
                panic!("{name}: {value} is beyond the end, or came before")
            };
            let known = !given.insert(id);
            if found == value {
                break;
            }
            assert!(known, "{name}: record {number} is missing before {value}");
        }
    }
    if whole {
        assert!(read.ended);
        let missing = records.find(|(_, _, id)| !given.contains(id));
        assert!(missing.is_none(), "{name}: it ended before {missing:?}");
    }
}
