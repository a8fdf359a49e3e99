//! One tail per stream, however many read it. What is recent is kept as it is sent, and merged for those
//! who lack several batches of it; whoever is behind that reads the store at their own pace, and joins
//! the tail where the two meet.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::batch::Batch;
use super::past::{Behind, Page, Past};
use super::recent::{After, Recent, State};
use super::store::{Event, Position, Start, Store, StoreError, StreamId};
use super::turns::Turns;
use crate::telemetry;
use crate::wake::{List, Place, Rounds};

/// For how long a new tail may take to find the end of its stream.
const OPEN: Duration = Duration::from_secs(10);

/// The tails of the streams that are read here. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    tails: Mutex<HashMap<StreamId, Weak<Tail>>>,
    recent: Arc<Recent>,
    turns: Turns,
}

#[derive(Debug)]
struct Tail {
    stream: StreamId,
    hub: Weak<Inner>,
    state: Arc<Mutex<State>>,
    /// Those who read it.
    readers: Arc<List<()>>,
    /// What only the store has.
    past: Arc<Past>,
    /// Is told once it has ended.
    over: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Hub {
    /// A hub on this store, which keeps at most so many bytes of recent records.
    pub fn new(store: Store, recent: usize) -> Hub {
        let recent = Arc::new(Recent::new(recent));
        let turns = Turns::default();
        Hub(Arc::new(Inner { store, tails: Mutex::default(), recent, turns }))
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Begins to read a stream.
    pub async fn read(&self, stream: StreamId, start: Start) -> Result<Reader, StoreError> {
        let tail = self.tail(stream);
        let place = tail.readers.join(());
        let hub = Arc::clone(&self.0);
        let mut reader = Reader { hub, tail, place, at: 0, alarm: None, behind: None };
        let found = tokio::time::timeout(OPEN, reader.ready());
        let late =
            |_| StoreError::Unavailable("it did not find the stream's end in time".to_owned());
        let next = found.await.map_err(late)??;
        reader.at = match start {
            Start::At(seq_num) => seq_num.min(next),
            Start::Latest => next,
        };
        Ok(reader)
    }

    /// The recent records that are kept, in bytes.
    #[cfg(test)]
    pub(super) fn recent(&self) -> usize {
        self.0.recent.used()
    }

    /// The streams that somebody reads.
    #[cfg(test)]
    pub(super) fn tails(&self) -> usize {
        self.0.tails.lock().len()
    }

    fn tail(&self, stream: StreamId) -> Arc<Tail> {
        // Declared before the lock is taken, since the last to give a tail up takes that lock as well.
        let living;
        let mut tails = self.0.tails.lock();
        living = tails.get(&stream).and_then(Weak::upgrade);
        if let Some(tail) = living.as_ref().filter(|tail| tail.state.lock().ended.is_none()) {
            return Arc::clone(tail);
        }
        let state = Arc::new(Mutex::new(State::new(Arc::clone(&self.0.recent))));
        let (readers, over) = (Arc::default(), CancellationToken::new());
        let end =
            End { state: Arc::clone(&state), readers: Arc::clone(&readers), over: over.clone() };
        let (store, followed) = (self.0.store.clone(), stream.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let error = follow(store, followed, &end.state, &end.readers).await;
            end.state.lock().ended = Some(error);
        }));
        let hub = Arc::downgrade(&self.0);
        let past = Past::new(stream.clone(), Arc::clone(&self.0.recent));
        let tail =
            Arc::new(Tail { stream: stream.clone(), hub, state, readers, past, over, _task: task });
        tails.insert(stream, Arc::downgrade(&tail));
        metrics::gauge!(telemetry::STREAM_TAILS).set(tails.len() as f64);
        tail
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else { return };
        let mut tails = hub.tails.lock();
        // Unless another has taken its place.
        if tails.get(&self.stream).is_some_and(|tail| tail.strong_count() == 0) {
            tails.remove(&self.stream);
        }
        metrics::gauge!(telemetry::STREAM_TAILS).set(tails.len() as f64);
    }
}

/// Tells those who read a tail that it has ended, however its task does.
struct End {
    state: Arc<Mutex<State>>,
    readers: Arc<List<()>>,
    over: CancellationToken,
}

impl Drop for End {
    fn drop(&mut self) {
        let ended = || StoreError::Unavailable("the tail ended".to_owned());
        self.state.lock().ended.get_or_insert_with(ended);
        self.over.cancel();
        self.readers.wake_where(|()| true);
    }
}

