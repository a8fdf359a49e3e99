//! The window: the recent changes, where each topic's lie in it, and the last state of their runs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, watch};

use super::body::Bodies;
use super::filter::Filter;
use super::image::Image;
use super::position::Position;
use super::settlement::Settlement;
use super::topic::Topic;
use super::untold::{RememberedTags, Untold};
use super::waiters::Waiters;
use crate::postgres::{Lsn, Snapshot};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;

/// What bounds the window. Whichever is reached first evicts the oldest transactions, and raises
/// the floor: clients that stand below it are told to start again.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a change is kept.
    pub age: Duration,
    /// How much memory the changes and their runs' last states may take, in bytes.
    pub bytes: usize,
    /// How much memory bodies may take, kept for sharing or on their way, in bytes. Beyond it no new
    /// one is made: requests that need one are told to come again.
    pub bodies: usize,
}

/// The recent changes and those who wait for the next. One writer, many readers.
#[derive(Debug)]
pub struct Feed {
    pub(super) state: RwLock<Window>,
    /// Held by who changes runs, from looking at them until they are changed.
    pub(super) writer: Mutex<()>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) head: watch::Sender<Lsn>,
    pub(super) limits: Limits,
    /// Memory that bodies take which hang on the window's runs, in bytes.
    pub(super) rendered: Arc<AtomicUsize>,
    pub(super) bodies: Arc<Bodies>,
    pub(super) tags: RememberedTags,
    /// There are runs again whose tags are to be read.
    pub(super) more_untold: Notify,
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
    postings: FxHashMap<Topic, VecDeque<u64>>,
    runs: HashMap<Arc<str>, Run>,
    /// The runs whose tags are to be read and that nobody has set out to read.
    pub untold: BTreeMap<u64, Untold>,
    /// The commit LSN of the newest untold change that has left the window.
    pub untold_evicted: Lsn,
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
    /// The run's first completion.
    pub completes: bool,
    /// A completion or an error, which nothing may hold back.
    pub urgent: bool,
    /// The run's tags were not known, and are not among the topics.
    pub untold: bool,
    /// When the run was created, as far as a list's floor can tell.
    pub created: Floor,
    /// Where the run was found before.
    pub before: Before,
    /// Those that it is found under, and those that it was found under before.
    pub topics: Box<[Topic]>,
}

