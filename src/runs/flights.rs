//! Many requests for single runs, few statements: what is asked for while others are read goes
//! together into the next one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::many::{By, Carry, Found, RunId};
use super::pace::Pace;
use super::reader::{QUERY_WAIT, RunRead, Unavailable};
use super::store::RunStore;
use crate::limits::queue::{FairQueue, Pushed, Ticket};
use crate::limits::{Budget, Gate};
use crate::telemetry::{LIMIT_REFUSED, LIMIT_WAITING};

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
    /// For how long such a row waits for either, while somebody waits for it.
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
        let mut seat = self.shared.join(run).inspect_err(|_| self.shared.refused.increment(1))?;
        let answer = tokio::time::timeout(within, seat.answer()).await;
        answer.unwrap_or(Err(Unavailable::Late)).inspect_err(|_| self.shared.refused.increment(1))
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

    /// Sends batch after batch.
    async fn drive(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(self.bounds.at_once));
        let mut pace = Pace::new();
        loop {
            while self.queued() == 0 {
                self.arrived.notified().await;
            }
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while self.queued() < self.bounds.batch && Instant::now() < pace.next() {
                tokio::select! {
                    () = tokio::time::sleep_until(pace.next()) => {}
                    () = self.arrived.notified() => {}
                }
            }
            let batch = self.next_batch();
            pace.sent(batch.len());
            tokio::spawn(Arc::clone(&self).fly(batch, place));
        }
    }

    fn queued(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// As many as one statement takes, in turns of the environments. Nobody can join them any more.
    fn next_batch(&self) -> Vec<(Ticket, Arc<Flight>)> {
        let mut state = self.state.lock();
        let mut batch = Vec::new();
        while batch.len() < self.bounds.batch
            && let Some((_, ticket, flight)) = state.queue.pop()
        {
            if state.unsent.get(&flight.run).is_some_and(|(_, other)| Arc::ptr_eq(other, &flight)) {
                state.unsent.remove(&flight.run);
            }
            if !flight.answer.is_closed() {
                batch.push((ticket, flight));
            }
        }
        self.waiting.set(state.queue.len() as f64);
        batch
    }

    /// Reads a batch and gives everybody their answer.
    async fn fly(self: Arc<Self>, batch: Vec<(Ticket, Arc<Flight>)>, _place: OwnedSemaphorePermit) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let runs: Vec<RunId> = part.iter().map(|(_, flight)| flight.run.clone()).collect();
            let read = self.store.runs(self.by, &runs, self.bounds.carry);
            match tokio::time::timeout(QUERY_WAIT, read).await {
                Ok(Ok((seen, found))) => {
                    let seen = Arc::new(seen);
                    for ((ticket, flight), found) in part.into_iter().zip(found) {
                        let run = match found {
                            Found::Run(run) => Some(run),
                            Found::Missing => None,
                            Found::NotCarried => {
                                self.put_back(ticket, flight);
                                continue;
                            }
                            Found::Large(bytes) => {
                                tokio::spawn(Arc::clone(&self).read_alone(flight, bytes));
                                continue;
                            }
                        };
                        let read = RunRead { seen: Arc::clone(&seen), run, _share: None };
                        flight.answer.send_replace(Some(Ok(Arc::new(read))));
                    }
                }
                // One unreadable row must not fail the feeds of all others.
                Ok(Err(error)) if part.len() > 1 && error.is_of_the_data() => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                }
                failed => {
                    let unavailable =
                        Unavailable::of(failed.map(|answer| answer.err()).ok().flatten());
                    for (_, flight) in part {
                        flight.answer.send_replace(Some(Err(unavailable)));
                    }
                }
            }
        }
    }

    /// Lets a run go round again that was more than its batch could carry.
    fn put_back(&self, ticket: Ticket, flight: Arc<Flight>) {
        let mut state = self.state.lock();
        state.queue.put_back(&flight.run.environment, ticket, Arc::clone(&flight));
        // There may be a later flight of the same run by now, which others join.
        state.unsent.entry(flight.run.clone()).or_insert((ticket, flight));
        drop(state);
        self.arrived.notify_one();
    }

    /// Reads a row that is too large for a batch, under the byte budget.
    async fn read_alone(self: Arc<Self>, flight: Arc<Flight>, bytes: usize) {
        let environment = &flight.run.environment;
        let allowed = async {
            // Twice, since a row is in memory twice while it is taken over from the connection.
            let share =
                self.bounds.budget.take(environment, bytes * 2, self.bounds.patience).await?;
            let place = self.bounds.gate.enter(environment, self.bounds.patience).await?;
            Ok::<_, crate::limits::Full>((share, place))
        };
        let allowed = tokio::select! {
            allowed = allowed => allowed,
            () = flight.answer.closed() => return,
        };
        // Once it is sent, the statement is left to end.
        let answer = match allowed {
            Err(_) => Err(Unavailable::Full),
            Ok((mut share, _place)) => {
                let runs = [flight.run.clone()];
                let read = self.store.runs(self.by, &runs, Carry::EVERYTHING);
                match tokio::time::timeout(QUERY_WAIT, read).await {
                    Ok(Ok((seen, found))) => {
                        let run = found.into_iter().find_map(Found::into_run);
                        share.resize(run.as_ref().map_or(0, |run| run.row.size()));
                        Ok(Arc::new(RunRead { seen: Arc::new(seen), run, _share: Some(share) }))
                    }
                    Ok(Err(error)) => Err(Unavailable::of(Some(error))),
                    Err(_) => Err(Unavailable::of(None)),
                }
            }
        };
        flight.answer.send_replace(Some(answer));
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