/// Follows a stream's end for all who read it, until it cannot.
async fn follow(
    store: Store,
    stream: StreamId,
    state: &Mutex<State>,
    readers: &Arc<List<()>>,
) -> StoreError {
    // Boxed, since there is a tail for each stream that is read, and this is over soon.
    let mut reading = match Box::pin(store.read(&stream, Start::Latest, true)).await {
        Ok(reading) => reading,
        Err(error) => return error,
    };
    let rounds = Rounds::default();
    let read = async {
        loop {
            match reading.recv().await {
                Some(Ok(Event::End)) | None => {
                    return StoreError::Unavailable("the store closed the tail".to_owned());
                }
                Some(Ok(event)) => {
                    if state.lock().take_in(event) {
                        rounds.wake(readers);
                    }
                }
                Some(Err(error)) => return error,
            }
        }
    };
    // What comes while a crowd is woken is merged for those of it who have not been yet.
    tokio::select! {
        biased;
        error = read => error,
        never = rounds.run() => match never {},
    }
}

/// A place in a stream, from which records are read in order, none left out and none twice. It holds
/// no records, however slow its client is.
#[derive(Debug)]
pub struct Reader {
    hub: Arc<Inner>,
    tail: Arc<Tail>,
    place: Place<()>,
    at: u64,
    /// Rings no later than it is to; kept, since that moves on with each batch.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Set while what comes next is only in the store.
    behind: Option<Behind>,
}

/// What a reader is given.
#[derive(Debug)]
pub enum Next {
    /// Records, of which those before this number are not for it.
    Batch(Arc<Batch>, u64),
    /// It has everything, and nothing came in time.
    Nothing(Position),
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tail.readers.leave(&self.place);
    }
}

impl Reader {
    /// The number of the next record, as soon as it is known where the stream's end is.
    async fn ready(&self) -> Result<u64, StoreError> {
        loop {
            let woken = self.place.woken();
            {
                let state = self.tail.state.lock();
                match &state.ended {
                    Some(error) => return Err(error.clone()),
                    None if state.ready => return Ok(state.next.seq_num),
                    None => {}
                }
            }
            woken.await;
        }
    }

    /// Where the stream's end is, and when the newest record came, if one has since somebody reads it.
    pub(super) fn tail(&self) -> (Position, Option<Instant>) {
        let state = self.tail.state.lock();
        (state.next, state.came)
    }

    /// The number of what it is given next.
    #[cfg(test)]
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Whether there is something that it has not been given.
    pub(super) fn lacks(&self) -> bool {
        self.at < self.tail.state.lock().next.seq_num
    }

    /// Waits for the end of its tail. Nothing else wakes it.
    pub(super) async fn fault(&self) -> StoreError {
        self.tail.over.cancelled().await;
        let ended = self.tail.state.lock().ended.clone();
        ended.unwrap_or_else(|| StoreError::Unavailable("the tail ended".to_owned()))
    }

    /// What comes next: at once if there is something, else waiting for it `until` then.
    ///
    /// An error is the end of this reader.
    pub async fn next(&mut self, until: Option<Instant>) -> Result<Next, StoreError> {
        loop {
            let woken = self.place.woken();
            let after = self.tail.state.lock().after(self.at);
            match after {
                After::Batch(batch) => {
                    self.behind = None;
                    let from = std::mem::replace(&mut self.at, batch.last() + 1);
                    return Ok(Next::Batch(batch, from));
                }
                After::Forgotten(known) => {
                    drop(woken);
                    // Boxed, so that who waits at the end takes no memory for it.
                    match Box::pin(self.page(known)).await? {
                        Page::Batch(batch) => {
                            let from = std::mem::replace(&mut self.at, batch.last() + 1);
                            return Ok(Next::Batch(batch, from));
                        }
                        Page::Nothing(known) => self.at = self.at.max(known),
                    }
                }
                After::Ended(error) => return Err(error),
                After::Nothing(tail) => {
                    self.behind = None;
                    let Some(until) = until else { return Ok(Next::Nothing(tail)) };
                    let alarm =
                        self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    if until < alarm.deadline() || alarm.is_elapsed() {
                        alarm.as_mut().reset(until);
                    }
                    tokio::select! {
                        biased;
                        () = woken => {}
                        () = alarm => if Instant::now() >= until {
                            return Ok(Next::Nothing(tail));
                        }
                    }
                }
            }
        }
    }

    /// What only the store has, when it is this reader's turn. The stream is known to have been written up
    /// to `known`.
    async fn page(&mut self, known: u64) -> Result<Page, StoreError> {
        let behind = self.behind.get_or_insert_with(|| self.tail.past.begin());
        let page = behind.page(&self.hub.store, self.at, known).await?;
        // After it was read, so that those who waited for the same page do not come all at once.
        self.hub.turns.turn(self.tail.stream.owner()).await;
        Ok(page)
    }
}
