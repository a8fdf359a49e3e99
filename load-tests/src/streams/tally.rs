//! What the readers of one trial have seen.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::chunk::{Mark, now};
use crate::ledger::Faults;

/// Shared by a trial's readers and its coordinator.
#[derive(Default)]
pub struct Tally {
    state: Mutex<State>,
    advanced: Notify,
}

#[derive(Default)]
struct State {
    /// In microseconds.
    latencies: Vec<u32>,
    delivered: u64,
    last: u64,
    live: usize,
    done: usize,
    faults: Faults,
}

/// What was delivered in some time.
pub struct Delivered {
    /// From just before a chunk was sent until its reader had it, in ms.
    pub latencies: Vec<f64>,
    /// How many deliveries.
    pub count: u64,
    /// When the last one was; see [`now`].
    pub last: u64,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Arc<Tally> {
        Arc::default()
    }

    /// Enters what one read brought to a reader that waits for the chunk of number `next`, and returns
    /// the number that it waits for now.
    pub fn enter(&self, marks: &[Mark], mut next: u64) -> u64 {
        if marks.is_empty() {
            return next;
        }
        let at = now();
        let mut state = self.state.lock();
        for mark in marks {
            match mark.number {
                number if number > next => state.faults.skipped += number - next,
                number if number + 1 == next => state.faults.repeated += 1,
                number if number < next => state.faults.backward += 1,
                _ => {}
            }
            next = next.max(mark.number + 1);
            let latency = at.saturating_sub(mark.sent);
            state.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
        }
        state.delivered += marks.len() as u64;
        state.last = at;
        drop(state);
        self.advanced.notify_one();
        next
    }

    /// One more reader has everything that there is.
    pub fn is_live(&self) {
        self.state.lock().live += 1;
        self.advanced.notify_one();
    }

    /// One more reader has read as far as it was to.
    pub fn is_done(&self) {
        self.state.lock().done += 1;
        self.advanced.notify_one();
    }

    /// A reader gave up.
    pub fn failed(&self, why: String) {
        let mut state = self.state.lock();
        state.faults.failed += 1;
        state.faults.first_failure.get_or_insert(why);
        drop(state);
        self.advanced.notify_one();
    }

    /// What went wrong so far.
    pub fn faults(&self) -> Faults {
        self.state.lock().faults.clone()
    }

    /// What was delivered since this was last asked.
    pub fn take(&self) -> Delivered {
        let mut state = self.state.lock();
        let latencies = std::mem::take(&mut state.latencies);
        let count = std::mem::take(&mut state.delivered);
        let last = state.last;
        drop(state);
        let latencies = latencies.into_iter().map(|us| f64::from(us) / 1e3).collect();
        Delivered { latencies, count, last }
    }

    /// Waits until so many readers have everything that there is; false if that takes longer than
    /// `limit`, or one gives up.
    pub async fn all_live(&self, readers: usize, limit: Duration) -> bool {
        self.wait(limit, |state| state.live >= readers).await
    }

    /// Waits until so many readers have read as far as they were to; false as above.
    pub async fn all_done(&self, readers: usize, limit: Duration) -> bool {
        self.wait(limit, |state| state.done >= readers).await
    }

    /// Waits until so many chunks were delivered since [`Tally::take`]; false as above.
    pub async fn reach(&self, deliveries: u64, limit: Duration) -> bool {
        self.wait(limit, |state| state.delivered >= deliveries).await
    }

    async fn wait(&self, limit: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let waiting = async {
            loop {
                {
                    let state = self.state.lock();
                    if state.faults.failed > 0 {
                        return false;
                    }
                    if holds(&state) {
                        return true;
                    }
                }
                // A wake-up that comes before this is kept by `notify_one`.
                self.advanced.notified().await;
            }
        };
        tokio::time::timeout(limit, waiting).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(numbers: &[u64]) -> Vec<Mark> {
        numbers.iter().map(|number| Mark { number: *number, sent: now() }).collect()
    }

    #[tokio::test]
    async fn what_is_lost_doubled_or_late_is_counted() {
        let tally = Tally::new();
        assert_eq!(tally.enter(&marks(&[0, 1, 2]), 0), 3);
        assert_eq!(tally.enter(&marks(&[2]), 3), 3);
        assert_eq!(tally.enter(&marks(&[5]), 3), 6);
        assert_eq!(tally.enter(&marks(&[1, 6]), 6), 7);
        let faults = tally.faults();
        assert_eq!((faults.skipped, faults.repeated, faults.backward), (2, 1, 1));
        assert!(tally.reach(7, Duration::from_secs(1)).await);
        assert_eq!(tally.take().count, 7);
        assert!(!tally.reach(1, Duration::from_millis(10)).await);
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_ends_the_wait() {
        let tally = Tally::new();
        tally.is_live();
        assert!(tally.all_live(1, Duration::from_secs(60)).await);
        tally.failed("it broke".to_owned());
        assert!(!tally.all_live(2, Duration::from_secs(60)).await);
        assert_eq!(tally.faults().first_failure.as_deref(), Some("it broke"));
    }
}
