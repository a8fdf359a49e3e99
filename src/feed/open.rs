//! Opening a feed: its rows as of now, and a handle to go on from there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;

use super::chunks::Opening;
use super::facts::Facts;
use super::feeds::{Answer, Feeds, Outcome, Unavailable, View};
use super::filter::Filter;
use super::handle::Handle;
use super::image::{Image, MessageKey, Operation};
use super::join::Joined;
use super::key::Runs;
use super::pace;
use super::position::Position;
use super::wire;
use crate::lease::Lease;
use crate::runs::columns::Column;
use crate::runs::created::{Floor, timestamp_millis};
use crate::runs::reader::Patience;

/// Rendering more than this is no work for a thread that serves others.
const RENDER_ASIDE_FROM: usize = 256 << 10;

/// A request to open a feed.
#[derive(Debug)]
pub struct Open {
    /// What the client sees of which feed.
    pub view: View,
    /// The handle that the client was told to start again with, or has otherwise.
    pub handle: Option<String>,
    /// Whether the client may hold handles of this feed that have expired.
    pub returns: bool,
}

/// A run and where the stream goes on from it.
struct OpenedRun {
    image: Arc<Image>,
    facts: Facts,
    offset: Position,
    handle: String,
}

impl Feeds {
    /// Answers with the whole row of a run. `opens` tells whether the caller's scopes open a run of
    /// these facts; existence is decided first.
    pub async fn open_run(&self, open: Open, opens: impl Fn(&Facts) -> bool) -> Outcome {
        match self.try_open_run(&open, opens).await {
            Ok(outcome) => outcome,
            Err(Unavailable) => Outcome::Unavailable,
        }
    }

    async fn try_open_run(
        &self,
        open: &Open,
        opens: impl Fn(&Facts) -> bool,
    ) -> Result<Outcome, Unavailable> {
        let handle = self.known_handle(open).await?;
        let filter = Filter::new(&open.view.feed, Floor::default());
        self.let_completion_fold(&filter).await;
        if let Some(opened) = self.run_from_memory(open, &filter)
            && opens(&opened.facts)
        {
            metrics::counter!(crate::telemetry::SNAPSHOTS_FROM_MEMORY).increment(1);
            return self.answer_run(open, opened);
        }
        let patience = patience(handle.as_ref());
        match self.run_by_query(open, &filter, patience).await? {
            None => Ok(Outcome::NotFound),
            Some(opened) if !opens(&opened.facts) => Ok(Outcome::Forbidden),
            Some(opened) => {
                if let Runs::One(run) = open.view.feed.runs() {
                    self.facts.keep(open.view.feed.environment(), run, &opened.facts, opens);
                }
                self.answer_run(open, opened)
            }
        }
    }

    /// Answers with the rows of a list or batch, the newest first.
    pub async fn open_list(&self, open: Open) -> Outcome {
        match self.try_open_list(open).await {
            Ok(outcome) => outcome,
            Err(Unavailable) => Outcome::Unavailable,
        }
    }

    async fn try_open_list(&self, open: Open) -> Result<Outcome, Unavailable> {
        let handle = self.known_handle(&open).await?;
        let digest = open.view.feed.digest(open.view.columns);
        let pinned = handle.as_ref().filter(|handle| handle.feed == digest).and_then(|h| h.floor);
        let floor = match (open.view.feed.runs(), pinned) {
            (Runs::Tagged { .. }, Some(floor)) => self.floor_to_open(floor),
            (Runs::Tagged { window, .. }, None) => Floor::before(SystemTime::now(), *window),
            _ => Floor::default(),
        };
        let patience = patience(handle.as_ref());
        let anew = open.returns || open.handle.is_some();
        let serves = |opening: &Opening| {
            let state = self.feed.state.read();
            let handle = Handle::decode(&opening.handle);
            let same = handle.is_some_and(|handle| {
                Some(handle.epoch) == state.epoch && handle.start >= state.resumed_at
            });
            same && opening.end >= Position::before(state.floor)
        };
        let whole = handle.as_ref().is_some_and(|handle| handle.whole);
        let chunk = if whole { usize::MAX } else { self.settings.chunk };
        let key = (open.view.clone(), floor, whole);
        let query = || self.list_by_query(&open.view, floor, chunk, patience);
        let mut opening = self.flights.share(key.clone(), anew, serves, query).await?;
        let not_before = handle.and_then(|handle| handle.not_before).unwrap_or_default();
        if opening.end < Position::before(not_before.lsn) {
            // It was under way before this node had caught up with the client; the next one was not.
            opening = self.flights.share(key, anew, serves, query).await?;
        }
        if opening.truncated {
            metrics::counter!(crate::telemetry::LISTS_TRUNCATED).increment(1);
        }
        opening.chunk(0).map(Outcome::Answer).ok_or(Unavailable)
    }

