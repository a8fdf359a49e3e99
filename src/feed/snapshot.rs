//! Opening a run's feed: its row as of now, joined to the stream so that nothing is lost, doubled or
//! back in time (`postgres.md`, 5.6).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::handle::{Handle, Horizon, MAX_LEN};
use super::image::{BodyKey, Image};
use super::position::Position;
use super::run::{Answer, CATCH_UP_WAIT, Facts, Outcome, RunFeeds, RunKey, digest, reach};
use super::wire;
use crate::postgres::Lsn;
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::store::{Seen, StoredRun};

/// For how long a run that was just triggered is waited for before it is said not to exist.
const JUST_CREATED_WAIT: Duration = Duration::from_secs(2);
/// For how long a snapshot is repeated until it shows all that the window has forgotten.
const SETTLE_WAIT: Duration = Duration::from_secs(5);
/// For how long a request waits for its turn at the database and for the answer.
const QUERY_WAIT: Duration = Duration::from_secs(10);

/// The stream or the database is not there, or too far behind.
#[derive(Debug, thiserror::Error)]
#[error("not available now")]
pub struct Unavailable;

/// A request to open a run's feed.
#[derive(Debug)]
pub struct Open {
    /// Which run.
    pub run: RunKey,
    /// The columns that the client receives.
    pub columns: ColumnSet,
    /// Whether the client knows only the statuses of older API versions.
    pub old_statuses: bool,
    /// The handle that the client was told to start again with.
    pub handle: Option<String>,
}

/// The row and where the stream goes on from it.
struct Opened {
    image: Arc<Image>,
    facts: Facts,
    offset: Position,
    /// See [`Handle::start`].
    start: Lsn,
    horizon: Option<Horizon>,
    epoch: u64,
}

enum Joined {
    Opened(Opened),
    NotFound,
    /// The query did not show something that the window no longer holds.
    Repeat,
}

impl RunFeeds {
    /// Answers with the whole row. `opens` tells whether the caller's scopes open a run of these
    /// facts; existence is decided first.
    pub async fn open(&self, request: Open, opens: impl Fn(&Facts) -> bool) -> Outcome {
        // Before the stream has begun nobody knows whether it is behind the client.
        let Some(epoch) = self.feed.state.read().epoch else { return Outcome::Unavailable };
        let handle = request.handle.as_deref().and_then(Handle::decode);
        let not_before = handle.filter(|handle| handle.epoch == epoch).and_then(|h| h.not_before);
        if let Some(position) = not_before
            && self.is_reachable(position).await
            && !reach(&self.feed, position.lsn, CATCH_UP_WAIT).await
        {
            return Outcome::Unavailable;
        }
        if let Some(opened) = self.open_from_memory(&request)
            && opens(&opened.facts)
        {
            metrics::counter!(crate::telemetry::SNAPSHOTS_FROM_MEMORY).increment(1);
            return answer(&request, opened);
        }
        match self.open_by_query(&request).await {
            Err(Unavailable) => Outcome::Unavailable,
            Ok(None) => Outcome::NotFound,
            Ok(Some(opened)) if !opens(&opened.facts) => Outcome::Forbidden,
            Ok(Some(opened)) => answer(&request, opened),
        }
    }

    /// The row as the stream left it, if the window has seen it whole and is close to the database.
    fn open_from_memory(&self, request: &Open) -> Option<Opened> {
        if !self.caught_up.load(Ordering::Relaxed) {
            return None;
        }
        let topic = self.topic(&request.run);
        let state = self.feed.state.read();
        let (image, deleted) = state.last_state(&topic)?;
        if deleted || !image.unknown().intersection(request.columns).is_empty() {
            return None;
        }
        let (image, offset) = (Arc::clone(image), Position::before(state.head));
        let epoch = state.epoch?;
        drop(state);
        let facts = self.facts_of(&image);
        Some(Opened { image, facts, offset, start: offset.lsn, horizon: None, epoch })
    }

    async fn open_by_query(&self, request: &Open) -> Result<Option<Opened>, Unavailable> {
        let topic = self.topic(&request.run);
        let waiter = self.feed.waiters.join(topic.topic);
        if let Some(opened) = self.open_settled(request).await? {
            return Ok(Some(opened));
        }
        // A trigger call may answer before its run can be read. The places to wait are limited, so
        // that asking for runs that never were costs little.
        let Ok(_place) = self.just_created.try_acquire() else { return Ok(None) };
        let deadline = Instant::now() + JUST_CREATED_WAIT;
        loop {
            let woken = waiter.woken();
            let known = self.feed.state.read().last_state(&topic).is_some_and(|(_, gone)| !gone);
            if known {
                return self.open_settled(request).await;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                () = self.drain.cancelled() => return Err(Unavailable),
            }
        }
    }

