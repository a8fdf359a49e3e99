//! What is recent of a stream: kept as it is sent, and merged for those who lack several batches of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::Gauge;
use tokio::time::Instant;

use super::batch::Batch;
use super::store::{Event, Position, StoreError};
use crate::telemetry;

/// Recent records of one stream, in bytes.
pub(super) const RECENT: usize = 1 << 20;
/// What batches may be merged to, in bytes and records. Clients know S2's own batches, of 1 MiB and as
/// many records; what is longer is no cheaper to send.
pub(super) const MERGED: usize = 128 << 10;
pub(super) const MERGED_RECORDS: usize = 1_000;

/// The recent records of all streams, in bytes, and the pages of those who are behind.
pub(super) struct Recent {
    used: AtomicUsize,
    limit: usize,
    shown: Gauge,
}

impl Recent {
    /// None, of which so many may be kept.
    pub fn new(limit: usize) -> Recent {
        let shown = metrics::gauge!(telemetry::STREAM_RECENT_BYTES);
        Recent { used: AtomicUsize::new(0), limit, shown }
    }

    /// What all take.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Gives what all take now.
    pub fn add(&self, bytes: usize) -> usize {
        self.shown.increment(bytes as f64);
        self.used.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Gives what all take now.
    pub fn take(&self, bytes: usize) -> usize {
        self.shown.decrement(bytes as f64);
        self.used.fetch_sub(bytes, Ordering::Relaxed) - bytes
    }

    /// Whether there is room for a page. The other half is left to what is recent.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed) + bytes <= self.limit / 2
    }
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {} bytes", self.used, self.limit)
    }
}

/// The end of one stream, as far as it is known here.
#[derive(Debug)]
pub(super) struct State {
    /// Batches without a gap between them, up to `next`.
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    all: Arc<Recent>,
    /// The next record's number, and when the last one was taken in.
    pub next: Position,
    /// When the newest came here, if any has.
    pub came: Option<Instant>,
    /// Whether the stream's end has been found.
    pub ready: bool,
    /// Why there will be nothing more.
    pub ended: Option<StoreError>,
}

impl State {
    /// That of a stream whose end has not been found.
    pub fn new(all: Arc<Recent>) -> State {
        State {
            batches: VecDeque::new(),
            bytes: 0,
            all,
            next: Position::default(),
            came: None,
            ready: false,
            ended: None,
        }
    }

    /// What is kept, in order.
    #[cfg(test)]
    pub fn kept(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().map(|batch| &**batch)
    }

    fn push(&mut self, batch: Arc<Batch>) {
        let size = batch.size();
        self.bytes += size;
        let mut all = self.all.add(size);
        self.batches.push_back(batch);
        // The newest stays in any case: those who wait for it need not read the store.
        while self.batches.len() > 1 && (self.bytes > RECENT || all > self.all.limit) {
            let Some(oldest) = self.batches.pop_front() else { break };
            let size = oldest.size();
            self.bytes -= size;
            all = self.all.take(size);
        }
    }

    /// Takes in what the store tells. Says whether it is news to those who read.
    pub fn take_in(&mut self, event: Event) -> bool {
        match event {
            Event::Batch(batch) => {
                self.next =
                    Position { seq_num: batch.last() + 1, timestamp: batch.last_timestamp() };
                self.came = Some(Instant::now());
                self.push(batch);
                true
            }
            Event::Tail(tail) => {
                let news = !self.ready || self.next.seq_num < tail.seq_num;
                if self.next.seq_num < tail.seq_num {
                    // Nothing before it may be joined to what comes.
                    let forgotten: usize = self.batches.drain(..).map(|each| each.size()).sum();
                    self.bytes -= forgotten;
                    self.all.take(forgotten);
                }
                self.next = tail;
                self.ready = true;
                news
            }
            // A tail has none.
            Event::End => false,
        }
    }

    /// What a reader is to be told that has everything before this number.
    pub fn after(&mut self, at: u64) -> After {
        if let Some(error) = &self.ended {
            return After::Ended(error.clone());
        }
        if at >= self.next.seq_num {
            return After::Nothing(self.next);
        }
        let found = self.batches.partition_point(|batch| batch.last() < at);
        match self.batches.get(found) {
            Some(batch) if found > 0 || batch.first() <= at => After::Batch(self.merged(found)),
            _ => After::Forgotten(self.next.seq_num),
        }
    }

    /// The batch of this index with as many of those after it as belong into one event. From then on they
    /// are one: whoever lacks some of them shares it, and a crowd that is behind is sent few events
    /// whatever the rate of appends.
    fn merged(&mut self, from: usize) -> Arc<Batch> {
        let (mut bytes, mut records) = (0, 0);
        let together = self.batches.range(from..).take_while(|batch| {
            bytes += batch.size();
            records += batch.records();
            bytes <= MERGED && records <= MERGED_RECORDS
        });
        let end = from + together.count().max(1);
        let merged = match end - from {
            1 => None,
            _ => Batch::merged(self.batches.range(from..end).map(|batch| &**batch)),
        };
        let Some(merged) = merged else { return Arc::clone(&self.batches[from]) };
        let merged = Arc::new(merged);
        let before: usize = self.batches.drain(from + 1..end).map(|batch| batch.size()).sum();
        let before = before + self.batches[from].size();
        self.bytes = self.bytes + merged.size() - before;
        self.all.take(before);
        self.all.add(merged.size());
        self.batches[from] = Arc::clone(&merged);
        merged
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.all.take(self.bytes);
    }
}

/// What comes next for a reader.
#[derive(Debug)]
pub(super) enum After {
    /// Records, which may begin before it.
    Batch(Arc<Batch>),
    /// The reader has everything.
    Nothing(Position),
    /// What comes next is only in the store, which shows everything before this number.
    Forgotten(u64),
    /// Nothing ever.
    Ended(StoreError),
}
