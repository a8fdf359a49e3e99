//! One query for all who open the same list at about the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use tokio::sync::OnceCell;

use super::chunks::Opening;
use super::feeds::{Unavailable, View};
use crate::runs::created::Floor;

/// For how long a finished opening serves those who come after. What changes meanwhile they are told
/// by their first poll, which goes on from where the opening stands.
const REUSE: Duration = Duration::from_millis(500);
/// With fewer than this, those that nobody awaits any more are left where they are.
const SWEEP_FROM: usize = 1_024;

/// Which list, from when on, and whether it comes in one.
pub(super) type Key = (View, Floor, bool);

/// The openings that are under way or have just ended.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: Arc<DashMap<Key, Weak<Flight>>>,
    /// With how many the next look for abandoned ones is due: twice as many as the last one left, so
    /// that looking stays cheap however many there are.
    sweep_at: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Flight(OnceCell<Landed>);

#[derive(Debug)]
struct Landed {
    opening: Result<Arc<Opening>, Unavailable>,
    at: Instant,
}

impl Flights {
    /// The opening that `open` gives, or that another request's `open` gives.
    ///
    /// With `anew` the opening must not have ended before: its handle may be one that the client was
    /// told to give up. `serves` tells whether one that has ended can still be gone on from.
    pub async fn share<F>(
        &self,
        key: Key,
        anew: bool,
        serves: impl Fn(&Opening) -> bool,
        open: impl FnOnce() -> F,
    ) -> Result<Arc<Opening>, Unavailable>
    where
        F: Future<Output = Result<Arc<Opening>, Unavailable>>,
    {
        let flight = self.board(key.clone(), anew, serves);
        let mut opened = false;
        let landed = flight.0.get_or_init(|| async {
            opened = true;
            // Boxed, so that only who opens has memory for it, and not the thousands who wait.
            Landed { opening: Box::pin(open()).await, at: Instant::now() }
        });
        let opening = landed.await.opening.as_ref().map(Arc::clone).map_err(|_| Unavailable);
        if opened {
            self.keep_for_others(key, flight, opening.is_ok());
        }
        opening
    }

    fn board(&self, key: Key, anew: bool, serves: impl Fn(&Opening) -> bool) -> Arc<Flight> {
        self.sweep();
        let mut entry = self.flights.entry(key).or_default();
        let takes = |flight: &Arc<Flight>| match flight.0.get() {
            None => true,
            Some(Landed { opening: Ok(opening), at }) => {
                !anew && at.elapsed() < REUSE && serves(opening)
            }
            Some(Landed { opening: Err(_), .. }) => false,
        };
        if let Some(flight) = entry.upgrade().filter(takes) {
            return flight;
        }
        let flight = Arc::<Flight>::default();
        *entry = Arc::downgrade(&flight);
        flight
    }

    fn sweep(&self) {
        let due = self.sweep_at.load(Ordering::Relaxed).max(SWEEP_FROM);
        if self.flights.len() >= due {
            self.flights.retain(|_, flight| flight.strong_count() > 0);
            self.sweep_at.store(2 * self.flights.len(), Ordering::Relaxed);
        }
    }

    fn keep_for_others(&self, key: Key, flight: Arc<Flight>, opened: bool) {
        let flights = Arc::clone(&self.flights);
        tokio::spawn(async move {
            if opened {
                tokio::time::sleep(REUSE).await;
            }
            flights.remove_if(&key, |_, kept| kept.ptr_eq(&Arc::downgrade(&flight)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{FeedKey, Runs};
    use crate::runs::columns::ColumnSet;

    fn key(batch: usize) -> Key {
        let runs = Runs::OfBatch(batch.to_string().into());
        let feed = FeedKey::new("env".into(), runs);
        (View { feed, columns: ColumnSet::EXPOSED, old_statuses: false }, Floor::default(), false)
    }

    #[test]
    fn abandoned_flights_do_not_pile_up_and_those_under_way_are_kept() {
        let flights = Flights::default();
        let under_way = flights.board(key(0), false, |_| true);
        for batch in 1..10 * SWEEP_FROM {
            drop(flights.board(key(batch), false, |_| true));
            assert!(flights.flights.len() <= SWEEP_FROM + 1);
        }
        assert!(Arc::ptr_eq(&under_way, &flights.board(key(0), true, |_| false)));
    }
}
