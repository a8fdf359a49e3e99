//! A reader that takes what has come together, once in a while, on request of its client.

use std::time::Duration;

use tokio::time::Instant;

use super::hub::{Next, Reader};
use super::store::StoreError;

/// Between two ticks nothing is looked at, and nothing is kept: what comes meanwhile is in the tail's
/// recent batches, or else in the store.
#[derive(Debug)]
pub struct Paced {
    reader: Reader,
    every: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// What comes next is given at once.
    Free,
    /// All that there is is given, since then.
    Burst(Instant),
    /// Nothing is given until then.
    Held(Instant),
}

impl Paced {
    /// With a tick this often; at once if that is zero.
    pub fn new(reader: Reader, every: Duration) -> Paced {
        Paced { reader, every, state: State::Free }
    }

    /// What comes next, as [`Reader::next`] gives it, and after a tick all that has come until then. The
    /// first after quiet is not held back. An error is told at once.
    pub async fn next(&mut self, until: Option<Instant>) -> Result<Next, StoreError> {
        if self.every.is_zero() {
            return self.reader.next(until).await;
        }
        // Few have a tick, and nobody else takes memory for it.
        Box::pin(self.ticked(until)).await
    }

    async fn ticked(&mut self, until: Option<Instant>) -> Result<Next, StoreError> {
        loop {
            match self.state {
                State::Free => {
                    let next = self.reader.next(until).await?;
                    if let Next::Batch(..) = next {
                        self.state = State::Burst(Instant::now());
                    }
                    return Ok(next);
                }
                State::Burst(began) => match self.reader.next(None).await? {
                    Next::Nothing(_) => self.state = State::Held(began + self.every),
                    next => return Ok(next),
                },
                State::Held(tick) => {
                    let (tail, _) = self.reader.tail();
                    let Some(until) = until else { return Ok(Next::Nothing(tail)) };
                    tokio::select! {
                        error = self.reader.fault() => return Err(error),
                        () = tokio::time::sleep_until(until.min(tick)) => {}
                    }
                    if Instant::now() < tick {
                        return Ok(Next::Nothing(self.reader.tail().0));
                    }
                    self.state = State::Free;
                }
            }
        }
    }

    /// When the last came of what is held back; `None` if nothing is.
    pub fn held_back(&self) -> Option<Instant> {
        let (_, came) = self.reader.tail();
        came.filter(|_| self.reader.lacks())
    }

    /// Gives what is held back at once.
    pub fn release(&mut self) {
        self.state = State::Free;
    }

    /// When the last of what was given came, as far as holding it back is why it was not given then.
    pub fn came(&self) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(self.every).unwrap_or(now);
        let (_, came) = self.reader.tail();
        came.map_or(now, |came| came.clamp(earliest, now))
    }
}
