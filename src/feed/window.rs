//! The window: the recent changes, where each topic's lie in it, and the last state of their runs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::handle::Horizon;
use super::image::Image;
use super::position::Position;
use super::settlement::Settlement;
use super::topic::{Topic, Topics};
use super::waiters::Waiters;
use crate::postgres::{Lsn, Snapshot};
use crate::runs::columns::{Column, ColumnSet};

/// What bounds the window. Whichever is reached first evicts the oldest transactions, and raises
/// the floor: clients that stand below it are told to start again.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a change is kept.
    pub age: Duration,
    /// How much memory the changes and their runs' last states may take, in bytes.
    pub bytes: usize,
}

/// The recent changes and those who wait for the next. One writer, many readers.
#[derive(Debug)]
pub struct Feed {
    pub(super) state: RwLock<Window>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) head: watch::Sender<Lsn>,
    pub(super) topics: Topics,
    pub(super) limits: Limits,
}

/// One version of what the window holds. Everything read under one lock belongs together.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The database's history; `None` until the stream has begun.
    pub epoch: Option<u64>,
    /// Everything that committed at or after this is held.
    pub floor: Lsn,
    /// Everything that committed before this has been seen.
    pub head: Lsn,
    /// Where the server's log ended when the stream was last connected anew. The server may have
    /// crashed just before, so horizons that are older are void, on whichever node they were made.
    pub resumed_at: Lsn,
    /// How often it was. What a query saw before does not belong to what the window holds after.
    pub connections: u64,
    /// How often everything was forgotten at once.
    pub generation: u64,
    changes: VecDeque<Record>,
    /// The number of the first of `changes`; they are numbered as they come.
    first: u64,
    transactions: VecDeque<Transaction>,
    postings: HashMap<Topic, VecDeque<u64>>,
    runs: HashMap<Arc<str>, Run>,
    pub settlement: Settlement,
    bytes: usize,
}

/// A change of one run.
#[derive(Debug)]
pub(super) struct Record {
    pub at: Position,
    pub xid: u32,
    pub commit_time: i64,
    pub run: Arc<str>,
    /// The exposed columns that may differ from the version before.
    pub changed: ColumnSet,
    /// The row began here.
    pub inserted: bool,
    pub topics: Box<[Topic]>,
}

#[derive(Debug)]
struct Transaction {
    commit_lsn: Lsn,
    end_lsn: Lsn,
    arrived: Instant,
    changes: usize,
}

#[derive(Debug)]
struct Run {
    image: Arc<Image>,
    deleted: bool,
    /// How many of the window's changes are of this run.
    changes: usize,
}

/// What is new for one run.
#[derive(Debug)]
pub(super) struct News {
    pub image: Arc<Image>,
    /// The exposed columns that may differ from what the client has.
    pub changed: ColumnSet,
    pub deleted: bool,
    /// The row began anew, so that the client's copy is of another.
    pub inserted: bool,
    /// When the newest of the changes committed, in microseconds since 1970.
    pub commit_time: i64,
}

/// A transaction ready to be taken in.
#[derive(Debug)]
pub(super) struct Batch {
    pub xid: u32,
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub changes: Vec<(Record, RunState)>,
}

/// What a change leaves of its run.
#[derive(Debug)]
pub(super) enum RunState {
    Is(Arc<Image>),
    Deleted(Arc<Image>),
}

impl Feed {
    /// An empty window that waits for its stream.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Feed {
            state: RwLock::default(),
            waiters: Arc::default(),
            head: watch::Sender::new(Lsn(0)),
            topics: Topics::default(),
            limits,
        })
    }

    /// Everything that committed before this has been seen.
    pub fn head(&self) -> Lsn {
        *self.head.borrow()
    }

    /// Takes note of a finished query, and forgets what has grown too old. To be called about once
    /// a second. Returns below which commit LSN all transactions have been shown by a query, so
    /// that the slot may forget them.
    pub fn settle(&self, snapshot: Snapshot) -> Lsn {
        let mut state = self.state.write();
        state.settlement.settle(snapshot);
        state.evict(&self.limits, Instant::now());
        metrics::gauge!(crate::telemetry::WINDOW_BYTES).set(state.bytes as f64);
        metrics::gauge!(crate::telemetry::WINDOW_CHANGES).set(state.changes.len() as f64);
        metrics::gauge!(crate::telemetry::WAITED_TOPICS).set(self.waiters.len() as f64);
        state.settlement.settled_below(state.head)
    }
}

impl Window {
    /// Forgets everything and goes on from `floor`.
    pub fn restart(&mut self, epoch: u64, floor: Lsn) {
        self.clear();
        (self.epoch, self.floor, self.head) = (Some(epoch), floor, floor);
    }

    /// Forgets all changes up to `end`, of whatever runs.
    pub fn skip_to(&mut self, end: Lsn) {
        self.clear();
        self.floor = self.floor.max(end);
        self.head = self.head.max(end);
    }

    fn clear(&mut self) {
        self.generation += 1;
        self.first += self.changes.len() as u64;
        self.changes.clear();
        self.transactions.clear();
        self.postings.clear();
        self.runs.clear();
        self.bytes = 0;
    }

