//! One tail per stream, however many read it. What is recent is kept as it is sent; whoever is behind
//! that reads the store at their own pace, and joins the tail where the two meet.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::batch::Batch;
use super::past::{Behind, Page, Past};
use super::store::{Event, Position, Start, Store, StoreError, StreamId};
use super::turns::Turns;
use crate::telemetry;

/// Recent records of one stream, in bytes.
const RECENT: usize = 1 << 20;
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

/// The recent records of all streams, in bytes, and the pages of those who are behind.
pub(super) struct Recent {
    used: AtomicUsize,
    limit: usize,
    shown: Gauge,
}

impl Recent {
    /// Gives what all take now.
    pub fn add(&self, bytes: usize) -> usize {
        self.shown.increment(bytes as f64);
        self.used.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    pub fn take(&self, bytes: usize) -> usize {
        self.shown.decrement(bytes as f64);
        self.used.fetch_sub(bytes, Ordering::Relaxed) - bytes
    }

    /// Whether there is room for a page. The other half is left to what is recent.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed) + bytes <= self.limit / 2
    }
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {} bytes", self.used, self.limit)
    }
}

#[derive(Debug)]
struct Tail {
    stream: StreamId,
    hub: Weak<Inner>,
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<()>,
    /// What only the store has.
    past: Arc<Past>,
    /// Is told once it has ended.
    over: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Batches without a gap between them, up to `next`.
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    all: Arc<Recent>,
    /// The next record's number, and when the last one was taken in.
    next: Position,
    /// When the newest came here, if any has.
    came: Option<Instant>,
    /// Whether the stream's end has been found.
    ready: bool,
    ended: Option<StoreError>,
}

impl State {
    fn push(&mut self, batch: Arc<Batch>) {
        let size = batch.size();
        self.bytes += size;
        let mut all = self.all.add(size);
        self.batches.push_back(batch);
        // The newest stays in any case: those who wait for it need not read the store.
        while self.batches.len() > 1 && (self.bytes > RECENT || all > self.all.limit) {
            let Some(oldest) = self.batches.pop_front() else { break };
            let size = oldest.size();
            self.bytes -= size;
            all = self.all.take(size);
        }
    }

