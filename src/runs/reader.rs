//! Reads for the feeds: the store, with gates, budgets, deadlines, batches and single flight around it.

use std::sync::Arc;
use std::time::Duration;

use super::flights::{Bounds, Flights};
use super::list::{List, ListQuery};
use super::many::{By, Carry, RunId};
use super::shared_read::SharedRead;
use super::store::{RunStore, Seen, ServerState, StoreError, StoredRun};
use super::together::{self, Together};
use crate::limits::{Budget, Full, Gate, Share};

/// Whether a request may be refused soon or is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// A client's first request ([`ReaderLimits::wait`]).
    Fresh,
    /// One that answers a 409, and comes in waves ([`ReaderLimits::parked_wait`]).
    Parked,
}

/// A read that did not happen. The caller may ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too many wait already.
    #[error("too many wait")]
    Full,
    /// Its turn or the answer did not come in time.
    #[error("not in time")]
    Late,
    /// The database refused, or is not there.
    #[error("the database did not answer")]
    Failed,
}

impl From<Full> for Unavailable {
    fn from(Full: Full) -> Self {
        Unavailable::Full
    }
}

impl Unavailable {
    /// Logs why a statement failed; `None` if it did not end in time.
    pub(super) fn of(error: Option<StoreError>) -> Self {
        match error {
            Some(error) => {
                tracing::warn!(%error, "runs could not be read");
                Unavailable::Failed
            }
            None => {
                tracing::warn!("runs could not be read in time");
                Unavailable::Late
            }
        }
    }
}

/// What bounds a [`Reader`].
#[derive(Clone, Debug)]
pub struct ReaderLimits {
    /// The size of the store's pool.
    pub connections: usize,
    /// Requests of each kind that wait.
    pub waiting: usize,
    /// Bytes of lists and large rows in memory.
    pub bytes: usize,
    /// The same for one environment.
    pub bytes_per_environment: usize,
    /// Runs in one batch, or lists.
    pub batch: usize,
    /// Bytes of rows in one batch.
    pub batch_bytes: usize,
    /// A row above this is read by itself.
    pub row_bytes: usize,
    /// For how long a statement may take, and a request wait for its turn.
    pub wait: Duration,
    /// For how long a request waits that is parked.
    pub parked_wait: Duration,
}

impl Default for ReaderLimits {
    fn default() -> Self {
        ReaderLimits {
            connections: 8,
            waiting: 100_000,
            bytes: 128 << 20,
            bytes_per_environment: 64 << 20,
            batch: 1_000,
            batch_bytes: 16 << 20,
            row_bytes: 256 << 10,
            wait: Duration::from_secs(10),
            parked_wait: Duration::from_secs(60),
        }
    }
}

/// One run as a statement saw it.
#[derive(Debug)]
pub struct RunRead {
    /// What the statement saw.
    pub seen: Arc<Seen>,
    /// The run, if it is there.
    pub run: Option<StoredRun>,
    /// The bytes of a large row.
    pub(super) _share: Option<Share>,
}

/// A list, and the bytes that it counts for as long as it is kept.
#[derive(Debug)]
pub struct ListRead {
    /// What was read.
    pub list: List,
    /// Its bytes, and those of lists that were read along with it.
    pub share: Arc<Share>,
}

/// Reads runs for the feeds.
#[derive(Debug)]
pub struct Reader {
    store: RunStore,
    runs: Flights,
    rows: Flights,
    lists: Together,
    gate: Gate,
    look_ups: Gate,
    budget: Budget,
    batch_ids: moka::sync::Cache<RunId, Arc<str>>,
    server_state: SharedRead<Result<ServerState, Unavailable>>,
    wait: Duration,
    parked_wait: Duration,
}