    /// The request's handle if it is of this database, once this node has caught up with its client.
    async fn known_handle(&self, open: &Open) -> Result<Option<Handle>, Unavailable> {
        // Before the stream has begun nobody knows whether it is behind the client.
        let epoch = self.feed.state.read().epoch.ok_or(Unavailable)?;
        let handle = open.handle.as_deref().and_then(Handle::decode);
        let Some(handle) = handle.filter(|handle| handle.epoch == epoch) else { return Ok(None) };
        if self.has_caught_up_with(&handle).await { Ok(Some(handle)) } else { Err(Unavailable) }
    }

    /// Waits for what follows a run's first completion, if that was just now.
    async fn let_completion_fold(&self, filter: &Filter) {
        let fold = self.settings.completion_fold;
        let left = || {
            let state = self.feed.state.read();
            let newest = state.newest(filter.topics()).filter(|newest| newest.completes)?;
            let left = pace::until(newest.commit_time, fold, SystemTime::now());
            (!left.is_zero()).then_some(left)
        };
        if left().is_none() {
            return;
        }
        let waiter = self.feed.waiters.join(filter.topics()[0], Lease::default());
        let longest = Instant::now() + fold;
        // A wake may be that of the completion itself, which is seen before it wakes anybody.
        loop {
            let woken = waiter.woken();
            let Some(left) = left() else { return };
            let end = longest.min(Instant::now() + left);
            if tokio::time::timeout_at(end, woken).await.is_err() {
                return;
            }
        }
    }

    /// The run by a query, which may show a completion before the stream does. What follows one that
    /// was just now is waited for then too, as far as the run's own clock tells.
    async fn run_by_query(
        &self,
        open: &Open,
        filter: &Filter,
        patience: Patience,
    ) -> Result<Option<OpenedRun>, Unavailable> {
        let found = self.awaited_run(open, filter, patience).await?;
        let completed_at = found.as_ref().and_then(|run| run.image.text(Column::CompletedAt));
        let Some(at) = completed_at.and_then(timestamp_millis) else { return Ok(found) };
        let (at, fold) = (at as i64 * 1_000, self.settings.completion_fold);
        let left = pace::until(at, fold, SystemTime::now());
        if left.is_zero() {
            return Ok(found);
        }
        tokio::time::sleep(left).await;
        self.query_run(open, patience).await
    }

    /// The row as the stream left it, if the window has seen it whole and is close to the database.
    fn run_from_memory(&self, open: &Open, filter: &Filter) -> Option<OpenedRun> {
        if !self.caught_up.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.feed.state.read();
        let (image, deleted) = state.last_state(filter)?;
        if deleted || !image.unknown().intersection(open.view.columns).is_empty() {
            return None;
        }
        let (image, head) = (Arc::clone(image), state.head);
        let epoch = state.epoch?;
        drop(state);
        let facts = self.facts.of(&image);
        let handle = Handle::issue(epoch, open.view.feed.digest(open.view.columns), head).encode();
        Some(OpenedRun { image, facts, offset: Position::before(head), handle })
    }

    /// The run, or that it does not come to be soon.
    async fn awaited_run(
        &self,
        open: &Open,
        filter: &Filter,
        patience: Patience,
    ) -> Result<Option<OpenedRun>, Unavailable> {
        let waiter = self.feed.waiters.join(filter.topics()[0], Lease::default());
        if let Some(opened) = self.query_run(open, patience).await? {
            return Ok(Some(opened));
        }
        // A trigger call may answer before its run can be read. The places to wait are limited, so
        // that asking for runs that never were costs little.
        let environment = open.view.feed.environment();
        let Some(_place) = self.just_created.try_enter(environment) else { return Ok(None) };
        let deadline = Instant::now() + self.settings.just_created_wait;
        loop {
            let woken = waiter.woken();
            let known = self.feed.state.read().last_state(filter).is_some_and(|(_, gone)| !gone);
            if known {
                return self.query_run(open, patience).await;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                () = self.drain.cancelled() => return Err(Unavailable),
            }
        }
    }

