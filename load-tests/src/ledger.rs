//! What the subscribers of one trial have seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// One version of a run that reached one subscriber.
#[derive(Clone, Copy)]
pub struct Delivery {
    /// Which run.
    pub run: u32,
    /// Which version.
    pub version: u64,
    /// When the whole answer had been read.
    pub at: Instant,
}

/// What went otherwise than hoped. All zero is a clean trial.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Versions that a subscriber never saw since a later one came in their place.
    pub skipped: u64,
    /// Versions that a live answer brought a second time.
    pub repeated: u64,
    /// Versions that came after a later one.
    pub backward: u64,
    /// Answers 409: the subscriber had to start over.
    pub refetches: u64,
    /// Answers 429 and 503: the subscriber was told to come again.
    pub refusals: u64,
    /// Connections that broke.
    pub disconnects: u64,
    /// Subscribers that gave up, the first of them in words.
    pub failed: u64,
    /// See [`Faults::failed`].
    pub first_failure: Option<String>,
}

#[derive(Default)]
struct State {
    deliveries: Vec<Delivery>,
    progress: u64,
    goal: u64,
    live: usize,
    held_out: u64,
    faults: Faults,
}

/// Shared by a trial's subscribers and its coordinator, all on one thread: the lock is never waited for.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
    advanced: Notify,
}

/// What one answer means for its subscriber.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The answer to a live poll: it may only bring what is new.
    Live,
    /// A snapshot: it may repeat what the subscriber has.
    Snapshot,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Arc<Ledger> {
        Arc::default()
    }

    /// Enters that `version` of `run` was read at `at` by a subscriber that had `last`, and returns
    /// the version that it has now.
    pub fn enter(
        &self,
        answer: Answer,
        run: u32,
        version: u64,
        last: Option<u64>,
        at: Instant,
    ) -> u64 {
        let Some(last) = last else { return version };
        let mut state = self.state.lock();
        if version > last {
            state.faults.skipped += version - last - 1;
            state.progress += version - last;
            state.deliveries.push(Delivery { run, version, at });
            if state.progress >= state.goal {
                self.advanced.notify_one();
            }
            return version;
        }
        match answer {
            _ if version < last => state.faults.backward += 1,
            Answer::Live => state.faults.repeated += 1,
            Answer::Snapshot => {}
        }
        last
    }

    /// One more subscriber has sent its first live poll.
    pub fn is_live(&self) {
        self.state.lock().live += 1;
        self.advanced.notify_one();
    }

    /// A live poll ended without news.
    pub fn held_out(&self) {
        self.state.lock().held_out += 1;
    }

    /// Lets the caller note what went wrong.
    pub fn fault(&self, note: impl FnOnce(&mut Faults)) {
        note(&mut self.state.lock().faults);
        self.advanced.notify_one();
    }

    /// What went wrong so far.
    pub fn faults(&self) -> Faults {
        self.state.lock().faults.clone()
    }

    /// How many live polls ended without news so far.
    pub fn polls_held_out(&self) -> u64 {
        self.state.lock().held_out
    }

    /// Forgets the deliveries so far.
    pub fn forget_deliveries(&self) {
        self.state.lock().deliveries.clear();
    }

    /// How many versions the subscribers together have taken in.
    pub fn progress(&self) -> u64 {
        self.state.lock().progress
    }

    /// The deliveries since [`Ledger::forget_deliveries`].
    pub fn take_deliveries(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.state.lock().deliveries)
    }

    /// Waits until the subscribers together have taken in `goal` versions; false if that takes longer
    /// than `limit` or a subscriber gives up.
    pub async fn reach(&self, goal: u64, limit: Duration) -> bool {
        self.state.lock().goal = goal;
        self.wait(limit, |state| state.progress >= goal).await
    }

    /// Waits until so many subscribers are live; false as in [`Ledger::reach`].
    pub async fn all_live(&self, subscribers: usize, limit: Duration) -> bool {
        self.wait(limit, |state| state.live >= subscribers).await
    }

    async fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let waiting = async {
            loop {
                {
                    let state = self.state.lock();
                    if done(&state) {
                        return true;
                    }
                    if state.faults.failed > 0 {
                        return false;
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

    #[tokio::test]
    async fn what_is_lost_doubled_or_late_is_counted() {
        let ledger = Ledger::new();
        let now = Instant::now();
        assert_eq!(ledger.enter(Answer::Snapshot, 0, 5, None, now), 5);
        assert_eq!(ledger.enter(Answer::Live, 0, 6, Some(5), now), 6);
        assert_eq!(ledger.enter(Answer::Live, 0, 6, Some(6), now), 6);
        assert_eq!(ledger.enter(Answer::Snapshot, 0, 6, Some(6), now), 6);
        assert_eq!(ledger.enter(Answer::Live, 0, 9, Some(6), now), 9);
        assert_eq!(ledger.enter(Answer::Live, 0, 8, Some(9), now), 9);
        let faults = ledger.faults();
        assert_eq!((faults.skipped, faults.repeated, faults.backward), (2, 1, 1));
        assert!(ledger.reach(4, Duration::from_secs(1)).await);
        assert!(!ledger.reach(5, Duration::from_millis(10)).await);
    }
}