    /// Queries until the answer shows all that the window has forgotten.
    async fn open_settled(&self, request: &Open) -> Result<Option<Opened>, Unavailable> {
        let deadline = Instant::now() + SETTLE_WAIT;
        let mut pause = Duration::from_millis(2);
        loop {
            let connections = self.feed.state.read().connections;
            let (seen, stored) = self.query(&request.run).await?;
            let mut joined = self.join(request, connections, &seen, stored.as_ref())?;
            if matches!(&joined, Joined::Opened(opened) if !fits(request, opened)) {
                // What the query saw is too long for a handle, so the stream must pass it first.
                if !reach(&self.feed, seen.insert_lsn, CATCH_UP_WAIT).await {
                    return Err(Unavailable);
                }
                joined = self.join(request, connections, &seen, stored.as_ref())?;
            }
            match joined {
                Joined::Opened(opened) => return Ok(Some(opened)),
                Joined::NotFound => return Ok(None),
                Joined::Repeat if Instant::now() >= deadline => return Err(Unavailable),
                Joined::Repeat => {
                    metrics::counter!(crate::telemetry::SNAPSHOT_REPEATS).increment(1);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
            }
        }
    }

    pub(super) async fn query(
        &self,
        run: &RunKey,
    ) -> Result<(Seen, Option<StoredRun>), Unavailable> {
        let answer = async {
            let _turn = self.queries.acquire().await.map_err(|_| Unavailable)?;
            let answer = self.store.run(&run.friendly_id, &run.environment).await;
            answer.map_err(|error| {
                tracing::warn!(%error, "a run could not be read");
                Unavailable
            })
        };
        tokio::time::timeout(QUERY_WAIT, answer).await.unwrap_or(Err(Unavailable))
    }

    /// The row of the query and the changes of the window that it does not show, in one version of
    /// the window. `connections` is how many the stream had had before the query.
    fn join(
        &self,
        request: &Open,
        connections: u64,
        seen: &Seen,
        stored: Option<&StoredRun>,
    ) -> Result<Joined, Unavailable> {
        let topic = self.topic(&request.run);
        let facts = stored.map(|stored| self.remember(&request.run, stored));
        let row = stored.map(|stored| Image::of_row(&stored.row));
        let horizon = Horizon { snapshot: seen.snapshot.clone(), lsn: seen.insert_lsn };
        let state = self.feed.state.read();
        let epoch = state.epoch.ok_or(Unavailable)?;
        // Connected anew since: the server may have crashed and taken back what the query saw.
        let void = state.connections != connections;
        if void || !state.settlement.admits(&horizon.snapshot, topic.topic) {
            return Ok(Joined::Repeat);
        }
        let start = state.head.max(state.resumed_at);
        let later = state.news(&topic, Position::default(), Some(&horizon));
        let head = state.head;
        drop(state);
        let image = match (row, later) {
            (_, Some(later)) if later.deleted => return Ok(Joined::NotFound),
            (Some(row), Some(later)) => Arc::new(later.image.filled_from(&row)),
            (Some(row), None) => Arc::new(row),
            // Inserted where the query could not see it yet; an insert is always whole.
            (None, Some(later)) if later.inserted => later.image,
            (None, _) => return Ok(Joined::NotFound),
        };
        let mut facts = facts.unwrap_or_else(|| self.facts_of(&image));
        facts.tags = self.facts_of(&image).tags;
        // Once the stream has passed what the query can have seen, there is nothing to skip.
        let horizon = (head < horizon.lsn).then_some(horizon);
        let offset = Position::before(head);
        Ok(Joined::Opened(Opened { image, facts, offset, start, horizon, epoch }))
    }

    /// The facts of a row that was read, kept for the polls that follow.
    pub(super) fn remember(&self, run: &RunKey, stored: &StoredRun) -> Facts {
        if let (Some(id), Some(batch)) =
            (stored.row.text(Column::BatchId), &stored.batch_friendly_id)
        {
            self.batches.insert(id.to_owned(), batch.as_str().into());
        }
        let facts = self.facts_of(&Image::of_row(&stored.row));
        self.facts.insert(run.clone(), Arc::new(facts.clone()));
        facts
    }
}

fn handle(request: &Open, opened: &Opened) -> String {
    let feed = digest(&request.run, request.columns);
    let mut handle = Handle::issue(opened.epoch, feed, opened.start);
    handle.horizon.clone_from(&opened.horizon);
    handle.encode()
}

fn fits(request: &Open, opened: &Opened) -> bool {
    opened.horizon.is_none() || handle(request, opened).len() <= MAX_LEN
}

fn answer(request: &Open, opened: Opened) -> Outcome {
    let handle = handle(request, &opened);
    let key =
        BodyKey { columns: request.columns, insert: true, old_statuses: request.old_statuses };
    let body = wire::row_body(&opened.image, key);
    Outcome::Answer(Answer { handle, offset: opened.offset, body, committed_at: None })
}
