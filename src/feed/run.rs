//! The feed of one run: opening it, and polling it from an offset (`runs-and-auth.md`, 6 and 11).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::{Handle, Horizon, feed_digest};
use super::image::{BodyKey, Image};
use super::position::Position;
use super::window::{Feed, News, RunTopic};
use super::wire;
use crate::postgres::Lsn;
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::store::RunStore;
use crate::runs::text::elements;

/// What the run feeds share: the window, the database for what it does not hold, and the drain.
#[derive(Debug)]
pub struct RunFeeds {
    pub(super) feed: Arc<Feed>,
    pub(super) store: RunStore,
    pub(super) drain: CancellationToken,
    pub(super) batches: moka::sync::Cache<String, Arc<str>>,
    pub(super) facts: moka::sync::Cache<RunKey, Arc<Facts>>,
    pub(super) queries: Semaphore,
    pub(super) just_created: Semaphore,
    pub(super) caught_up: Arc<AtomicBool>,
}

/// Which run: one of an environment, by the id that callers know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    /// The environment that the caller's credential opens.
    pub environment: Arc<str>,
    /// The run's friendly id.
    pub friendly_id: Arc<str>,
}

/// What scopes may name a run by (`runs-and-auth.md`, 13.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The task's identifier.
    pub task: String,
    /// The run's tags.
    pub tags: Vec<String>,
    /// The friendly id of its batch.
    pub batch: Option<Arc<str>>,
}

/// A request for what came after an offset.
#[derive(Debug)]
pub struct Poll {
    /// Which run.
    pub run: RunKey,
    /// The columns that the client receives.
    pub columns: ColumnSet,
    /// Whether the client knows only the statuses of older API versions.
    pub old_statuses: bool,
    /// The client's handle, as it sent it.
    pub handle: String,
    /// The client's offset.
    pub after: Position,
    /// When to answer that nothing is new; `None` answers at once.
    pub hold_until: Option<Instant>,
}

/// What to tell a client.
#[derive(Debug)]
pub enum Outcome {
    /// Rows, or that nothing is new.
    Answer(Answer),
    /// Start again, with this handle (a 409).
    MustRefetch(String),
    /// There is no such run in the environment.
    NotFound,
    /// The run is there and the credential does not open it.
    Forbidden,
    /// Not now: the stream or the database is not there, or is too far behind.
    Unavailable,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// The handle for the next request.
    pub handle: String,
    /// The offset for the next request.
    pub offset: Position,
    /// A JSON array of messages that ends with the up-to-date control.
    pub body: Bytes,
    /// When the newest change in it committed, in microseconds since 1970; `None` if it holds none
    /// or was read by a query.
    pub committed_at: Option<i64>,
}

/// How long a client that is ahead of this node is waited for when it does not hold a poll.
pub(super) const CATCH_UP_WAIT: Duration = Duration::from_secs(5);

impl RunFeeds {
    /// Feeds on a window and its database. `caught_up` tells whether the window is close enough to
    /// the database that a run may be answered from memory; `drain` ends all holds.
    pub fn new(
        feed: Arc<Feed>,
        store: RunStore,
        caught_up: Arc<AtomicBool>,
        drain: CancellationToken,
    ) -> Self {
        RunFeeds {
            feed,
            store,
            drain,
            // A batch's friendly id never changes.
            batches: moka::sync::Cache::new(100_000),
            // Tags may be added: what the window has forgotten must be read anew before it.
            facts: moka::sync::Cache::builder()
                .max_capacity(100_000)
                .time_to_live(Duration::from_secs(30))
                .build(),
            queries: Semaphore::new(256),
            just_created: Semaphore::new(1_000),
            caught_up,
        }
    }

    pub(super) fn topic(&self, run: &RunKey) -> RunTopic {
        RunTopic {
            topic: self.feed.topics.run(&run.environment, &run.friendly_id),
            environment: Arc::clone(&run.environment),
            friendly_id: Arc::clone(&run.friendly_id),
        }
    }

