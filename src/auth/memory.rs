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

/// Counts how often everything was voided; memories that belong together share one.
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

/// How much is remembered, and for how long.
#[derive(Clone, Copy)]
pub(super) struct Retention {
    pub accepted_for: Duration,
    pub refused_for: Duration,
    pub accepted_bytes: u64,
    pub refused_entries: u64,
}

/// Answers by fingerprint. Refusals are kept apart, so that a flood of bad credentials cannot push
/// out the good ones.
pub(super) struct Memory<V>(Arc<Inner<V>>);

impl<V> Clone for Memory<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<V> {
    accepted: Cache<Fingerprint, Kept<V>>,
    refused: Cache<Fingerprint, Kept<V>>,
    /// Keyed by generation too: who asks after a change must not join a query from before it.
    flights: DashMap<(u64, Fingerprint), watch::Receiver<Option<Kept<V>>>>,
    generation: Generation,
    retention: Retention,
}

impl<V: Clone + Send + Sync + 'static> Memory<V> {
    /// `weigh` gives an accepted value's bytes on the heap, roughly.
    pub fn new(generation: Generation, retention: Retention, weigh: fn(&V) -> usize) -> Self {
        let entry = size_of::<(Fingerprint, Kept<V>)>() + 64;
        let accepted = Cache::builder()
            .weigher(move |_, kept: &Kept<V>| {
                let value = kept.outcome.as_ref().map_or(0, weigh);
                u32::try_from(entry + value).unwrap_or(u32::MAX)
            })
            .max_capacity(retention.accepted_bytes)
            // The default policy may refuse newcomers while the cache is full, and then each of
            // their requests would be a query.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(retention.accepted_for)
            .build();
        let refused = Cache::builder()
            .max_capacity(retention.refused_entries)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(retention.refused_for)
            .build();
        Self(Arc::new(Inner { accepted, refused, flights: DashMap::new(), generation, retention }))
    }

    /// A remembered answer whose facts are younger than `within`, and than their kind is kept.
    pub fn recall(&self, key: &Fingerprint, within: Duration) -> Option<Kept<V>> {
        self.0.recall(key, within)
    }

    /// Remembers an answer that was worked out from facts of another memory.
    pub fn store(&self, key: Fingerprint, kept: Kept<V>) {
        self.0.store(key, kept);
    }

    /// Runs `load` unless somebody already does so for this key, and remembers what it gives, except
    /// [`Refusal::Unavailable`]. An answer younger than `within` that came meanwhile will do.
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
        let find = |cache: &Cache<Fingerprint, Kept<V>>, kept_for: Duration| {
            cache.get(key).filter(|kept| {
                kept.generation == generation && kept.read_at.elapsed() < kept_for.min(within)
            })
        };
        find(&self.accepted, self.retention.accepted_for)
            .or_else(|| find(&self.refused, self.retention.refused_for))
    }

    fn store(&self, key: Fingerprint, kept: Kept<V>) {
        if kept.generation != self.generation.load(Ordering::Acquire) {
            return;
        }
        match &kept.outcome {
            Err(Refusal::Unavailable) => {}
            Err(_) => {
                self.accepted.invalidate(&key);
                self.refused.insert(key, kept);
            }
            Ok(_) => {
                self.refused.invalidate(&key);
                self.accepted.insert(key, kept);
            }
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
