//! The feeds: what they share, what they are asked, and what they answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;

use super::asked::Asked;
use super::body::{Body, Part};
use super::chunks::Chunks;
use super::facts::FactsMemory;
use super::flights::Flights;
use super::handle::Handle;
use super::image::{Image, MessageKey, Operation};
use super::key::FeedKey;
use super::news::RunNews;
use super::position::Position;
use super::window::Feed;
use crate::lease::Lease;
use crate::limits::Gate;
use crate::postgres::Lsn;
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::reader::Reader;

/// How long a client that is ahead of this node is waited for when it does not hold a poll.
pub(super) const CATCH_UP_WAIT: Duration = Duration::from_secs(5);
/// How many requests may wait at once for a run or batch that is not there; those of one environment
/// leave some to the others.
const JUST_CREATED_PLACES: usize = 1_000;

/// How feeds behave.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// For how long a run's first completion waits for what is written right after it.
    pub completion_fold: Duration,
    /// For how long a run or batch is waited for that is not there: clients may ask before its
    /// transaction commits.
    pub just_created_wait: Duration,
    /// How far back a list may reach.
    pub created_max: Duration,
    /// The most rows that a list answers with.
    pub list_max: usize,
    /// The most memory that a list's rows may take, in bytes.
    pub list_bytes: usize,
    /// What the chunks of long lists may take that nobody has fetched yet, in bytes.
    pub chunk_bytes: usize,
    /// How long such a chunk is, in bytes. It is longer where a single row is.
    pub chunk: usize,
}

/// Every feed: the window, the database for what it does not hold, and the drain.
#[derive(Debug)]
pub struct Feeds {
    pub(super) feed: Arc<Feed>,
    pub(super) reader: Arc<Reader>,
    pub(super) drain: CancellationToken,
    pub(super) caught_up: Arc<AtomicBool>,
    pub(super) settings: FeedSettings,
    pub(super) facts: FactsMemory,
    pub(super) chunks: Chunks,
    pub(super) flights: Flights,
    pub(super) just_created: Gate,
    /// The feeds that were asked for last.
    pub asked: Asked,
}

/// A feed as one client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Which runs.
    pub feed: FeedKey,
    /// The columns that the client receives.
    pub columns: ColumnSet,
    /// Whether the client knows only the statuses of older API versions.
    pub old_statuses: bool,
}

/// What to tell a client.
#[derive(Debug)]
pub enum Outcome {
    /// Rows, or that nothing is new.
    Answer(Answer),
    /// Start again, with this handle (a 409).
    MustRefetch(String),
    /// There is no such run or batch in the environment.
    NotFound,
    /// It is there and the credential does not open it.
    Forbidden,
    /// Not now: the stream or the database is not there, or too much is asked at once.
    Unavailable,
    /// The lease that came with the request is over.
    Over(Lease),
}

/// A body and what goes with it.
#[derive(Debug)]
pub struct Answer {
    /// The handle for the next request.
    pub handle: String,
    /// The offset for the next request.
    pub offset: Position,
    /// A JSON array of messages.
    pub body: Body,
    /// Whether it ends with the up-to-date control. If not, the next offset continues it.
    pub complete: bool,
    /// Whether the list was longer than an answer may be, so that its oldest runs are missing.
    pub truncated: bool,
    /// When the newest change in it committed, in microseconds since 1970; `None` if it holds none
    /// or was read by a query.
    pub committed_at: Option<i64>,
}

/// The stream or the database is not there, or too far behind, or too busy.
#[derive(Debug, thiserror::Error)]
#[error("not available now")]
pub struct Unavailable;

impl From<crate::runs::reader::Unavailable> for Unavailable {
    fn from(_: crate::runs::reader::Unavailable) -> Self {
        Unavailable
    }
}