    /// Whether the scopes, of which `opens` tells, open a run that a client already follows.
    /// `Ok(None)`: there is no such run.
    pub async fn may_follow(
        &self,
        run: &RunKey,
        opens: impl Fn(&Facts) -> bool,
    ) -> Result<Option<bool>, super::snapshot::Unavailable> {
        let remembered = self.remembered_facts(run);
        if remembered.is_some_and(|facts| opens(&facts)) {
            return Ok(Some(true));
        }
        // A refusal ends the client's subscription, so it is never based on what may be old.
        let (_, stored) = self.query(run).await?;
        let Some(stored) = stored else { return Ok(None) };
        Ok(Some(opens(&self.remember(run, &stored))))
    }

    fn remembered_facts(&self, run: &RunKey) -> Option<Facts> {
        let topic = self.topic(run);
        let image = {
            let state = self.feed.state.read();
            state.last_state(&topic).map(|(image, _)| Arc::clone(image))
        };
        match image {
            Some(image) => Some(self.facts_of(&image)),
            None => self.facts.get(run).map(|facts| Facts::clone(&facts)),
        }
    }

    pub(super) fn facts_of(&self, image: &Image) -> Facts {
        Facts {
            task: image.text(Column::TaskIdentifier).unwrap_or_default().to_owned(),
            tags: image.text(Column::RunTags).map(elements).unwrap_or_default(),
            batch: image.text(Column::BatchId).and_then(|id| self.batches.get(id)),
        }
    }

    /// Answers with what came after the client's offset, at once or when something comes.
    pub async fn poll(&self, poll: Poll) -> Outcome {
        let Some(mut follow) = self.follow(&poll) else {
            return self.refetch(&poll);
        };
        let waiter = self.feed.waiters.join(follow.run.topic);
        if !Box::pin(self.is_reachable(poll.after)).await {
            return self.refetch(&poll);
        }
        let mut last = poll.hold_until.is_none();
        // Whether nothing has touched the run since the last look.
        let mut quiet = false;
        loop {
            let woken = waiter.woken();
            match self.look(&mut follow, quiet) {
                Look::News(head, news) => {
                    if let Some(answer) = deliver(&poll, head, news) {
                        return Outcome::Answer(answer);
                    }
                }
                Look::TooOld => return self.refetch(&poll),
                Look::Nothing => {}
            }
            let Some(deadline) = poll.hold_until.filter(|_| !last) else { break };
            // The end is looked at once more: the head that it finds keeps a quiet feed's offset
            // above the floor.
            (quiet, last) = tokio::select! {
                biased;
                () = woken => (false, false),
                () = tokio::time::sleep_until(deadline) => (true, true),
                () = self.drain.cancelled() => (true, true),
            };
        }
        // What is seen here is never below what the client has.
        Outcome::Answer(Answer {
            handle: poll.handle,
            offset: follow.seen,
            body: Bytes::from_static(wire::UP_TO_DATE.as_bytes()),
            committed_at: None,
        })
    }

    fn follow(&self, poll: &Poll) -> Option<Follow> {
        let handle = Handle::decode(&poll.handle)?;
        let epoch = self.feed.state.read().epoch;
        let mine = epoch == Some(handle.epoch)
            && handle.feed == digest(&poll.run, poll.columns)
            && handle.not_before.is_none();
        if !mine {
            return None;
        }
        let horizon = handle.horizon.filter(|horizon| poll.after.lsn < horizon.lsn);
        Some(Follow {
            run: self.topic(&poll.run),
            epoch: handle.epoch,
            start: handle.start,
            generation: 0,
            seen: poll.after,
            horizon: horizon.map(Box::new),
        })
    }

