//! Who writes: tasks by the SDK, and servers by plain appends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Chain, Play, Stream};
use crate::support::npm::Client;
use crate::support::streams::{SOON, task};

/// Sessions of the SDK's writer, one after the other on the same stream. What becomes of the last chunks
/// of one that failed is not known, so the next one begins another stream.
pub async fn pipe(play: Arc<Play>, n: u64, mut rng: StdRng) {
    for part in 0.. {
        let stream = play.begin(format!("pipe-{n}-{part}"));
        let mut task = task("sdk-4.8.3", &play.target, &play.run).await;
        let mut chain = Chain::default();
        while session(&play, &stream, &mut task, &mut chain, &mut rng).await {
            stream.acknowledged.store(chain.next, Ordering::Relaxed);
            play.counts.sessions.fetch_add(1, Ordering::Relaxed);
            if play.over.is_cancelled() {
                return;
            }
        }
        play.counts.failed_sessions.fetch_add(1, Ordering::Relaxed);
        if play.over.is_cancelled() {
            return;
        }
    }
}

/// One session. Gives whether all of it was acknowledged.
async fn session(
    play: &Play,
    stream: &Stream,
    task: &mut Client,
    chain: &mut Chain,
    rng: &mut StdRng,
) -> bool {
    if !done(task, json!({ "order": "open", "key": stream.key })).await {
        return false;
    }
    for _ in 0..rng.random_range(1..15) {
        let values: Vec<Value> = (0..rng.random_range(1..30)).map(|_| chain.next()).collect();
        stream.written.store(chain.next, Ordering::Relaxed);
        if !done(task, json!({ "order": "write", "values": values })).await {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..80))).await;
        if play.over.is_cancelled() {
            break;
        }
    }
    done(task, json!({ "order": "close" })).await
}

/// Whether an order is carried out. That it is neither done nor fails is no answer: writers would hang.
async fn done(task: &mut Client, order: Value) -> bool {
    // Node may have ended since the last order, by an error of its session that nobody waited for.
    if task.try_tell(&order).await.is_err() {
        return false;
    }
    loop {
        match task.next(SOON).await {
            Some(said) if said["type"] == "done" => return true,
            Some(said) if said["type"] == "error" => return false,
            Some(_) => {}
            None => return false,
        }
    }
}

/// One chunk after the other, each again until it is taken, under the same id.
pub async fn append(play: Arc<Play>, n: u64, mut rng: StdRng) {
    let stream = play.begin(format!("append-{n}"));
    let mut chain = Chain::default();
    while !play.over.is_cancelled() {
        let (chunk, id) = (chain.next(), format!("part-{}", chain.next));
        stream.written.store(chain.next, Ordering::Relaxed);
        loop {
            let path = format!("self/{}/append", stream.key);
            let request = play.client.post(play.url(&path)).bearer_auth(&play.target.access_token);
            let request = request.header("x-part-id", &id).body(chunk.to_string());
            match request.timeout(SOON).send().await.map(|answer| answer.status().as_u16()) {
                Ok(200) => break,
                // The store is being opened, or the credential cannot be judged yet.
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(status) => panic!("{}: {status}", stream.key),
            }
        }
        stream.acknowledged.store(chain.next, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await;
    }
}
