//! From the stream into the window: what each change did to which run, and whom to wake.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::image::{Image, differing};
use super::position::Position;
use super::topic::Topic;
use super::window::{Batch, Before, Feed, Record, RunState};
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Reset, Tx};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::text::elements;
use crate::runs::tuple::{Cell, Tuple};

impl Feed {
    /// Takes in the next step of the stream. To be called by one thread, in the stream's order.
    pub fn apply(&self, event: Event) {
        let _writer = self.writer.lock();
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
        self.tags.forget_all();
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
            self.tags.forget_all();
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
        let untold = {
            let mut state = self.state.write();
            let now = Instant::now();
            state.append(batch, &self.limits, &self.rendered, &self.waiters, now);
            !state.untold.is_empty()
        };
        self.head.send_replace(end);
        if untold {
            self.more_untold.notify_one();
        }
        for topic in topics {
            self.waiters.wake(topic);
        }
    }

    /// Copies and compares outside of the writer's lock: this is the only writer, so nothing changes meanwhile.
    fn prepare(&self, tx: Tx) -> Batch {
        // No change commits after it has come. Where the server's clock is ahead, what counts from
        // the commit would otherwise not end in time.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let commit_time = tx.commit_time.min(now.as_micros() as i64);
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
                Change::RunsTruncated | Change::TooLarge | Change::Key(_) => None,
            };
            let Some(id) = id else { continue };
            let before = match within.get(id) {
                Some(known) => known.clone(),
                None => state.image(id).cloned(),
            };
            let id: Arc<str> = state.id(id).unwrap_or_else(|| id.into());
            let tags = self.follow_tags(&id, &change, before.is_some());
            let difference = self.difference(change, before.as_ref(), tags.as_deref());
            let Some(difference) = difference else { continue };
            let Difference { left, changed, inserted, before: places } = difference;
            let image = match &left {
                RunState::Is(image) | RunState::Deleted(image) => image,
            };
            let is = |column| changed.contains(column) && image.text(column).is_some();
            let completes = is(Column::CompletedAt);
            let urgent = completes || is(Column::Error) || matches!(left, RunState::Deleted(_));
            let mut topics = self.topics_of(|column| image.get(column));
            let untold = matches!(left, RunState::Is(_)) && image.lacks_tags();
            if let Some(environment) = image.text(Column::RuntimeEnvironmentId).filter(|_| untold) {
                topics.push(Topic::untold(environment));
                topics.sort_unstable();
            }
            if let Before::Elsewhere(before) = &places {
                topics.extend(before);
                topics.sort_unstable();
                topics.dedup();
            }
            if !single {
                let known = matches!(left, RunState::Is(_)).then(|| Arc::clone(image));
                within.insert(Arc::clone(&id), known);
            }
            let index = batch.changes.len() as u32 + 1;
            let record = Record {
                at: Position { lsn: tx.commit_lsn, index },
                xid: tx.xid,
                commit_time,
                topics: topics.into(),
                run: id,
                changed,
                inserted,
                completes,
                urgent,
                untold,
                // What cannot be told was in every window.
                created: image.created().unwrap_or(Floor(u32::MAX)),
                before: places,
            };
            batch.changes.push((record, left));
        }
        drop(state);
        batch
    }

    /// Remembers the tags that the change carries. Gives those that it left out, where nothing else
    /// is known of the run.
    fn follow_tags(&self, id: &str, change: &Change, known: bool) -> Option<Arc<str>> {
        match change {
            Change::RunInserted(new) => self.tags.follow(id, new),
            Change::RunUpdated { new, old } => {
                self.tags.follow(id, new);
                let lacks = new.get(Column::RunTags) == Cell::Unchanged;
                if lacks && !known && old.is_none() {
                    return self.tags.get(id);
                }
            }
            Change::RunDeleted(_) => self.tags.forget(id),
            Change::RunsTruncated | Change::TooLarge | Change::Key(_) => {}
        }
        None
    }

    /// What the change did to its run. `None` where no client can see a difference.
    fn difference(
        &self,
        change: Change,
        before: Option<&Arc<Image>>,
        tags: Option<&str>,
    ) -> Option<Difference> {
        match change {
            Change::RunInserted(new) => {
                let image = Image::after(&new, None, None, None).counted_in(&self.rendered);
                Some(Difference {
                    left: RunState::Is(Arc::new(image)),
                    changed: ColumnSet::EXPOSED,
                    inserted: true,
                    before: Before::Absent,
                })
            }
            Change::RunUpdated { new, old } => {
                let before = before.map(Arc::as_ref);
                let image = Image::after(&new, old.as_deref(), before, tags);
                let image = image.counted_in(&self.rendered);
                let (changed, before) = match (&old, before) {
                    (Some(old), _) => self.compare(|column| old.get(column), &image),
                    (None, Some(before)) if before.lacks_tags() && !image.lacks_tags() => {
                        (differing(|column| before.get(column), &image), Before::Unknown)
                    }
                    (None, Some(before)) => self.compare(|column| before.get(column), &image),
                    (None, None) => (sent(&new), Before::Unknown),
                };
                let visible = !changed.is_empty() || !matches!(before, Before::SamePlaces);
                let left = RunState::Is(Arc::new(image));
                visible.then_some(Difference { left, changed, inserted: false, before })
            }
            Change::RunDeleted(_) => Some(Difference {
                // A run that the window does not know has no topic here: whoever follows it keeps
                // its last state, as clients do with every deletion.
                left: RunState::Deleted(Arc::clone(before?)),
                changed: ColumnSet::EMPTY,
                inserted: false,
                before: Before::SamePlaces,
            }),
            Change::RunsTruncated | Change::TooLarge | Change::Key(_) => None,
        }
    }

    fn compare<'a>(
        &self,
        before: impl Fn(Column) -> Cell<'a>,
        after: &Image,
    ) -> (ColumnSet, Before) {
        let changed = differing(&before, after);
        if same_places(&before, after) {
            return (changed, Before::SamePlaces);
        }
        (changed, Before::Elsewhere(self.topics_of(before).into()))
    }

    /// What a row is found under, sorted.
    fn topics_of<'a>(&self, row: impl Fn(Column) -> Cell<'a>) -> Vec<Topic> {
        let text = |column| match row(column) {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Unchanged => None,
        };
        let Some(environment) = text(Column::RuntimeEnvironmentId) else { return Vec::new() };
        let mut topics = Vec::with_capacity(8);
        topics.push(Topic::environment(environment));
        if let Some(friendly_id) = text(Column::FriendlyId) {
            topics.push(Topic::run(environment, friendly_id));
        }
        if let Some(batch) = text(Column::BatchId) {
            topics.push(Topic::batch(environment, batch));
        }
        let tags = text(Column::RunTags).map(elements).unwrap_or_default();
        topics.extend(tags.iter().map(|tag| Topic::tag(environment, tag)));
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}

/// What a change did to its run.
struct Difference {
    left: RunState,
    /// The exposed columns that it may have changed.
    changed: ColumnSet,
    /// The row began with it.
    inserted: bool,
    before: Before,
}

/// Whether a run is found under the same topics as before.
fn same_places<'a>(before: &impl Fn(Column) -> Cell<'a>, image: &Image) -> bool {
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