impl Reader {
    /// A reader on the store, whose pool nobody else should use. Needs a runtime.
    pub fn new(store: RunStore, limits: ReaderLimits) -> Arc<Self> {
        // Of eight connections two each are for the batches, three for lists and large rows, and
        // one for what is small.
        let batches = (limits.connections / 4).max(1);
        let others = limits.connections.saturating_sub(2 * batches + 1).max(1);
        let gate = Gate::new(others, limits.waiting, "list");
        let budget =
            Budget::new(limits.bytes, limits.bytes_per_environment, limits.waiting, "bytes");
        let flights = |name, by| {
            let bounds = Bounds {
                name,
                at_once: batches,
                waiting: limits.waiting,
                batch: limits.batch,
                // Any row that comes along fits into a batch of its own, or it would go round for ever.
                carry: Carry {
                    row: limits.row_bytes,
                    all: limits.batch_bytes.max(limits.row_bytes),
                },
                gate: gate.clone(),
                budget: budget.clone(),
                query_wait: limits.wait,
                patience: limits.parked_wait,
            };
            Flights::start(store.clone(), by, bounds)
        };
        let lists = together::Bounds {
            waiting: Gate::new(limits.waiting, 0, "lists"),
            batch: limits.batch,
            gate: gate.clone(),
            budget: budget.clone(),
            query_wait: limits.wait,
            patience: limits.parked_wait,
        };
        Arc::new(Reader {
            lists: Together::new(store.clone(), lists),
            runs: flights("run", By::FriendlyId),
            rows: flights("row", By::InternalId),
            look_ups: Gate::new(1, limits.waiting, "look-up"),
            batch_ids: moka::sync::Cache::new(100_000),
            server_state: SharedRead::new(),
            wait: limits.wait,
            parked_wait: limits.parked_wait,
            store,
            gate,
            budget,
        })
    }

    /// The run of this friendly id, as of now or later.
    pub async fn run(
        &self,
        environment: &Arc<str>,
        friendly_id: &Arc<str>,
        patience: Patience,
    ) -> Result<Arc<RunRead>, Unavailable> {
        let run = RunId { environment: Arc::clone(environment), id: Arc::clone(friendly_id) };
        self.runs.read(run, self.wait(patience)).await
    }

    /// The run of this internal id, as of now or later, with every cell that the stream left out.
    pub async fn row(
        &self,
        environment: &Arc<str>,
        internal_id: &Arc<str>,
    ) -> Result<Arc<RunRead>, Unavailable> {
        let run = RunId { environment: Arc::clone(environment), id: Arc::clone(internal_id) };
        self.rows.read(run, self.wait).await
    }

    /// A list, which keeps its bytes until it is dropped.
    pub async fn list(
        &self,
        query: ListQuery,
        patience: Patience,
    ) -> Result<ListRead, Unavailable> {
        let query = match self.lists.read(query, self.wait(patience)).await {
            Ok(read) => return read,
            Err(other) => other,
        };
        let environment = Arc::clone(&query.environment);
        let mut share =
            self.budget.take(&environment, query.max_bytes, self.wait(patience)).await?;
        let place = self.gate.enter(&environment, self.wait(patience)).await?;
        let (store, wait) = (self.store.clone(), self.wait);
        // Once it is sent, the statement is left to end, whoever goes away.
        let read = tokio::spawn(async move {
            let _place = place;
            let list = answer(wait, store.list(&query)).await?;
            share.resize(list.rows.iter().map(|row| row.size()).sum());
            Ok(ListRead { list, share: Arc::new(share) })
        });
        read.await.unwrap_or(Err(Unavailable::Failed))
    }

    /// The internal id of an environment's batch. It never changes, so it is remembered.
    pub async fn batch_id(
        &self,
        environment: &Arc<str>,
        friendly_id: &Arc<str>,
    ) -> Result<Option<Arc<str>>, Unavailable> {
        let batch = RunId { environment: Arc::clone(environment), id: Arc::clone(friendly_id) };
        if let Some(id) = self.batch_ids.get(&batch) {
            return Ok(Some(id));
        }
        let place = self.look_ups.enter(environment, self.wait).await?;
        // Whoever was before us may have asked for the same.
        if let Some(id) = self.batch_ids.get(&batch) {
            return Ok(Some(id));
        }
        let (store, wait, known) = (self.store.clone(), self.wait, self.batch_ids.clone());
        let read = tokio::spawn(async move {
            let _place = place;
            let id = answer(wait, store.batch_id(&batch.id, &batch.environment)).await?;
            if let Some(id) = &id {
                known.insert(batch, Arc::clone(id));
            }
            Ok(id)
        });
        read.await.unwrap_or(Err(Unavailable::Failed))
    }

    /// The bytes that lists and large rows count for until they are dropped.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn wait(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Fresh => self.wait,
            Patience::Parked => self.parked_wait,
        }
    }

    /// How far the server is, now or later.
    pub async fn server_state(&self) -> Result<ServerState, Unavailable> {
        let (store, wait) = (self.store.clone(), self.wait);
        let read = async move { answer(wait, store.server_state()).await };
        self.server_state.get(read).await.unwrap_or(Err(Unavailable::Failed))
    }
}

async fn answer<T>(
    wait: Duration,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Unavailable> {
    match tokio::time::timeout(wait, read).await {
        Ok(answer) => answer.map_err(|error| Unavailable::of(Some(error))),
        Err(_) => Err(Unavailable::of(None)),
    }
}