    /// Takes in a transaction whole, and moves the head past it.
    pub fn append(&mut self, batch: Batch, limits: &Limits, now: Instant) {
        self.transactions.push_back(Transaction {
            commit_lsn: batch.commit_lsn,
            end_lsn: batch.end_lsn,
            arrived: now,
            changes: batch.changes.len(),
        });
        self.settlement.committed(batch.xid, batch.commit_lsn);
        for (record, state) in batch.changes {
            self.keep_run(&record.run, state);
            let number = self.first + self.changes.len() as u64;
            for topic in &record.topics {
                self.postings.entry(*topic).or_default().push_back(number);
            }
            self.bytes += record.size();
            self.changes.push_back(record);
        }
        self.head = self.head.max(batch.end_lsn);
        self.evict(limits, now);
    }

    fn keep_run(&mut self, id: &Arc<str>, state: RunState) {
        let (image, deleted) = match state {
            RunState::Is(image) => (image, false),
            RunState::Deleted(image) => (image, true),
        };
        self.bytes += image.size();
        if let Some(run) = self.runs.get_mut(id) {
            self.bytes -= run.image.size();
            (run.image, run.deleted) = (image, deleted);
            run.changes += 1;
        } else {
            self.runs.insert(Arc::clone(id), Run { image, deleted, changes: 1 });
        }
    }

    pub fn evict(&mut self, limits: &Limits, now: Instant) {
        while let Some(oldest) = self.transactions.front() {
            let expired = now.saturating_duration_since(oldest.arrived) > limits.age;
            if self.bytes <= limits.bytes && !expired {
                break;
            }
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        let Some(oldest) = self.transactions.pop_front() else { return };
        let mut records: Vec<Record> = self.changes.drain(..oldest.changes).collect();
        self.first += oldest.changes as u64;
        for record in &records {
            self.bytes -= record.size();
            for topic in &record.topics {
                self.drop_first_posting(*topic);
            }
            self.release_run(&record.run);
        }
        self.floor = self.floor.max(oldest.end_lsn);
        self.settlement.forget(oldest.commit_lsn, || {
            records.drain(..).flat_map(|record| record.topics).collect()
        });
    }

    fn drop_first_posting(&mut self, topic: Topic) {
        if let Some(posting) = self.postings.get_mut(&topic) {
            posting.pop_front();
            if posting.is_empty() {
                self.postings.remove(&topic);
            }
        }
    }

    fn release_run(&mut self, id: &Arc<str>) {
        let Some(run) = self.runs.get_mut(id) else { return };
        run.changes -= 1;
        if run.changes == 0 {
            self.bytes -= run.image.size();
            self.runs.remove(id);
        }
    }

    /// The last state of the run of this internal id, unless it was deleted.
    pub fn image(&self, id: &str) -> Option<&Arc<Image>> {
        self.runs.get(id).filter(|run| !run.deleted).map(|run| &run.image)
    }

    /// The last state of a run by its topic and friendly id, and whether it was deleted since.
    pub fn last_state(&self, run: &RunTopic) -> Option<(&Arc<Image>, bool)> {
        let newest = self.postings.get(&run.topic)?.back()?;
        let found = self.runs.get(&self.record(*newest).run)?;
        run.is_of(&found.image).then_some((&found.image, found.deleted))
    }

    /// What happened to a run after a position, but for what the horizon shows. The cost is that of
    /// a binary search in the run's own changes.
    pub fn news(&self, run: &RunTopic, after: Position, horizon: Option<&Horizon>) -> Option<News> {
        let posting = self.postings.get(&run.topic)?;
        let start = posting.partition_point(|number| self.record(*number).at <= after);
        let mut changed = ColumnSet::EMPTY;
        let mut inserted = false;
        let mut newest = None;
        for number in posting.range(start..) {
            let record = self.record(*number);
            if horizon.is_some_and(|horizon| horizon.shows(record.xid, record.at.lsn)) {
                continue;
            }
            changed = changed.union(record.changed);
            inserted |= record.inserted;
            newest = Some(record);
        }
        let newest = newest?;
        let found = self.runs.get(&newest.run)?;
        run.is_of(&found.image).then(|| News {
            image: Arc::clone(&found.image),
            changed,
            deleted: found.deleted,
            inserted,
            commit_time: newest.commit_time,
        })
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let nothing = self.changes.is_empty() && self.transactions.is_empty();
        nothing && self.postings.is_empty() && self.runs.is_empty() && self.bytes == 0
    }

    fn record(&self, number: u64) -> &Record {
        &self.changes[(number - self.first) as usize]
    }
}

impl Record {
    fn size(&self) -> usize {
        // The id is counted with each record: it is shared, but small.
        size_of::<Record>() + 2 * size_of_val(&*self.topics) + self.run.len()
    }
}

/// A run as the window finds it.
#[derive(Clone, Debug)]
pub(super) struct RunTopic {
    pub topic: Topic,
    pub environment: Arc<str>,
    pub friendly_id: Arc<str>,
}

impl RunTopic {
    /// Topics are numbers that may collide, so the row itself decides.
    fn is_of(&self, image: &Image) -> bool {
        image.text(Column::FriendlyId) == Some(&self.friendly_id)
            && image.text(Column::RuntimeEnvironmentId) == Some(&self.environment)
    }
}
