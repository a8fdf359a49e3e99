//! Places for work that may be under way at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::Full;
use super::queue::{FairQueue, Pushed, Ticket, Turn};
use super::tally::Tally;

/// Bounded concurrency with fair shares: free places go round the environments that wait, and no
/// environment holds more than three quarters of them or, of few, all but one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    share: usize,
    state: Mutex<State>,
    tally: Tally,
}

#[derive(Debug)]
struct State {
    free: usize,
    held: HashMap<Arc<str>, usize>,
    waiting: FairQueue<oneshot::Sender<Place>>,
}

/// A place at work, given up when dropped.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    environment: Arc<str>,
}

impl Gate {
    /// A gate with so many places, at which at most `waiting` wait; `name` labels its metrics.
    pub fn new(places: usize, waiting: usize, name: &'static str) -> Self {
        let state = State { free: places, held: HashMap::new(), waiting: FairQueue::new(waiting) };
        // One place at least is there for others, if there is more than one.
        let share = (places - (places / 4).max(1)).max(1);
        Gate(Arc::new(Inner { share, state: Mutex::new(state), tally: Tally::of(name) }))
    }

    /// A place, as soon as it is this environment's turn, or [`Full`] once `within` has passed or if
    /// too many wait. A caller that goes away leaves nothing behind.
    pub async fn enter(&self, environment: &str, within: Duration) -> Result<Place, Full> {
        let (send, receive) = oneshot::channel();
        let ticket = {
            let mut state = self.0.state.lock();
            if state.may_hold_one_more(environment, self.0.share) {
                return Ok(state.take(&self.0, environment.into()));
            }
            let pushed = state.waiting.push(environment, send);
            self.0.tally.waiting.set(state.waiting.len() as f64);
            match pushed {
                Pushed::In(ticket) => ticket,
                // Dropping its sender tells the other one.
                Pushed::InsteadOf(ticket, _) => ticket,
                Pushed::Refused(_) => {
                    self.0.tally.refused.increment(1);
                    return Err(Full);
                }
            }
        };
        let _queued = Queued { inner: &self.0, environment, ticket };
        match tokio::time::timeout(within, receive).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => {
                self.0.tally.refused.increment(1);
                Err(Full)
            }
        }
    }

    /// A place, if there is one for this environment now.
    pub fn try_enter(&self, environment: &str) -> Option<Place> {
        let mut state = self.0.state.lock();
        if state.may_hold_one_more(environment, self.0.share) {
            return Some(state.take(&self.0, environment.into()));
        }
        self.0.tally.refused.increment(1);
        None
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }
}

impl State {
    /// Nobody is passed by: while a place is free, only those wait who have reached their share.
    fn may_hold_one_more(&self, environment: &str, share: usize) -> bool {
        self.free > 0 && self.held.get(environment).is_none_or(|held| *held < share)
    }

    fn take(&mut self, inner: &Arc<Inner>, environment: Arc<str>) -> Place {
        self.free -= 1;
        *self.held.entry(Arc::clone(&environment)).or_default() += 1;
        inner.tally.used.increment(1.0);
        Place { inner: Arc::clone(inner), environment }
    }
}

impl Inner {
    /// Gives free places to those whose turn it is.
    fn hand_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut given = Vec::new();
        while state.free > 0 {
            let State { waiting, held, .. } = &mut *state;
            let next = waiting.pop_if(|environment, _| match held.get(environment) {
                Some(held) if *held >= self.share => Turn::Skip,
                _ => Turn::Take,
            });
            let Some((environment, _, waiter)) = next else { break };
            given.push((waiter, state.take(self, environment)));
        }
        self.tally.waiting.set(state.waiting.len() as f64);
        drop(state);
        // Outside of the lock: a place whose taker has just left comes back here at once.
        for (waiter, place) in given {
            let _ = waiter.send(place);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.environment) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.environment);
            }
        }
        self.inner.tally.used.decrement(1.0);
        self.inner.hand_out(state);
    }
}

/// A place in the queue, given up when the caller goes away.
struct Queued<'a> {
    inner: &'a Arc<Inner>,
    environment: &'a str,
    ticket: Ticket,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if state.waiting.remove(self.environment, self.ticket).is_some() {
            self.inner.tally.waiting.set(state.waiting.len() as f64);
        }
    }
}
