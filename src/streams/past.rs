//! What of a stream is only in the store, read once for all who need it at about the same time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::batch::Batch;
use super::recent::Recent;
use super::store::{Event, Reading, Start, Store, StoreError, StreamId};
use crate::telemetry;

/// Pages of one stream, in bytes.
const PAGES: usize = 16 << 20;

/// The pages of a stream: batches as the store gave them. What has been written does not change, so they
/// are good for as long as the stream's tail lives; they are kept while somebody is behind.
#[derive(Debug)]
pub(super) struct Past {
    stream: StreamId,
    state: Mutex<State>,
    all: Arc<Recent>,
}

#[derive(Debug, Default)]
struct State {
    /// By the number that was asked for. Nothing is left out between that and a page's last record.
    pages: BTreeMap<u64, Arc<Batch>>,
    /// The same numbers, oldest page first.
    ages: VecDeque<u64>,
    bytes: usize,
    /// Pages that are being read.
    flights: HashMap<u64, Flight>,
    /// Reads of the store that can be gone on with, by what they show next; the last used one last.
    cursors: VecDeque<(u64, Reading)>,
    /// How many are behind.
    readers: usize,
}

type Landed = Option<Result<Page, StoreError>>;

/// A page that is being read for all who wait for it, by nobody of them: one that is not looked after any
/// more keeps no other waiting.
#[derive(Debug)]
struct Flight {
    landed: watch::Receiver<Landed>,
    _task: AbortOnDropHandle<()>,
}

/// What is at a place of a stream.
#[derive(Clone, Debug)]
pub(super) enum Page {
    /// Records.
    Batch(Arc<Batch>),
    /// Nothing before this number: it was trimmed.
    Nothing(u64),
}

/// Somebody who is behind.
#[derive(Debug)]
pub(super) struct Behind(Arc<Past>);

impl Past {
    /// That of a stream, whose pages count among these bytes.
    pub fn new(stream: StreamId, all: Arc<Recent>) -> Arc<Past> {
        Arc::new(Past { stream, state: Mutex::default(), all })
    }

    /// One more is behind.
    pub fn begin(self: &Arc<Past>) -> Behind {
        metrics::counter!(telemetry::STREAM_CATCH_UPS).increment(1);
        self.state.lock().readers += 1;
        Behind(Arc::clone(self))
    }

    /// Reads a page for all who wait for it.
    async fn fly(self: Arc<Past>, store: Store, at: u64, known: u64, tell: watch::Sender<Landed>) {
        let page = self.read(&store, at, known).await;
        let mut state = self.state.lock();
        if let Ok(Page::Batch(batch)) = &page {
            self.keep(&mut state, at, batch);
        }
        tell.send_replace(Some(page));
        let _flight = state.land(at, &tell.subscribe());
    }

    /// Reads a page, and goes on with an earlier read if there is one at this place.
    async fn read(&self, store: &Store, at: u64, known: u64) -> Result<Page, StoreError> {
        let cursor = self.state.lock().take_cursor(at);
        // One that has lain for long may have broken off, which is nothing to those who came later.
        if let Some(mut cursor) = cursor
            && let Ok(Some(batch)) = next(&mut cursor, at).await
        {
            return Ok(self.took(cursor, batch));
        }
        // An earlier read's end says nothing about what came since.
        let mut cursor = store.read(&self.stream, Start::At(at), false).await?;
        match next(&mut cursor, at).await? {
            Some(batch) => Ok(self.took(cursor, batch)),
            None => Ok(Page::Nothing(known)),
        }
    }

    fn took(&self, cursor: Reading, batch: Arc<Batch>) -> Page {
        metrics::counter!(telemetry::STREAM_PAGES_READ).increment(1);
        let mut state = self.state.lock();
        state.cursors.push_back((batch.last() + 1, cursor));
        while state.cursors.len() > state.readers {
            state.cursors.pop_front();
        }
        Page::Batch(batch)
    }

    /// Keeps a page for others, if there is room and somebody who may want it.
    fn keep(&self, state: &mut State, at: u64, batch: &Arc<Batch>) {
        let size = batch.size();
        if state.readers < 2 || size > PAGES || state.pages.contains_key(&at) {
            return;
        }
        while state.bytes + size > PAGES || !self.all.has_room(size) {
            if !self.forget_oldest(state) {
                return;
            }
        }
        state.pages.insert(at, Arc::clone(batch));
        state.ages.push_back(at);
        state.bytes += size;
        self.all.add(size);
    }

    fn forget_oldest(&self, state: &mut State) -> bool {
        let Some(page) = state.ages.pop_front().and_then(|at| state.pages.remove(&at)) else {
            return false;
        };
        state.bytes -= page.size();
        self.all.take(page.size());
        true
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        self.all.take(self.state.get_mut().bytes);
    }
}

impl State {
    fn page(&self, at: u64) -> Option<Arc<Batch>> {
        let (_, page) = self.pages.range(..=at).next_back()?;
        (page.last() >= at).then(|| Arc::clone(page))
    }

    /// Removes this flight, and none that has taken its place.
    fn land(&mut self, at: u64, landed: &watch::Receiver<Landed>) -> Option<Flight> {
        let same = |flight: &&Flight| flight.landed.same_channel(landed);
        self.flights.get(&at).filter(same)?;
        self.flights.remove(&at)
    }

    fn take_cursor(&mut self, at: u64) -> Option<Reading> {
        let found = self.cursors.iter().position(|(next, _)| *next == at)?;
        self.cursors.remove(found).map(|(_, cursor)| cursor)
    }
}

impl Behind {
    /// What is at this place. The stream is known to have been written up to `known`.
    pub async fn page(&self, store: &Store, at: u64, known: u64) -> Result<Page, StoreError> {
        let mut landed = {
            let mut state = self.0.state.lock();
            if let Some(page) = state.page(at) {
                return Ok(Page::Batch(page));
            }
            let flight = state.flights.entry(at).or_insert_with(|| {
                let (tell, landed) = watch::channel(None);
                let fly = Arc::clone(&self.0).fly(store.clone(), at, known, tell);
                Flight { landed, _task: AbortOnDropHandle::new(tokio::spawn(fly)) }
            });
            flight.landed.clone()
        };
        if let Ok(landed) = landed.wait_for(Option::is_some).await
            && let Some(page) = &*landed
        {
            return page.clone();
        }
        let _flight = self.0.state.lock().land(at, &landed);
        Err(StoreError::Unavailable("a read of the store broke off".to_owned()))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.readers -= 1;
        if state.readers == 0 {
            state.flights.clear();
            state.cursors.clear();
            while self.0.forget_oldest(&mut state) {}
        }
    }
}

/// The next batch of a read that has something from this number on; `None` if the read has come to its
/// end without one. One that merely broke off has shown nothing of what it did not come to.
async fn next(reading: &mut Reading, at: u64) -> Result<Option<Arc<Batch>>, StoreError> {
    while let Some(event) = reading.recv().await {
        match event? {
            Event::Batch(batch) if batch.last() >= at => return Ok(Some(batch)),
            Event::End => return Ok(None),
            Event::Batch(_) | Event::Tail(_) => {}
        }
    }
    Err(StoreError::Unavailable("a read of the store broke off".to_owned()))
}