    async fn query_run(
        &self,
        open: &Open,
        patience: Patience,
    ) -> Result<Option<OpenedRun>, Unavailable> {
        let mut joined = self.read_and_join(&open.view, Floor::default(), patience).await?;
        let rows = self.whole(&open.view, std::mem::take(&mut joined.rows)).await?;
        let Some(image) = rows.into_iter().next() else { return Ok(None) };
        let now = self.facts.of(&image);
        let facts = match joined.read.facts.take() {
            Some(facts) => Facts { tags: now.tags, ..facts },
            None => now,
        };
        let handle = joined.issue(&open.view).encode();
        Ok(Some(OpenedRun { image, facts, offset: Position::before(joined.head), handle }))
    }

    fn answer_run(&self, open: &Open, opened: OpenedRun) -> Result<Outcome, Unavailable> {
        let bodies = &self.feed.bodies;
        bodies.room().map_err(|_| Unavailable)?;
        let body = opened.image.body(whole_row(&open.view), bodies);
        Ok(Outcome::Answer(Answer {
            handle: opened.handle,
            offset: opened.offset,
            body,
            complete: true,
            truncated: false,
            committed_at: None,
        }))
    }

    async fn list_by_query(
        &self,
        view: &View,
        floor: Floor,
        chunk: usize,
        patience: Patience,
    ) -> Result<Arc<Opening>, Unavailable> {
        let mut joined = self.read_and_join(view, floor, patience).await?;
        let mut rows = self.whole(view, std::mem::take(&mut joined.rows)).await?;
        rows.sort_by(|a, b| age(b).cmp(&age(a)));
        self.feed.bodies.room().map_err(|_| Unavailable)?;
        let Joined { head, read, .. } = &mut joined;
        let (end, cut, share) = (Position::before(*head), read.cut.take(), read.share.take());
        let mut handle = joined.issue(view);
        handle.floor = matches!(view.feed.runs(), Runs::Tagged { .. }).then_some(floor);
        handle.cut = cut.as_deref().map(|cut| timestamp_millis(cut).unwrap_or(u64::MAX));
        let (view, bodies) = (view.clone(), Arc::clone(&self.feed.bodies));
        let size: usize = rows.iter().map(|row| row.size()).sum();
        let render = move || {
            let chunks = render(&rows, &view, chunk);
            let chunks = chunks.into_iter().map(|(plain, ends)| bodies.body(plain, ends)).collect();
            let (handle, truncated) = (handle.encode(), handle.cut.is_some());
            // From here on the rows count as bodies.
            drop(share);
            Arc::new(Opening { view, handle, chunks, end, truncated })
        };
        let opening = if size < RENDER_ASIDE_FROM {
            render()
        } else {
            tokio::task::spawn_blocking(render).await.map_err(|_| Unavailable)?
        };
        self.chunks.hold(&opening);
        Ok(opening)
    }

    /// The rows, with those read whole that the stream never sent whole.
    async fn whole(
        &self,
        view: &View,
        rows: Vec<Arc<Image>>,
    ) -> Result<Vec<Arc<Image>>, Unavailable> {
        let parts = rows.into_iter().map(|row| (row, whole_row(view))).collect();
        let parts = self.filled_parts(view, parts).await?;
        Ok(parts.into_iter().map(|(row, _)| row).collect())
    }
}

/// Who was told to start again comes in a wave of others, and waits its turn.
fn patience(handle: Option<&Handle>) -> Patience {
    match handle {
        Some(handle) if handle.not_before.is_some() => Patience::Parked,
        _ => Patience::Fresh,
    }
}

fn whole_row(view: &View) -> MessageKey {
    MessageKey {
        columns: view.columns,
        operation: Operation::Insert,
        old_statuses: view.old_statuses,
    }
}

/// Rows are in the order of this, the greatest first.
fn age(row: &Image) -> (Option<&str>, Option<&str>) {
    (row.text(Column::CreatedAt), row.text(Column::Id))
}

/// The bodies of the chunks, of which the last brings the client up to date.
fn render(rows: &[Arc<Image>], view: &View, chunk: usize) -> Vec<(bytes::Bytes, Box<[u32]>)> {
    let mut chunks = Vec::new();
    let mut writer = wire::Writer::new(0);
    for row in rows {
        if writer.len() > chunk {
            chunks.push(std::mem::replace(&mut writer, wire::Writer::new(chunk)).unfinished());
        }
        writer.push(row, whole_row(view));
    }
    chunks.push(writer.complete());
    chunks
}
