//! Many requests for single runs, few statements: what is asked for while others are read goes
//! together into the next one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::many::{By, Carry, RunId};
use super::reader::{RunRead, Unavailable};
use super::store::RunStore;
use crate::limits::queue::{FairQueue, Pushed, Ticket};
use crate::limits::{Budget, Gate};
use crate::telemetry::{LIMIT_REFUSED, LIMIT_WAITING};

mod send;

type Answer = Result<Arc<RunRead>, Unavailable>;

/// The batches of one kind of id.
#[derive(Debug)]
pub(super) struct Flights {
    shared: Arc<Shared>,
    _driver: AbortOnDropHandle<()>,
}

/// What bounds the batches, and what they draw on.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Labels the metrics.
    pub name: &'static str,
    /// Statements under way at once.
    pub at_once: usize,
    /// Runs that wait.
    pub waiting: usize,
    /// Runs in one statement.
    pub batch: usize,
    /// Bytes in one statement.
    pub carry: Carry,
    /// Places for rows that are read by themselves.
    pub gate: Gate,
    /// Bytes for such rows.
    pub budget: Budget,
    /// For how long a statement may take.
    pub query_wait: Duration,
    /// For how long a row that is read by itself waits for its turn, while somebody waits for it.
    pub patience: Duration,
}

#[derive(Debug)]
struct Shared {
    store: RunStore,
    by: By,
    bounds: Bounds,
    state: Mutex<State>,
    arrived: Notify,
    waiting: Gauge,
    refused: Counter,
}

#[derive(Debug)]
struct State {
    queue: FairQueue<Arc<Flight>>,
    /// The flights that may still be joined: no statement for them has been sent.
    unsent: HashMap<RunId, (Ticket, Arc<Flight>)>,
}

/// A run that is to be read, and everybody who waits for it.
#[derive(Debug)]
struct Flight {
    run: RunId,
    answer: watch::Sender<Option<Answer>>,
}

impl Flights {
    /// Starts the task that sends the batches; it ends with this value. Needs a runtime.
    pub fn start(store: RunStore, by: By, bounds: Bounds) -> Flights {
        let queue = FairQueue::new(bounds.waiting);
        let shared = Arc::new(Shared {
            store,
            by,
            state: Mutex::new(State { queue, unsent: HashMap::new() }),
            arrived: Notify::new(),
            waiting: metrics::gauge!(LIMIT_WAITING, "limit" => bounds.name),
            refused: metrics::counter!(LIMIT_REFUSED, "limit" => bounds.name),
            bounds,
        });
        let driver = tokio::spawn(Arc::clone(&shared).drive());
        Flights { shared, _driver: AbortOnDropHandle::new(driver) }
    }

    /// The run as of now or later. A caller that goes away takes nobody's answer along.
    pub async fn read(&self, run: RunId, within: Duration) -> Answer {
        let answer = match self.shared.join(run) {
            Ok(mut seat) => tokio::time::timeout(within, seat.answer()).await,
            Err(unavailable) => Ok(Err(unavailable)),
        };
        let answer = answer.unwrap_or(Err(Unavailable::Late));
        if matches!(answer, Err(Unavailable::Full | Unavailable::Late)) {
            self.shared.refused.increment(1);
        }
        answer
    }
}

impl Shared {
    /// A seat in the run's flight if none was sent yet, else in a new one.
    fn join(&self, run: RunId) -> Result<Seat<'_>, Unavailable> {
        let mut state = self.state.lock();
        let State { queue, unsent } = &mut *state;
        let vacant = match unsent.entry(run) {
            Entry::Occupied(entry) => {
                let flight = Arc::clone(&entry.get().1);
                let answer = flight.answer.subscribe();
                return Ok(Seat { shared: self, flight, answer: Some(answer) });
            }
            Entry::Vacant(vacant) => vacant,
        };
        let run = vacant.key().clone();
        let (send, answer) = watch::channel(None);
        let flight = Arc::new(Flight { run, answer: send });
        let pushed = queue.push(&flight.run.environment, Arc::clone(&flight));
        match pushed {
            Pushed::In(ticket) => {
                vacant.insert((ticket, Arc::clone(&flight)));
            }
            Pushed::InsteadOf(ticket, other) => {
                vacant.insert((ticket, Arc::clone(&flight)));
                unsent.remove(&other.run);
                other.answer.send_replace(Some(Err(Unavailable::Full)));
            }
            Pushed::Refused(_) => return Err(Unavailable::Full),
        }
        self.waiting.set(queue.len() as f64);
        drop(state);
        self.arrived.notify_one();
        Ok(Seat { shared: self, flight, answer: Some(answer) })
    }
}

/// One caller's place in a flight.
struct Seat<'a> {
    shared: &'a Shared,
    flight: Arc<Flight>,
    answer: Option<watch::Receiver<Option<Answer>>>,
}

impl Seat<'_> {
    async fn answer(&mut self) -> Answer {
        let Some(answer) = &mut self.answer else { return Err(Unavailable::Failed) };
        match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or(Err(Unavailable::Failed)),
            // The task that would have answered is gone, as at the end of the process.
            Err(_) => Err(Unavailable::Failed),
        }
    }
}

impl Drop for Seat<'_> {
    /// The last to leave a flight that was not sent takes it out of the queue.
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        self.answer = None;
        if !self.flight.answer.is_closed() {
            return;
        }
        if let Entry::Occupied(entry) = state.unsent.entry(self.flight.run.clone())
            && Arc::ptr_eq(&entry.get().1, &self.flight)
        {
            let (ticket, _) = entry.remove();
            state.queue.remove(&self.flight.run.environment, ticket);
            self.shared.waiting.set(state.queue.len() as f64);
        }
    }
}
