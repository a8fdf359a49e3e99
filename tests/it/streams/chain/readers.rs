//! Who reads the events as they are sent, and holds every record against what it was before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{Play, Stream};
use crate::support::gateway::PATIENCE;
use crate::support::streams::records;

/// A reader, and the records that it holds of each stream.
pub struct Reader {
    play: Arc<Play>,
    name: u64,
    rng: StdRng,
    held: HashMap<String, BTreeMap<u64, String>>,
}

impl Reader {
    pub fn new(play: Arc<Play>, name: u64, rng: StdRng) -> Reader {
        Reader { play, name, rng, held: HashMap::new() }
    }

    /// Attaches, leaves and resumes until the writing is over, and then reads each stream to its end.
    pub async fn read_on(mut self) {
        let play = Arc::clone(&self.play);
        while !play.over.is_cancelled() {
            let Some(stream) = play.any_stream(&mut self.rng) else {
                tokio::task::yield_now().await;
                continue;
            };
            let held = self.held.entry(stream.key.clone()).or_default();
            let from = match self.rng.random_range(0..10) {
                0 => None,
                1..4 => Some(self.rng.random_range(0..=stream.seen.load(Ordering::Relaxed))),
                _ => Some(gapless(held)),
            };
            let wait = self.rng.random_range(0..3);
            let until = Instant::now() + Duration::from_millis(self.rng.random_range(20..1_500));
            connection(&play, &stream, from, wait, until, held).await;
        }
        let mut logs = play.logs.clone();
        let logs = logs.wait_for(Option::is_some).await.expect("the logs").clone();
        for (key, log) in logs.iter().flat_map(|logs| logs.iter()) {
            let held = self.held.entry(key.clone()).or_default();
            finish(&play, key, held).await;
            let read: Vec<&String> = held.values().collect();
            assert_eq!(read, log.iter().collect::<Vec<_>>(), "reader {}, {key}", self.name);
        }
    }
}

/// The records of a stream up to its present end.
pub async fn whole(play: &Play, key: &str) -> Vec<String> {
    let mut held = BTreeMap::new();
    finish(play, key, &mut held).await;
    assert!(held.keys().copied().eq(0..held.len() as u64), "{key}: numbers without a gap");
    held.into_values().collect()
}

/// Goes on from what is held without a gap to the end.
async fn finish(play: &Play, key: &str, held: &mut BTreeMap<u64, String>) {
    let stream = play.streams.lock().iter().find(|stream| stream.key == key).cloned();
    let (stream, until) = (stream.expect("a stream"), Instant::now() + PATIENCE);
    while !connection(play, &stream, Some(gapless(held)), 0, until, held).await {
        assert!(Instant::now() < until, "{key} comes to no end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The first number that is missing.
fn gapless(held: &BTreeMap<u64, String>) -> u64 {
    held.keys().zip(0..).take_while(|(held, n)| **held == *n).count() as u64
}

/// One connection, which begins with this record and is left at that time. Each record is the one after
/// the last. Gives whether the stream was said to end.
async fn connection(
    play: &Play,
    stream: &Stream,
    from: Option<u64>,
    wait: u64,
    until: Instant,
    held: &mut BTreeMap<u64, String>,
) -> bool {
    let request = play.client.get(play.url(&stream.key)).bearer_auth(&play.target.access_token);
    let mut request = request.header("timeout-seconds", wait);
    if let Some(last) = from.and_then(|from| from.checked_sub(1)) {
        request = request.header("last-event-id", last);
    }
    let answer = match tokio::time::timeout_at(until, request.send()).await {
        Ok(Ok(answer)) if answer.status() == 200 => answer,
        // It is gone, or does not know yet who asks, or its store is being opened.
        Ok(Ok(answer)) => {
            assert_eq!(answer.status(), 503, "{}", stream.key);
            tokio::time::sleep(Duration::from_millis(20)).await;
            return false;
        }
        Ok(Err(_)) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return false;
        }
        Err(_) => return false,
    };
    play.counts.connections.fetch_add(1, Ordering::Relaxed);
    let (mut body, mut text) = (answer.bytes_stream(), Vec::new());
    let mut next = from.unwrap_or(0);
    while let Ok(piece) = tokio::time::timeout_at(until, body.next()).await {
        let Some(piece) = piece else { panic!("{}: a clean end without a word", stream.key) };
        let Ok(piece) = piece else {
            play.counts.cut.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        text.extend_from_slice(&piece);
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let event = String::from_utf8(event).expect("UTF-8");
            assert!(!event.starts_with("event: error"), "{}: {event}", stream.key);
            if event == "data: [DONE]\n\n" {
                return true;
            }
            for (number, record) in records(&event) {
                assert_eq!(number, next, "{} from {from:?}", stream.key);
                next += 1;
                let before = held.insert(number, record.clone());
                assert!(before.is_none_or(|before| before == record), "{}: {number}", stream.key);
            }
            stream.seen.fetch_max(next, Ordering::Relaxed);
        }
    }
    false
}
