//! What the database answered, remembered for a short while and asked for once at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::{DashMap, Entry};
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::sync::watch;

use super::{credential::Fingerprint, refusal::Refusal};

/// Counts how often everything was voided.
pub(super) type Generation = Arc<AtomicU64>;

/// An answer and how fresh the facts behind it are.
#[derive(Clone)]
pub(super) struct Kept<V> {
    pub outcome: Result<V, Refusal>,
    /// No later than the query began.
    pub read_at: Instant,
    /// The generation in which the query began.
    pub generation: u64,
}

/// Answers by fingerprint.
pub(super) struct Memory<V>(Arc<Inner<V>>);

impl<V> Clone for Memory<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<V> {
    answers: Cache<Fingerprint, Kept<V>>,
    /// Keyed by generation too: who asks after a change must not join a query from before it.
    flights: DashMap<(u64, Fingerprint), watch::Receiver<Option<Kept<V>>>>,
    generation: Generation,
    kept_for: Duration,
}

impl<V: Clone + Send + Sync + 'static> Memory<V> {
    /// Remembers answers for that long, in so many bytes. `weigh` gives a value's bytes on the heap,
    /// roughly.
    pub fn new(
        generation: Generation,
        kept_for: Duration,
        bytes: u64,
        weigh: fn(&V) -> usize,
    ) -> Self {
        let entry = size_of::<(Fingerprint, Kept<V>)>() + 64;
        let answers = Cache::builder()
            .weigher(move |_, kept: &Kept<V>| {
                let value = kept.outcome.as_ref().map_or(0, weigh);
                u32::try_from(entry + value).unwrap_or(u32::MAX)
            })
            .max_capacity(bytes)
            // The default policy may refuse newcomers while the cache is full, and then each of
            // their requests would be a query.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(kept_for)
            .build();
        Self(Arc::new(Inner { answers, flights: DashMap::new(), generation, kept_for }))
    }

    /// A remembered answer whose facts are younger than `within`.
    pub fn recall(&self, key: &Fingerprint, within: Duration) -> Option<Kept<V>> {
        self.0.recall(key, within)
    }

    /// Runs `load` unless somebody already does so for this key, and remembers what it gives
    /// unless that is a refusal. An answer younger than `within` that came meanwhile will do.
    ///
    /// `load` runs on a task of its own and goes on when the caller leaves, since others may wait for it.
    pub async fn learn<F>(
        &self,
        key: Fingerprint,
        within: Duration,
        load: impl FnOnce() -> F,
    ) -> Kept<V>
    where
        F: Future<Output = Result<V, Refusal>> + Send + 'static,
    {
        let generation = self.0.generation.load(Ordering::Acquire);
        let mut flight = match self.0.flights.entry((generation, key)) {
            Entry::Occupied(flight) => flight.get().clone(),
            Entry::Vacant(place) => {
                if let Some(kept) = self.0.recall(&key, within) {
                    return kept;
                }
                let (answer, flight) = watch::channel(None);
                place.insert(flight.clone());
                tokio::spawn(fly(Arc::clone(&self.0), (generation, key), load(), answer));
                flight
            }
        };
        let landed = flight.wait_for(Option::is_some).await;
        landed.ok().and_then(|kept| kept.clone()).unwrap_or_else(|| Kept {
            outcome: Err(Refusal::Unavailable),
            read_at: Instant::now(),
            generation,
        })
    }
}

impl<V: Clone + Send + Sync + 'static> Inner<V> {
    fn recall(&self, key: &Fingerprint, within: Duration) -> Option<Kept<V>> {
        let generation = self.generation.load(Ordering::Acquire);
        self.answers.get(key).filter(|kept| {
            kept.generation == generation && kept.read_at.elapsed() < self.kept_for.min(within)
        })
    }

    fn store(&self, key: Fingerprint, kept: Kept<V>) {
        if kept.outcome.is_ok() && kept.generation == self.generation.load(Ordering::Acquire) {
            self.answers.insert(key, kept);
        }
    }
}

/// Removes its flight when dropped, also by a panic, so that the next request asks again.
struct Landing<'a, V>(&'a Inner<V>, (u64, Fingerprint));

impl<V> Drop for Landing<'_, V> {
    fn drop(&mut self) {
        self.0.flights.remove(&self.1);
    }
}

async fn fly<V: Clone + Send + Sync + 'static>(
    inner: Arc<Inner<V>>,
    flight: (u64, Fingerprint),
    load: impl Future<Output = Result<V, Refusal>>,
    answer: watch::Sender<Option<Kept<V>>>,
) {
    let landing = Landing(&inner, flight);
    let read_at = Instant::now();
    let kept = Kept { outcome: load.await, read_at, generation: flight.0 };
    // First stored, then removed: whoever finds no flight finds the answer.
    inner.store(flight.1, kept.clone());
    drop(landing);
    answer.send_replace(Some(kept));
}

#[cfg(test)]
mod tests;