    fn after(&self, at: u64) -> After {
        if let Some(error) = &self.ended {
            return After::Ended(error.clone());
        }
        if at >= self.next.seq_num {
            return After::Nothing(self.next);
        }
        let found = self.batches.partition_point(|batch| batch.last() < at);
        match self.batches.get(found) {
            Some(batch) if found > 0 || batch.first() <= at => After::Batch(Arc::clone(batch)),
            _ => After::Forgotten(self.next.seq_num),
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.all.take(self.bytes);
    }
}

enum After {
    Batch(Arc<Batch>),
    /// The reader has everything.
    Nothing(Position),
    /// What comes next is only in the store, which shows everything before this number.
    Forgotten(u64),
    Ended(StoreError),
}

impl Hub {
    /// A hub on this store, which keeps at most so many bytes of recent records.
    pub fn new(store: Store, recent: usize) -> Hub {
        let shown = metrics::gauge!(telemetry::STREAM_RECENT_BYTES);
        let recent = Arc::new(Recent { used: AtomicUsize::new(0), limit: recent, shown });
        Hub(Arc::new(Inner { store, tails: Mutex::default(), recent, turns: Turns::default() }))
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Begins to read a stream.
    pub async fn read(&self, stream: StreamId, start: Start) -> Result<Reader, StoreError> {
        let tail = self.tail(stream);
        let mut changed = tail.changed.clone();
        let found = tokio::time::timeout(OPEN, async {
            loop {
                changed.borrow_and_update();
                {
                    let state = tail.state.lock();
                    match &state.ended {
                        Some(error) => return Err(error.clone()),
                        None if state.ready => return Ok(state.next.seq_num),
                        None => {}
                    }
                }
                if changed.changed().await.is_err() {
                    return Err(StoreError::Unavailable("the tail ended".to_owned()));
                }
            }
        });
        let late =
            |_| StoreError::Unavailable("it did not find the stream's end in time".to_owned());
        let next = found.await.map_err(late)??;
        let at = match start {
            Start::At(seq_num) => seq_num.min(next),
            Start::Latest => next,
        };
        Ok(Reader { hub: Arc::clone(&self.0), tail, changed, at, behind: None })
    }

    /// The recent records that are kept, in bytes.
    #[cfg(test)]
    pub(super) fn recent(&self) -> usize {
        self.0.recent.used.load(Ordering::Relaxed)
    }

    /// The streams that somebody reads.
    #[cfg(test)]
    pub(super) fn tails(&self) -> usize {
        self.0.tails.lock().len()
    }

    fn tail(&self, stream: StreamId) -> Arc<Tail> {
        let mut tails = self.0.tails.lock();
        let living = tails.get(&stream).and_then(Weak::upgrade);
        if let Some(tail) = living.filter(|tail| tail.state.lock().ended.is_none()) {
            return tail;
        }
        let (notify, changed) = watch::channel(());
        let state = Arc::new(Mutex::new(State {
            batches: VecDeque::new(),
            bytes: 0,
            all: Arc::clone(&self.0.recent),
            next: Position::default(),
            came: None,
            ready: false,
            ended: None,
        }));
        let over = CancellationToken::new();
        let follow = follow(self.0.store.clone(), stream.clone(), Arc::clone(&state), notify);
        let end = over.clone().drop_guard();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            follow.await;
            drop(end);
        }));
        let hub = Arc::downgrade(&self.0);
        let past = Past::new(stream.clone(), Arc::clone(&self.0.recent));
        let tail =
            Arc::new(Tail { stream: stream.clone(), hub, state, changed, past, over, _task: task });
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

/// Follows a stream's end for all who read it.
async fn follow(
    store: Store,
    stream: StreamId,
    state: Arc<Mutex<State>>,
    notify: watch::Sender<()>,
) {
    let error = match store.read(&stream, Start::Latest, true).await {
        Ok(mut reading) => loop {
            match reading.recv().await {
                Some(Ok(Event::Batch(batch))) => {
                    let mut state = state.lock();
                    state.next.seq_num = batch.last() + 1;
                    state.next.timestamp = batch.last_timestamp();
                    state.came = Some(Instant::now());
                    state.push(batch);
                }
                Some(Ok(Event::Tail(tail))) => {
                    let mut state = state.lock();
                    let news = !state.ready || state.next.seq_num < tail.seq_num;
                    if state.next.seq_num < tail.seq_num {
                        // Nothing before it may be joined to what comes.
                        let forgotten: usize =
                            state.batches.drain(..).map(|each| each.size()).sum();
                        state.bytes -= forgotten;
                        state.all.take(forgotten);
                    }
                    state.next = tail;
                    state.ready = true;
                    if !news {
                        continue;
                    }
                }
                Some(Err(error)) => break error,
                None => break StoreError::Unavailable("the store closed the tail".to_owned()),
            }
            notify.send_replace(());
        },
        Err(error) => error,
    };
    state.lock().ended = Some(error);
    notify.send_replace(());
}

/// A place in a stream, from which records are read in order, none left out and none twice. It holds
/// no records, however slow its client is.
#[derive(Debug)]
pub struct Reader {
    hub: Arc<Inner>,
    tail: Arc<Tail>,
    changed: watch::Receiver<()>,
    at: u64,
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

impl Reader {
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
            self.changed.borrow_and_update();
            let after = self.tail.state.lock().after(self.at);
            match after {
                After::Batch(batch) => {
                    self.behind = None;
                    let from = std::mem::replace(&mut self.at, batch.last() + 1);
                    return Ok(Next::Batch(batch, from));
                }
                After::Forgotten(known) => {
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
                    tokio::select! {
                        changed = self.changed.changed() => if changed.is_err() {
                            return Err(StoreError::Unavailable("the tail ended".to_owned()));
                        },
                        () = tokio::time::sleep_until(until) => return Ok(Next::Nothing(tail)),
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
