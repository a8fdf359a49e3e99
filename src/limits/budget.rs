//! Bytes that may be in use at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::Full;
use super::queue::{FairQueue, Pushed, Ticket, Turn};
use super::tally::Tally;

/// A budget of bytes, in all and per environment. When they are short, environments take turns.
/// Cheap to clone.
///
/// What is larger than a bound is let in when nothing else counts against that bound, so that
/// nobody waits for ever.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: usize,
    per_environment: usize,
    state: Mutex<State>,
    tally: Tally,
}

#[derive(Debug)]
struct State {
    used: usize,
    by_environment: HashMap<Arc<str>, Used>,
    waiting: FairQueue<Waiter>,
}

/// What an environment has out.
#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    shares: usize,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    send: oneshot::Sender<Share>,
}

/// Bytes of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    inner: Arc<Inner>,
    environment: Arc<str>,
    bytes: usize,
}

impl Budget {
    /// So many bytes in all and for each environment, for which at most `waiting` wait; `name`
    /// labels its metrics.
    pub fn new(total: usize, per_environment: usize, waiting: usize, name: &'static str) -> Self {
        let state =
            State { used: 0, by_environment: HashMap::new(), waiting: FairQueue::new(waiting) };
        let state = Mutex::new(state);
        Budget(Arc::new(Inner { total, per_environment, state, tally: Tally::of(name) }))
    }

    /// So many bytes, as soon as it is this environment's turn and they are there, or [`Full`] once
    /// `within` has passed or if too many wait. A caller that goes away leaves nothing behind.
    pub async fn take(
        &self,
        environment: &str,
        bytes: usize,
        within: Duration,
    ) -> Result<Share, Full> {
        let (send, receive) = oneshot::channel();
        let ticket = {
            let mut state = self.0.state.lock();
            let ticket = match state.waiting.push(environment, Waiter { bytes, send }) {
                Pushed::In(ticket) => ticket,
                // Dropping its sender tells the other one.
                Pushed::InsteadOf(ticket, _) => ticket,
                Pushed::Refused(_) => {
                    self.0.tally.refused.increment(1);
                    return Err(Full);
                }
            };
            self.0.hand_out(state);
            ticket
        };
        let _queued = Queued { inner: &self.0, environment, ticket };
        match tokio::time::timeout(within, receive).await {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(_)) | Err(_) => {
                self.0.tally.refused.increment(1);
                Err(Full)
            }
        }
    }

    /// How many bytes are in use.
    pub fn used(&self) -> usize {
        self.0.state.lock().used
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }
}

impl Inner {
    /// Gives bytes to those whose turn it is.
    fn hand_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut given = Vec::new();
        loop {
            let State { used, by_environment, waiting } = &mut *state;
            let next = waiting.pop_if(|environment, waiter| {
                let own = by_environment.get(environment).map_or(0, |used| used.bytes);
                if !fits(own, waiter.bytes, self.per_environment) {
                    Turn::Skip
                } else if !fits(*used, waiter.bytes, self.total) {
                    // Or else small requests would keep a large one out for ever.
                    Turn::Wait
                } else {
                    Turn::Take
                }
            });
            let Some((environment, _, Waiter { bytes, send })) = next else { break };
            state.used += bytes;
            let own = state.by_environment.entry(Arc::clone(&environment)).or_default();
            own.bytes += bytes;
            own.shares += 1;
            given.push((send, Share { inner: Arc::clone(self), environment, bytes }));
        }
        self.report(&state);
        drop(state);
        // Outside of the lock: a share whose taker has just left comes back here at once.
        for (send, share) in given {
            let _ = send.send(share);
        }
    }

    fn report(&self, state: &State) {
        self.tally.used.set(state.used as f64);
        self.tally.waiting.set(state.waiting.len() as f64);
    }
}

fn fits(used: usize, bytes: usize, bound: usize) -> bool {
    used == 0 || used.saturating_add(bytes) <= bound
}

impl Share {
    /// The bytes that it stands for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it larger or smaller, at once: it never waits. If that overdraws the budget, those who
    /// come later wait.
    pub fn resize(&mut self, bytes: usize) {
        let mut state = self.inner.state.lock();
        state.used = state.used - self.bytes + bytes;
        if let Some(own) = state.by_environment.get_mut(&self.environment) {
            own.bytes = own.bytes - self.bytes + bytes;
        }
        self.bytes = bytes;
        // Growing lets others in as well: whoever waits at the head for what is left of the whole
        // steps aside once its own environment is over its bound.
        self.inner.hand_out(state);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.used -= self.bytes;
        if let Some(own) = state.by_environment.get_mut(&self.environment) {
            own.bytes -= self.bytes;
            own.shares -= 1;
            if own.shares == 0 {
                state.by_environment.remove(&self.environment);
            }
        }
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
            // Others may have waited for this one's turn.
            self.inner.hand_out(state);
        }
    }
}
