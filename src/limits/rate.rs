//! How many requests in a time somebody may make.

use std::fmt::{self, Debug};
use std::hash::Hash;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use metrics::{Counter, Gauge};

use crate::telemetry;

/// So many requests at once, and as many again spread evenly over `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    requests: NonZeroU32,
    per: Duration,
}

/// A text that is no [`Quantity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not <requests>/<time>, such as 600/1min")]
pub struct NoQuantity;

impl FromStr for Quantity {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Quantity, NoQuantity> {
        let (requests, per) = text.split_once('/').ok_or(NoQuantity)?;
        let requests = requests.trim().parse().map_err(|_| NoQuantity)?;
        let per = humantime::parse_duration(per.trim()).map_err(|_| NoQuantity)?;
        let longest = Duration::from_secs(24 * 3_600);
        if per / u32::from(requests) == Duration::ZERO || per > longest {
            return Err(NoQuantity);
        }
        Ok(Quantity { requests, per })
    }
}

/// A rate for each of many keys, in bounded memory.
///
/// Who has not used any of their rate is not remembered. When `most` are, further ones are let
/// through uncounted until some can be forgotten: the limit is looser then, and nobody is locked out.
pub struct Rate<K: Hash + Eq + Clone> {
    limiter: RateLimiter<K, Kept<K>, MonotonicClock, NoOpMiddleware<std::time::Instant>>,
    keys: Gauge,
    refused: Counter,
}

impl<K: Hash + Eq + Clone> Rate<K> {
    /// This rate for each key, of which `most` are remembered; `name` labels its metrics.
    pub fn new(quantity: Quantity, most: usize, name: &'static str) -> Rate<K> {
        let each = quantity.per / u32::from(quantity.requests);
        // Fails only for a duration of zero, which no quantity has.
        let quota = Quota::with_period(each)
            .unwrap_or(Quota::per_second(quantity.requests))
            .allow_burst(quantity.requests);
        let uncounted = metrics::counter!(telemetry::RATE_UNCOUNTED, "by" => name);
        let kept = Kept { states: DashMap::new(), len: AtomicUsize::new(0), most, uncounted };
        Rate {
            limiter: RateLimiter::new(quota, kept, MonotonicClock),
            keys: metrics::gauge!(telemetry::RATE_KEYS, "by" => name),
            refused: metrics::counter!(telemetry::LIMIT_REFUSED, "limit" => name),
        }
    }

    /// Counts a request, or tells how long to wait before the next can be let through.
    pub fn count(&self, key: &K) -> Result<(), Duration> {
        self.limiter.check_key(key).map_err(|until| {
            self.refused.increment(1);
            until.wait_time_from(MonotonicClock.now())
        })
    }

    /// Forgets those who have all of their rate again.
    pub fn sweep(&self) {
        self.limiter.retain_recent();
        self.keys.set(self.limiter.len() as f64);
    }
}

impl<K: Hash + Eq + Clone> Debug for Rate<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rate").finish_non_exhaustive()
    }
}

/// Where the limiter keeps what each key has used. Its own store has no bound.
struct Kept<K> {
    states: DashMap<K, InMemoryState>,
    len: AtomicUsize,
    most: usize,
    uncounted: Counter,
}

impl<K: Hash + Eq + Clone> StateStore for Kept<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if let Some(state) = self.states.get(key) {
            return state.measure_and_replace(&NotKeyed::NonKey, decide);
        }
        if self.len.load(Ordering::Relaxed) >= self.most {
            self.uncounted.increment(1);
            return decide(None).map(|(outcome, _)| outcome);
        }
        let state = self.states.entry(key.clone()).or_insert_with(|| {
            self.len.fetch_add(1, Ordering::Relaxed);
            InMemoryState::default()
        });
        state.measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Kept<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        let used_until = |state: &InMemoryState| {
            let look = |at: Option<Nanos>| Err::<((), Nanos), _>(at);
            state.measure_and_replace(&NotKeyed::NonKey, look).err().flatten()
        };
        self.states.retain(|_, state| {
            let recent = used_until(state).is_some_and(|at| at > drop_below);
            if !recent {
                self.len.fetch_sub(1, Ordering::Relaxed);
            }
            recent
        });
        // Else an attack's memory would stay after it.
        if self.states.capacity() > 4 * self.len() + 1_024 {
            self.states.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(quantity: &str, most: usize) -> Rate<u32> {
        Rate::new(quantity.parse().expect("a quantity"), most, "test")
    }

    #[test]
    fn a_quantity_is_read_as_documented() {
        for good in ["1/1s", "600/1min", " 5 / 10ms ", "1000000/1h"] {
            assert!(good.parse::<Quantity>().is_ok(), "{good}");
        }
        for bad in ["", "5", "0/1s", "5/0s", "-1/1s", "5/s", "1/2days", "4000000000/1s", "5/1s/1s"]
        {
            assert_eq!(bad.parse::<Quantity>(), Err(NoQuantity), "{bad}");
        }
    }

    #[test]
    fn each_key_has_the_quantity_at_once_and_is_then_told_how_long_to_wait() {
        let rate = rate("3/3h", 10);
        for key in [1, 2] {
            assert!((0..3).all(|_| rate.count(&key).is_ok()));
            let wait = rate.count(&key).expect_err("a fourth");
            assert!(wait > Duration::from_secs(3_500) && wait <= Duration::from_secs(3_600));
        }
    }

    #[test]
    fn who_has_all_of_the_rate_again_is_forgotten_and_nobody_else() {
        let rate = rate("1000/1s", 100_000);
        for key in 0..1_000 {
            assert!(rate.count(&key).is_ok());
        }
        while rate.count(&0).is_ok() {}
        std::thread::sleep(Duration::from_millis(20));
        rate.sweep();
        assert_eq!(rate.limiter.len(), 1);
    }

    #[test]
    fn beyond_the_bound_newcomers_are_let_through_uncounted() {
        let rate = rate("1/1h", 3);
        assert!((0..3).all(|key| rate.count(&key).is_ok()));
        assert!((0..3).all(|key| rate.count(&key).is_err()));
        assert!((3..1_000).all(|key| rate.count(&key).is_ok() && rate.count(&key).is_ok()));
        assert_eq!(rate.limiter.len(), 3);
    }
}