impl Feeds {
    /// Feeds on a window and its database. `caught_up` tells whether the window is close enough to
    /// the database that a run may be answered from memory; `drain` ends all holds.
    pub fn new(
        feed: Arc<Feed>,
        reader: Arc<Reader>,
        caught_up: Arc<AtomicBool>,
        drain: CancellationToken,
        settings: FeedSettings,
    ) -> Self {
        Feeds {
            feed,
            reader,
            drain,
            caught_up,
            chunks: Chunks::new(settings.chunk_bytes),
            settings,
            facts: FactsMemory::default(),
            flights: Flights::default(),
            just_created: Gate::new(JUST_CREATED_PLACES, 0, "just_created"),
            asked: Asked::default(),
        }
    }

    /// The feeds' own work: wakes crowds, reads what the stream leaves out, tells what is held, and ends
    /// holds when the drain begins. To be polled for as long as they are served.
    pub async fn run(&self) {
        let tell = async {
            loop {
                metrics::gauge!(crate::telemetry::CHUNK_BYTES).set(self.chunks.bytes() as f64);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let drain = async {
            self.drain.cancelled().await;
            self.end_holds();
        };
        tokio::join!(self.feed.waiters.run_rounds(), self.tell_untold(), tell, drain);
    }

    /// Wakes whoever is held, once the drain has begun: those who wait listen to nothing else, since
    /// a place in the drain's own list would cost each of them as much as their place in a topic's.
    pub fn end_holds(&self) {
        self.feed.waiters.wake_all_at_once();
    }

    /// Ends what waits with a lease that is over.
    pub fn end_leases(&self) {
        self.feed.waiters.wake_ended();
    }

    /// The internal id of a batch. One that was just created is waited for.
    pub async fn batch_id(
        &self,
        environment: &Arc<str>,
        friendly_id: &Arc<str>,
    ) -> Result<Option<Arc<str>>, Unavailable> {
        if let Some(id) = self.reader.batch_id(environment, friendly_id).await? {
            return Ok(Some(id));
        }
        let Some(_place) = self.just_created.try_enter(environment) else { return Ok(None) };
        let deadline = tokio::time::Instant::now() + self.settings.just_created_wait;
        let mut pause = Duration::from_millis(25);
        while tokio::time::Instant::now() + pause < deadline {
            tokio::time::sleep(pause).await;
            if let Some(id) = self.reader.batch_id(environment, friendly_id).await? {
                return Ok(Some(id));
            }
            pause *= 2;
        }
        Ok(None)
    }

    /// A list's pinned floor as an opening takes it: never lower than the operator allows now.
    pub(super) fn floor_to_open(&self, pinned: Floor) -> Floor {
        pinned.max(Floor::before(SystemTime::now(), self.settings.created_max))
    }

    /// The same as a poll takes it. What its client has must not leave the list merely because time
    /// passes, so it is kept for as long again.
    pub(super) fn floor_to_follow(&self, pinned: Floor) -> Floor {
        pinned.max(Floor::before(SystemTime::now(), 2 * self.settings.created_max))
    }

    /// Tells a client to start again, not behind what it has seen of this database.
    pub fn refetch(&self, view: &View, handle: &str, after: Position) -> Outcome {
        metrics::counter!(crate::telemetry::REFETCHES).increment(1);
        let (epoch, head) = {
            let state = self.feed.state.read();
            (state.epoch, state.head)
        };
        let Some(epoch) = epoch else { return Outcome::Unavailable };
        let digest = view.feed.digest(view.columns);
        let known = Handle::decode(handle).filter(|handle| handle.epoch == epoch);
        let mut handle = Handle::issue(epoch, digest, head);
        // Who has got a part of a list has seen what it was read from.
        let part = |known: &Handle| after.is_part().then(|| Position::before(known.start));
        // Rows of a query show more than the offset that they came with.
        let shown =
            |known: &Handle| known.horizon.as_ref().map(|shown| Position::before(shown.lsn));
        let seen = known
            .as_ref()
            .map(|known| part(known).unwrap_or(after).max(shown(known).unwrap_or_default()));
        handle.not_before = Some(seen.unwrap_or_default());
        handle.whole = after.is_part();
        handle.floor = known.filter(|known| known.feed == digest).and_then(|known| known.floor);
        Outcome::MustRefetch(handle.encode())
    }

    /// Whether the stream can ever come to this position: one beyond the server's own log was never
    /// issued, or not by this server. Who cannot ask does not send a client away.
    pub(super) async fn is_reachable(&self, position: Position) -> bool {
        if position <= Position::before(self.feed.head()) {
            return true;
        }
        // Boxed, since it is rarely needed and takes eight times the memory of all else in a poll.
        let server = Box::pin(tokio::time::timeout(CATCH_UP_WAIT, self.reader.server_state()));
        match server.await {
            Ok(Ok(server)) => position.lsn <= server.insert_lsn,
            _ => true,
        }
    }

    /// Waits until this node has come to what the client has seen, as the handle says that a 409
    /// gave it. `false` when that takes too long.
    pub(super) async fn has_caught_up_with(&self, handle: &Handle) -> bool {
        let Some(position) = handle.not_before else { return true };
        !self.is_reachable(position).await || reach(&self.feed, position.lsn, CATCH_UP_WAIT).await
    }

    /// The messages of some news.
    pub(super) fn messages(view: &View, news: Vec<RunNews>) -> Vec<Part> {
        let parts = news.into_iter().filter_map(|RunNews { image, operation, changed }| {
            let columns = match operation {
                Operation::Insert => view.columns,
                Operation::Update => changed.intersection(view.columns),
                Operation::Delete => ColumnSet::EMPTY,
            };
            // Where only what this client leaves out has changed, there is nothing to say.
            let silent = operation == Operation::Update && columns.is_empty();
            let key = MessageKey { columns, operation, old_statuses: view.old_statuses };
            (!silent).then_some((image, key))
        });
        parts.collect()
    }

    /// The parts, in which every inserted row is whole. A row that the stream never sent whole is read
    /// from the database, and left out if it is gone by now.
    pub(super) async fn filled_parts(
        &self,
        view: &View,
        parts: Vec<Part>,
    ) -> Result<Vec<Part>, Unavailable> {
        if !parts.iter().any(lacks) {
            return Ok(parts);
        }
        let whole = parts.into_iter().map(|part| async {
            if !lacks(&part) {
                return Ok(Some(part));
            }
            let (image, key) = part;
            let image = self.filled(view.feed.environment(), &image).await?;
            Ok::<_, Unavailable>(image.map(|image| (image, key)))
        });
        Ok(try_join_all(whole).await?.into_iter().flatten().collect())
    }

    /// The image with its unknown columns read from the database, once for all who need them.
    ///
    /// The query may see a later version. What it adds is a column that had not changed up to the
    /// image's version, and whatever changed it later follows.
    pub(super) async fn filled(
        &self,
        environment: &Arc<str>,
        image: &Arc<Image>,
    ) -> Result<Option<Arc<Image>>, Unavailable> {
        let read = || async {
            let id: Arc<str> = image.text(Column::Id).unwrap_or_default().into();
            let read = self.reader.row(environment, &id).await?;
            Ok::<_, Unavailable>(read.run.as_ref().map(|stored| {
                let whole = image.filled_from(&Image::of_row(&stored.row));
                Arc::new(whole.counted_whole_in(&self.feed.rendered))
            }))
        };
        image.filled.get_or_try_init(read).await.cloned()
    }
}

/// Whether it is a row that has to be whole and is not.
pub(super) fn lacks((image, key): &Part) -> bool {
    key.operation == Operation::Insert && !image.unknown().intersection(key.columns).is_empty()
}

/// Waits until the stream has come to `lsn`; `false` when it does not in time.
pub(super) async fn reach(feed: &Feed, lsn: Lsn, within: Duration) -> bool {
    let mut head = feed.head.subscribe();
    let reached = head.wait_for(|head| *head >= lsn);
    matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
}