    /// Whether the stream can ever come to this position: one beyond the server's own log was never
    /// issued, or not by this server. Who cannot ask does not send a client away.
    pub(super) async fn is_reachable(&self, position: Position) -> bool {
        if position <= Position::before(self.feed.head()) {
            return true;
        }
        let server = async {
            let _turn = self.queries.acquire().await.ok()?;
            self.store.server_state().await.ok()
        };
        match tokio::time::timeout(CATCH_UP_WAIT, server).await {
            Ok(Some(server)) => position.lsn <= server.insert_lsn,
            _ => true,
        }
    }

    fn look(&self, follow: &mut Follow, quiet: bool) -> Look {
        let state = self.feed.state.read();
        let head = Position::before(state.head);
        // The server may have crashed and given the ids that the horizon names out again, also while
        // the poll was held.
        let void = follow.horizon.is_some() && follow.start < state.resumed_at;
        let foreign = state.epoch != Some(follow.epoch);
        if void || foreign {
            return Look::TooOld;
        }
        if follow.seen < Position::before(state.floor) {
            // What has left the window meanwhile was not of this run, or it would have been woken.
            if !(quiet && follow.generation == state.generation) {
                return Look::TooOld;
            }
            follow.seen = Position::before(state.floor);
        }
        follow.generation = state.generation;
        let news = state.news(&follow.run, follow.seen, follow.horizon.as_deref());
        drop(state);
        follow.seen = follow.seen.max(head);
        if follow.horizon.as_ref().is_some_and(|horizon| follow.seen.lsn >= horizon.lsn) {
            follow.horizon = None;
        }
        match news {
            Some(news) => Look::News(follow.seen, news),
            None => Look::Nothing,
        }
    }

    /// Tells a client to start again, not behind what it has seen of this database.
    pub fn refetch(&self, poll: &Poll) -> Outcome {
        metrics::counter!(crate::telemetry::REFETCHES).increment(1);
        let (epoch, head) = {
            let state = self.feed.state.read();
            (state.epoch, state.head)
        };
        let Some(epoch) = epoch else { return Outcome::Unavailable };
        let known = Handle::decode(&poll.handle).is_some_and(|handle| handle.epoch == epoch);
        let mut handle = Handle::issue(epoch, digest(&poll.run, poll.columns), head);
        handle.not_before = Some(if known { poll.after } else { Position::default() });
        Outcome::MustRefetch(handle.encode())
    }
}

/// A client's place in its feed.
#[derive(Debug)]
struct Follow {
    run: RunTopic,
    /// The history that its positions belong to.
    epoch: u64,
    /// See [`Handle::start`].
    start: Lsn,
    /// How often the window had been emptied when it was last looked at.
    generation: u64,
    /// Everything up to here has been looked at.
    seen: Position,
    horizon: Option<Box<Horizon>>,
}

enum Look {
    News(Position, News),
    Nothing,
    TooOld,
}

fn deliver(poll: &Poll, head: Position, news: News) -> Option<Answer> {
    let columns =
        if news.inserted { poll.columns } else { news.changed.intersection(poll.columns) };
    let body = if news.deleted {
        wire::deleted_body(&news.image)
    } else if columns.is_empty() {
        return None; // only what this client leaves out has changed
    } else {
        let insert = news.inserted;
        wire::row_body(&news.image, BodyKey { columns, insert, old_statuses: poll.old_statuses })
    };
    let committed_at = Some(news.commit_time);
    Some(Answer { handle: poll.handle.clone(), offset: head, body, committed_at })
}

pub(super) fn digest(run: &RunKey, columns: ColumnSet) -> u64 {
    feed_digest(&["run", &run.environment, &run.friendly_id], columns.bits())
}

/// Waits until the stream has come to `lsn`; `false` when it does not in time.
pub(super) async fn reach(feed: &Feed, lsn: Lsn, within: Duration) -> bool {
    let mut head = feed.head.subscribe();
    let reached = head.wait_for(|head| *head >= lsn);
    matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
}
