//! Sending the batches, and giving everybody their answer.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::super::many::{Carry, Found, RunId};
use super::super::pace::Pace;
use super::super::reader::{RunRead, Unavailable};
use super::{Flight, Shared};
use crate::limits::Full;
use crate::limits::queue::Ticket;

impl Shared {
    /// Sends batch after batch.
    pub(super) async fn drive(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(self.bounds.at_once));
        let mut pace = Pace::new(Instant::now());
        loop {
            while self.queued() == 0 {
                self.arrived.notified().await;
            }
            let mut last_came = Instant::now();
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while self.queued() < self.bounds.batch && Instant::now() < pace.due(last_came) {
                tokio::select! {
                    () = tokio::time::sleep_until(pace.due(last_came)) => {}
                    () = self.arrived.notified() => last_came = Instant::now(),
                }
            }
            let batch = self.next_batch();
            pace.sent(Instant::now(), batch.len());
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
            match tokio::time::timeout(self.bounds.query_wait, read).await {
                Ok(Ok((seen, found))) => {
                    let seen = Arc::new(seen);
                    for ((ticket, flight), found) in part.into_iter().zip(found) {
                        let run = match found {
                            Found::Run(run) => Some(*run),
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
            Ok::<_, Full>((share, place))
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
                match tokio::time::timeout(self.bounds.query_wait, read).await {
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