/// Where a run was found before a change.
#[derive(Debug)]
pub(super) enum Before {
    /// There was no such row.
    Absent,
    /// The row before is not known.
    Unknown,
    /// Where it is found after it.
    SamePlaces,
    /// Under these topics.
    Elsewhere(Box<[Topic]>),
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
    /// The number of the change since which its tags are not known.
    untold_since: Option<u64>,
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
            writer: Mutex::default(),
            waiters: Arc::default(),
            head: watch::Sender::new(Lsn(0)),
            rendered: Arc::default(),
            bodies: Arc::new(Bodies::new(limits.bodies)),
            tags: RememberedTags::default(),
            more_untold: Notify::new(),
            limits,
        })
    }

    /// Everything that committed before this has been seen.
    pub fn head(&self) -> Lsn {
        *self.head.borrow()
    }

    /// The topic under which the fewest of the changes lie that may concern a feed: one wait there
    /// is woken for as little else as possible.
    pub(super) fn quietest(&self, filter: &Filter) -> Topic {
        let state = self.state.read();
        let changes = |topic: &&Topic| state.postings.get(topic).map_or(0, VecDeque::len);
        *filter.topics().iter().min_by_key(changes).unwrap_or(&filter.topics()[0])
    }

    /// Takes note of a finished query, and forgets what has grown too old. To be called about once
    /// a second. Returns below which commit LSN all transactions have been shown by a query, so
    /// that the slot may forget them.
    pub fn settle(&self, snapshot: Snapshot) -> Lsn {
        let mut state = self.state.write();
        state.settlement.settle(snapshot);
        state.evict(&self.limits, &self.rendered, &self.waiters, Instant::now());
        let bytes = state.bytes + self.rendered.load(Ordering::Relaxed);
        metrics::gauge!(crate::telemetry::WINDOW_BYTES).set(bytes as f64);
        metrics::gauge!(crate::telemetry::UNTOLD_RUNS).set(state.untold.len() as f64);
        metrics::gauge!(crate::telemetry::TAG_BYTES).set(self.tags.bytes() as f64);
        metrics::gauge!(crate::telemetry::BODY_BYTES).set(self.bodies.alive() as f64);
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
        self.untold.clear();
        self.bytes = 0;
    }

    /// Takes in a transaction whole, and moves the head past it.
    pub fn append(
        &mut self,
        batch: Batch,
        limits: &Limits,
        rendered: &AtomicUsize,
        waiters: &Waiters,
        now: Instant,
    ) {
        self.transactions.push_back(Transaction {
            commit_lsn: batch.commit_lsn,
            end_lsn: batch.end_lsn,
            arrived: now,
            changes: batch.changes.len(),
        });
        self.settlement.committed(batch.xid, batch.commit_lsn);
        for (record, state) in batch.changes {
            let number = self.first + self.changes.len() as u64;
            self.keep_run(&record.run, state, number);
            for topic in &record.topics {
                self.postings.entry(*topic).or_default().push_back(number);
            }
            self.bytes += record.size();
            self.changes.push_back(record);
        }
        self.head = self.head.max(batch.end_lsn);
        self.evict(limits, rendered, waiters, now);
    }

    fn keep_run(&mut self, id: &Arc<str>, state: RunState, number: u64) {
        let (image, deleted) = match state {
            RunState::Is(image) => (image, false),
            RunState::Deleted(image) => (image, true),
        };
        let environment = image.text(Column::RuntimeEnvironmentId);
        let environment = environment.filter(|_| !deleted && image.lacks_tags()).map(Arc::from);
        self.bytes += image.size();
        let run = match self.runs.get_mut(id) {
            Some(run) => {
                self.bytes -= run.image.size();
                (run.image, run.deleted) = (image, deleted);
                run.changes += 1;
                run
            }
            None => self.runs.entry(Arc::clone(id)).or_insert(Run {
                image,
                deleted,
                changes: 1,
                untold_since: None,
            }),
        };
        match (environment, run.untold_since) {
            (Some(environment), None) => {
                run.untold_since = Some(number);
                let untold = Untold { run: Arc::clone(id), environment, since: number };
                self.untold.insert(number, untold);
            }
            (None, Some(since)) => {
                run.untold_since = None;
                self.untold.remove(&since);
            }
            _ => {}
        }
    }

    /// The number of the change since which the tags of the run are not known.
    pub fn untold_since(&self, id: &str) -> Option<u64> {
        self.runs.get(id)?.untold_since
    }

    /// Puts a state of the run in place of its last, which tells more and is the same otherwise.
    pub fn replace(&mut self, id: &str, image: Arc<Image>) {
        let Some(run) = self.runs.get_mut(id) else { return };
        self.bytes += image.size();
        self.bytes -= run.image.size();
        (run.image, run.untold_since) = (image, None);
    }

    /// `rendered` is what the bodies take that hang on the window's runs. They may be in use for
    /// longer than their run is held, and so they never cost more than half of the window.
    pub fn evict(
        &mut self,
        limits: &Limits,
        rendered: &AtomicUsize,
        waiters: &Waiters,
        now: Instant,
    ) {
        while let Some(oldest) = self.transactions.front() {
            let expired = now.saturating_duration_since(oldest.arrived) > limits.age;
            let rendered = rendered.load(Ordering::Relaxed).min(limits.bytes / 2);
            if self.bytes + rendered <= limits.bytes && !expired {
                break;
            }
            self.evict_oldest(waiters);
        }
    }

    fn evict_oldest(&mut self, waiters: &Waiters) {
        let Some(oldest) = self.transactions.pop_front() else { return };
        let mut records: Vec<Record> = self.changes.drain(..oldest.changes).collect();
        self.first += oldest.changes as u64;
        for record in &records {
            self.bytes -= record.size();
            for topic in &record.topics {
                self.drop_first_posting(*topic);
                waiters.lost(*topic, oldest.commit_lsn);
            }
            if record.untold {
                self.untold_evicted = oldest.commit_lsn;
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
            if let Some(since) = run.untold_since {
                self.untold.remove(&since);
            }
            self.runs.remove(id);
        }
    }

    /// The id as it is kept here.
    pub fn id(&self, id: &str) -> Option<Arc<str>> {
        self.runs.get_key_value(id).map(|(id, _)| Arc::clone(id))
    }

    /// The last state of the run of this internal id, unless it was deleted.
    pub fn image(&self, id: &str) -> Option<&Arc<Image>> {
        self.runs.get(id).filter(|run| !run.deleted).map(|run| &run.image)
    }

    /// The last state of the run of this internal id, and whether it was deleted since.
    pub fn state(&self, id: &str) -> Option<(&Arc<Image>, bool)> {
        self.runs.get(id).map(|run| (&run.image, run.deleted))
    }

    /// The last state of the one run that a feed is of, and whether it was deleted since.
    pub fn last_state(&self, run: &Filter) -> Option<(&Arc<Image>, bool)> {
        let newest = self.rarest(run.topics())?.back()?;
        let found = self.state(&self.record(*newest).run)?;
        run.matches(found.0).then_some(found)
    }

    /// The newest change that is found under these topics.
    pub fn newest(&self, topics: &[Topic]) -> Option<&Record> {
        self.rarest(topics)?.back().map(|number| self.record(*number))
    }

    /// Where the changes lie that are found under this.
    pub fn posting(&self, topic: Topic) -> Option<&VecDeque<u64>> {
        self.postings.get(&topic)
    }

    /// Where the changes lie that are found under all of these: in the shortest of their lists.
    pub fn rarest(&self, topics: &[Topic]) -> Option<&VecDeque<u64>> {
        let mut rarest: Option<&VecDeque<u64>> = None;
        for topic in topics {
            let posting = self.postings.get(topic)?;
            if rarest.is_none_or(|rarest| posting.len() < rarest.len()) {
                rarest = Some(posting);
            }
        }
        rarest
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let nothing = self.changes.is_empty() && self.transactions.is_empty();
        let nobody = self.runs.is_empty() && self.untold.is_empty();
        nothing && nobody && self.postings.is_empty() && self.bytes == 0
    }

    pub fn record(&self, number: u64) -> &Record {
        &self.changes[(number - self.first) as usize]
    }
}

impl Record {
    fn size(&self) -> usize {
        // The id is counted with each record: it is shared, but small.
        size_of::<Record>() + 3 * size_of_val(&*self.topics) + self.run.len()
    }
}
