//! From the stream into the window: what each change did to which run, and whom to wake.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::image::{Image, differing};
use super::position::Position;
use super::topic::Topic;
use super::window::{Batch, Feed, Record, RunState};
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Reset, Tx};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::text::elements;
use crate::runs::tuple::{Cell, Tuple};

impl Feed {
    /// Takes in the next step of the stream. To be called by one thread, in the stream's order.
    pub fn apply(&self, event: Event) {
        match event {
            Event::Tx(tx) => self.apply_transaction(tx),
            Event::Progress(lsn) => self.advance(lsn),
            Event::Reset(reset) => self.restart(reset),
            Event::Resumed { server } => {
                let mut state = self.state.write();
                state.resumed_at = state.head.max(server);
                state.connections += 1;
                state.settlement.reconnected();
            }
        }
    }

    fn restart(&self, reset: Reset) {
        metrics::counter!(crate::telemetry::RESETS).increment(1);
        let mut state = self.state.write();
        state.restart(reset.epoch, reset.floor);
        state.resumed_at = reset.floor.max(reset.server);
        state.connections += 1;
        state.settlement.restart(reset.past);
        drop(state);
        self.head.send_replace(reset.floor);
        self.waiters.wake_all();
    }

    fn advance(&self, lsn: Lsn) {
        let mut state = self.state.write();
        if lsn <= state.head {
            return;
        }
        state.head = lsn;
        drop(state);
        self.head.send_replace(lsn);
    }

    fn apply_transaction(&self, tx: Tx) {
        metrics::counter!(crate::telemetry::CHANGES).increment(tx.changes.len() as u64);
        let everything =
            |change: &Change| matches!(change, Change::RunsTruncated | Change::TooLarge);
        if tx.changes.iter().any(everything) {
            let mut state = self.state.write();
            state.skip_to(tx.end_lsn);
            state.settlement.forget_all(tx.xid, tx.commit_lsn);
            drop(state);
            self.head.send_replace(tx.end_lsn);
            self.waiters.wake_all();
            return;
        }
        let end = tx.end_lsn;
        let batch = self.prepare(tx);
        if batch.changes.is_empty() {
            return self.advance(end);
        }
        let topics = touched(&batch);
        self.state.write().append(batch, &self.limits, Instant::now());
        self.head.send_replace(end);
        for topic in topics {
            self.waiters.wake(topic);
        }
    }

    /// Copies and compares outside of the writer's lock: this is the only writer, so nothing changes meanwhile.
    fn prepare(&self, tx: Tx) -> Batch {
        let state = self.state.read();
        let mut batch = Batch {
            xid: tx.xid,
            commit_lsn: tx.commit_lsn,
            end_lsn: tx.end_lsn,
            changes: Vec::with_capacity(tx.changes.len()),
        };
        // The runs as this transaction has left them so far; `None` for a deleted one.
        let mut within: HashMap<Arc<str>, Option<Arc<Image>>> = HashMap::new();
        let single = tx.changes.len() == 1;
        for change in tx.changes {
            let id = match &change {
                Change::RunInserted(new) | Change::RunUpdated { new, .. } => new.text(Column::Id),
                Change::RunDeleted(id) => Some(id.as_str()),
                Change::RunsTruncated | Change::TooLarge | Change::KeysChanged => None,
            };
            let Some(id) = id else { continue };
            let before = match within.get(id) {
                Some(known) => known.clone(),
                None => state.image(id).cloned(),
            };
            let id: Arc<str> = id.into();
            let Some((left, changed, inserted)) = difference(change, before.as_ref()) else {
                continue;
            };
            let image = match &left {
                RunState::Is(image) | RunState::Deleted(image) => image,
            };
            if !single {
                let known = matches!(left, RunState::Is(_)).then(|| Arc::clone(image));
                within.insert(Arc::clone(&id), known);
            }
            let index = batch.changes.len() as u32 + 1;
            let record = Record {
                at: Position { lsn: tx.commit_lsn, index },
                xid: tx.xid,
                commit_time: tx.commit_time,
                topics: self.topics_of(image, before.as_deref()),
                run: id,
                changed,
                inserted,
            };
            batch.changes.push((record, left));
        }
        drop(state);
        batch
    }

    /// Where the change can be found: under all that the run belongs to, or belonged to before.
    fn topics_of(&self, image: &Image, before: Option<&Image>) -> Box<[Topic]> {
        let mut topics = Vec::with_capacity(8);
        for image in before.into_iter().chain([image]) {
            let Some(environment) = image.text(Column::RuntimeEnvironmentId) else { continue };
            topics.push(self.topics.environment(environment));
            if let Some(friendly_id) = image.text(Column::FriendlyId) {
                topics.push(self.topics.run(environment, friendly_id));
            }
            if let Some(batch) = image.text(Column::BatchId) {
                topics.push(self.topics.batch(environment, batch));
            }
            let tags = image.text(Column::RunTags).map(elements).unwrap_or_default();
            topics.extend(tags.iter().map(|tag| self.topics.tag(environment, tag)));
            if before.is_some_and(|before| same_places(|column| before.get(column), image)) {
                break;
            }
        }
        topics.sort_unstable();
        topics.dedup();
        topics.into()
    }
}

/// Whether a run is found under the same topics as before.
fn same_places<'a>(before: impl Fn(Column) -> Cell<'a>, image: &Image) -> bool {
    use Column::*;
    [RuntimeEnvironmentId, FriendlyId, BatchId, RunTags].iter().all(|c| before(*c) == image.get(*c))
}

fn touched(batch: &Batch) -> Vec<Topic> {
    let mut topics: Vec<Topic> =
        batch.changes.iter().flat_map(|(record, _)| record.topics.iter().copied()).collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

/// What the change left of its run, which exposed columns it may have changed, and whether the row
/// began with it. `None` where no client can see a difference.
fn difference(change: Change, before: Option<&Arc<Image>>) -> Option<(RunState, ColumnSet, bool)> {
    match change {
        Change::RunInserted(new) => {
            let image = Arc::new(Image::after(&new, None, None));
            Some((RunState::Is(image), ColumnSet::EXPOSED, true))
        }
        Change::RunUpdated { new, old } => {
            let before = before.map(Arc::as_ref);
            let image = Arc::new(Image::after(&new, old.as_deref(), before));
            let (changed, moved) = match (&old, before) {
                (Some(old), _) => {
                    let moved = !same_places(|column| old.get(column), &image);
                    (differing(|column| old.get(column), &image), moved)
                }
                (None, Some(before)) => {
                    let moved = !same_places(|column| before.get(column), &image);
                    (differing(|column| before.get(column), &image), moved)
                }
                (None, None) => (sent(&new), true),
            };
            (moved || !changed.is_empty()).then_some((RunState::Is(image), changed, false))
        }
        Change::RunDeleted(_) => {
            // A run that the window does not know has no topic here: whoever follows it keeps its
            // last state, as clients do with every deletion.
            Some((RunState::Deleted(Arc::clone(before?)), ColumnSet::EMPTY, false))
        }
        Change::RunsTruncated | Change::TooLarge | Change::KeysChanged => None,
    }
}

/// The exposed columns that an update sent: with the row before unknown, any of them may be new.
fn sent(new: &Tuple) -> ColumnSet {
    let mut columns = ColumnSet::EMPTY;
    for column in &Column::ALL[..Column::EXPOSED] {
        if new.get(*column) != Cell::Unchanged {
            columns.insert(*column);
        }
    }
    columns
}
