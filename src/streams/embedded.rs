//! The store in this process: s2-lite on local disk. The only module that knows its interface.
//!
//! It runs on threads of its own, and whatever becomes of it is an error to whoever asks it: the
//! process and its run feeds go on. It opens with its first use, and anew when it was closed under us.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::http::{Request, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::{Mutex, RwLock};
use s2_common::basin::BasinName;
use s2_common::config::{
    BasinConfig, OptionalDeleteOnEmptyConfig, OptionalStreamConfig, RetentionPolicy,
};
use s2_common::record::{Metered, MeteredSize as _, Record, StreamPosition};
use s2_common::resources::ProvisionMode;
use s2_common::stream::{
    AppendInput, AppendRecord, AppendRecordParts, ReadBatch, ReadEnd, ReadFrom, ReadSessionOutput,
    ReadStart, StreamName,
};
use s2_lite::backend::error::{AppendError, ProvisionBasinError, ReadError};
use s2_lite::backend::{Backend, bgtasks};
use slatedb::config::{GarbageCollectorDirectoryOptions, GarbageCollectorOptions};
use slatedb::db_cache::foyer::{FoyerCache, FoyerCacheOptions};
use slatedb::object_store::local::LocalFileSystem;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::batch::{Batch, BatchBuilder};
use super::store::{Event, Position, Reading, Start, StoreError, StoreSettings, StreamId};

/// What upstream provisions: how long records stay, and streams that have none.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const EMPTY_FOR: Duration = Duration::from_secs(60 * 60);
/// Bytes of appends that are not durable yet, of all streams; more wait.
const APPENDS_IN_FLIGHT: u64 = 64 << 20;
/// Bytes that are not on their way to the tables yet; more wait.
const MAX_UNFLUSHED: usize = 128 << 20;
/// What is collected in memory before it becomes a table, in bytes.
const TABLE: usize = 16 << 20;
/// What is kept of tables in memory, in bytes.
const CACHE: u64 = 64 << 20;
/// How often files that are not needed any more are looked for, and how old they are before they go.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
const COLLECT_AFTER: Duration = Duration::from_secs(60);
/// How often a write or read of a file is tried again before the store is closed.
const FILE_RETRIES: u32 = 4;
/// A store that could not be opened is left alone for so long.
const REST: Duration = Duration::from_secs(1);
/// For how long an operation may keep its caller waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// Two who create the same stream at once get in each other's way; the second attempt finds it there.
const ATTEMPTS: usize = 5;
/// Batches that a read is ahead of its reader.
const AHEAD: usize = 2;

/// The store. What it holds open it gives up when it is dropped.
#[derive(Debug)]
pub struct Embedded {
    settings: StoreSettings,
    opened: RwLock<Option<Opened>>,
    /// Why it is not open.
    trouble: Mutex<Option<String>>,
    /// Held by whoever opens it.
    opening: tokio::sync::Mutex<Opening>,
    /// Made with the first use: a gateway that has no streams has no threads for them.
    runtime: Mutex<Option<Runtime>>,
}

#[derive(Clone)]
struct Opened {
    backend: Backend,
    routes: Router,
    /// Basins that are known to exist.
    basins: Arc<Mutex<HashSet<BasinName>>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Opening {
    /// Keeps other processes away from the directory, also those that took over a dead one's.
    lock: Option<File>,
    failed: Option<(Instant, StoreError)>,
    closed: bool,
}

impl Embedded {
    /// A store that is not open yet.
    pub fn new(settings: StoreSettings) -> Embedded {
        Embedded {
            settings,
            opened: RwLock::default(),
            trouble: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            runtime: Mutex::default(),
        }
    }

    /// See [`super::Store::wake`].
    pub async fn wake(&self) {
        if self.settings.directory.exists() {
            // It says why not, and is asked again by whoever needs it.
            let _ = self.open().await;
        }
    }

    /// See [`super::Store::trouble`].
    pub fn trouble(&self) -> Option<String> {
        let closed = || Some("it was closed".to_owned());
        self.trouble.lock().clone().or_else(|| {
            let opened = self.opened.read();
            opened
                .as_ref()
                .filter(|opened| opened.backend.db_status().is_err())
                .and_then(|_| closed())
        })
    }

    /// See [`super::Store::close`].
    pub async fn close(&self) {
        let mut opening = self.opening.lock().await;
        opening.closed = true;
        let opened = self.opened.write().take();
        if let Some(opened) = opened {
            let close = self.on_runtime(async move { opened.backend.close().await });
            if let Ok(close) = close {
                let _ = tokio::time::timeout(Duration::from_secs(3), close).await;
            }
        }
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
        opening.lock = None;
    }

    /// Closes what is open without the store's knowing, as a fault does.
    #[cfg(test)]
    pub(super) async fn break_off(&self) {
        let opened = self.opened.read().clone();
        if let Some(opened) = opened {
            let _ = self.patiently(async move { opened.backend.close().await }).await;
        }
    }

    /// See [`super::Store::append`].
    pub async fn append(&self, stream: &StreamId, body: Bytes) -> Result<(), StoreError> {
        let record = Record::try_from_parts(Vec::new(), body).map_err(refused)?;
        let parts = AppendRecordParts { timestamp: None, record: Metered::from(record) };
        let record: AppendRecord = parts.try_into().map_err(refused)?;
        let (basin, name) = names(stream)?;
        let opened = self.in_basin(&basin).await?;
        let work = async move {
            for _ in 1..ATTEMPTS {
                match append(&opened.backend, &basin, &name, record.clone()).await {
                    Err(AppendError::TransactionConflict(_)) => {}
                    done => return done,
                }
            }
            append(&opened.backend, &basin, &name, record).await
        };
        let done = self.patiently(work).await?;
        done.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// See [`super::Store::read`].
    pub async fn read(
        &self,
        stream: &StreamId,
        start: Start,
        follow: bool,
    ) -> Result<Reading, StoreError> {
        let (basin, name) = names(stream)?;
        let opened = self.in_basin(&basin).await?;
        let from = match start {
            Start::At(seq_num) => ReadFrom::SeqNum(seq_num),
            Start::Latest => ReadFrom::TailOffset(0),
        };
        let start = ReadStart { from, clamp: true };
        let end = ReadEnd { wait: (!follow).then_some(Duration::ZERO), ..ReadEnd::default() };
        let (send, receive) = mpsc::channel(AHEAD);
        let work = async move {
            let session = open_read(&opened.backend, &basin, &name, start, end).await?;
            // On the store's threads, for as long as somebody listens.
            tokio::spawn(async move {
                let mut session = std::pin::pin!(session);
                loop {
                    let output = tokio::select! {
                        output = session.next() => output,
                        () = send.closed() => return,
                    };
                    let event = match output {
                        None => return,
                        Some(Ok(ReadSessionOutput::Heartbeat(tail))) => {
                            Ok(Event::Tail(position(tail)))
                        }
                        Some(Ok(ReadSessionOutput::Batch(batch))) => match render(&batch) {
                            Some(batch) => Ok(Event::Batch(Arc::new(batch))),
                            None => continue,
                        },
                        Some(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
                    };
                    if send.send(event).await.is_err() {
                        return;
                    }
                }
            });
            Ok::<_, ReadError>(())
        };
        let done = self.patiently(work).await?;
        done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(receive)
    }

    /// See [`super::Store::serve`].
    pub async fn serve(
        &self,
        basin: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, StoreError> {
        let basin: BasinName = basin.parse().map_err(refused)?;
        let opened = self.in_basin(&basin).await?;
        let answer = async move {
            let Ok(response) = opened.routes.oneshot(request).await;
            response
        };
        // No deadline: a read may wait for a minute. Who goes away ends it.
        let answer = self.on_runtime(answer)?;
        let response = answer.await.map_err(|_| unavailable("it gave up on a request"))?;
        if response.body().size_hint().exact().is_some() {
            return Ok(response);
        }
        // A session is worked at wherever its answer is asked for, so it is asked for on these threads.
        let (head, body) = response.into_parts();
        let (send, mut receive) = mpsc::channel(AHEAD);
        let pump = self.on_runtime(async move {
            let mut body = body.into_data_stream();
            loop {
                let next = tokio::select! {
                    next = body.next() => next,
                    () = send.closed() => return,
                };
                let Some(next) = next else { return };
                if send.send(next).await.is_err() {
                    return;
                }
            }
        })?;
        let body = async_stream::stream! {
            let mut pump = pump;
            while let Some(piece) = receive.recv().await {
                yield piece;
            }
            // A clean end is only one if it came to it.
            if (&mut pump).await.is_err() {
                yield Err(axum::Error::new(unavailable("it gave up on a session")));
            }
        };
        Ok(Response::from_parts(head, Body::from_stream(body)))
    }

    /// The store, open, and with this basin.
    async fn in_basin(&self, basin: &BasinName) -> Result<Opened, StoreError> {
        let opened = self.open().await?;
        if opened.basins.lock().contains(basin) {
            return Ok(opened);
        }
        let config = BasinConfig {
            create_stream_on_append: true,
            create_stream_on_read: true,
            default_stream_config: OptionalStreamConfig {
                retention_policy: Some(RetentionPolicy::Age(RETENTION)),
                delete_on_empty: OptionalDeleteOnEmptyConfig { min_age: Some(EMPTY_FOR) },
                ..OptionalStreamConfig::default()
            },
            ..BasinConfig::default()
        };
        let (backend, name) = (opened.backend.clone(), basin.clone());
        let work = async move {
            let mut attempt = 0;
            loop {
                // As it is, if it is there: its settings may be somebody's who changed them.
                let mode = ProvisionMode::CreateOnly { request_token: None };
                let done = backend.provision_basin(name.clone(), config.clone(), mode).await;
                attempt += 1;
                match done {
                    Ok(_) | Err(ProvisionBasinError::BasinAlreadyExists(_)) => return Ok(()),
                    Err(error) if attempt == ATTEMPTS => return Err(error),
                    Err(_) => {}
                }
            }
        };
        let done = self.patiently(work).await?;
        done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        opened.basins.lock().insert(basin.clone());
        Ok(opened)
    }

    /// The store, opened if it is not, or no longer.
    async fn open(&self) -> Result<Opened, StoreError> {
        if let Some(opened) = self.lives() {
            return Ok(opened);
        }
        let mut opening = self.opening.lock().await;
        // Whoever was before us may have opened it, or failed to.
        if let Some(opened) = self.lives() {
            return Ok(opened);
        }
        if opening.closed {
            return Err(unavailable("the gateway is shutting down"));
        }
        if let Some((at, error)) = &opening.failed
            && at.elapsed() < REST
        {
            return Err(error.clone());
        }
        let before = self.opened.write().take();
        match self.open_anew(&mut opening, before).await {
            Ok(opened) => {
                tracing::info!(directory = %self.settings.directory.display(), "the stream store is open");
                opening.failed = None;
                *self.trouble.lock() = None;
                *self.opened.write() = Some(opened.clone());
                Ok(opened)
            }
            Err(error) => {
                let (StoreError::Unavailable(why) | StoreError::Refused(why)) = &error;
                // It is tried again and again.
                if self.trouble.lock().replace(why.clone()).as_ref() != Some(why) {
                    tracing::warn!(why, "the stream store could not be opened");
                }
                opening.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn lives(&self) -> Option<Opened> {
        let opened = self.opened.read();
        opened.as_ref().filter(|opened| opened.backend.db_status().is_ok()).cloned()
    }

    async fn open_anew(
        &self,
        opening: &mut Opening,
        before: Option<Opened>,
    ) -> Result<Opened, StoreError> {
        if let Some(before) = before {
            tracing::warn!(why = ?before.backend.db_status(), "the stream store was closed");
            // What it still holds; it has failed already.
            let _ = self.patiently(async move { before.backend.close().await }).await;
        }
        if opening.lock.is_none() {
            opening.lock = Some(self.lock()?);
        }
        let directory = self.settings.directory.clone();
        let flush = self.settings.flush;
        let work = async move {
            let files = LocalFileSystem::new_with_prefix(&directory).map_err(StoreError::of)?;
            let files = Arc::new(files.with_fsync(true));
            let cache = FoyerCacheOptions { max_capacity: CACHE, shards: 4 };
            let database = slatedb::Db::builder("", files)
                .with_settings(settings(flush))
                .with_db_cache(Arc::new(FoyerCache::new_with_opts(cache)), 0)
                .build();
            let database = database.await.map_err(StoreError::of)?;
            let backend = Backend::new(database, bytesize::ByteSize(APPENDS_IN_FLIGHT));
            bgtasks::spawn(&backend);
            let routes = s2_lite::handlers::v1::router().with_state(backend.clone());
            Ok(Opened { backend, routes, basins: Arc::default() })
        };
        self.patiently(work).await?
    }

    /// One process at a time: a second one on the same directory would fence the first, and be fenced
    /// by it when that one opens anew.
    fn lock(&self) -> Result<File, StoreError> {
        let directory = &self.settings.directory;
        // What is in it is nobody else's.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(StoreError::of)?;
        let path = directory.with_extension("lock");
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(StoreError::of)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(unavailable("another process uses its directory")),
            Err(TryLockError::Error(error)) => Err(StoreError::of(error)),
        }
    }

    /// Runs on the store's threads, and waits no longer than [`PATIENCE`].
    async fn patiently<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let work = self.on_runtime(work)?;
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(unavailable("it gave up")),
            Err(_) => Err(unavailable("it did not answer in time")),
        }
    }

    /// Runs on the store's threads for as long as what is returned lives.
    fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<AbortOnDropHandle<T>, StoreError> {
        Ok(AbortOnDropHandle::new(self.handle()?.spawn(work)))
    }

    fn handle(&self) -> Result<Handle, StoreError> {
        let mut runtime = self.runtime.lock();
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        // Half of the cores: the run feeds have the other half for themselves, whatever happens here.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads((cores / 2).max(1)).max_blocking_threads(16);
        let built = builder.thread_name("streams").enable_all().build().map_err(StoreError::of)?;
        let handle = built.handle().clone();
        *runtime = Some(built);
        Ok(handle)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Not waited for, which would be an error inside of another runtime.
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}

impl StoreError {
    fn of(error: impl std::fmt::Display) -> StoreError {
        StoreError::Unavailable(error.to_string())
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.to_owned())
}

fn refused(why: impl std::fmt::Display) -> StoreError {
    StoreError::Refused(why.to_string())
}

fn settings(flush: Duration) -> slatedb::Settings {
    let directory = Some(GarbageCollectorDirectoryOptions {
        interval: Some(COLLECT_EVERY),
        min_age: COLLECT_AFTER,
        dry_run: false,
    });
    let collector = GarbageCollectorOptions {
        manifest_options: directory,
        wal_options: directory,
        compacted_options: directory,
        compactions_options: directory,
        ..GarbageCollectorOptions::default()
    };
    slatedb::Settings {
        flush_interval: Some(flush),
        max_unflushed_bytes: MAX_UNFLUSHED,
        l0_sst_size_bytes: TABLE,
        object_store_max_retries: Some(FILE_RETRIES),
        garbage_collector_options: Some(collector),
        ..slatedb::Settings::default()
    }
}

fn names(stream: &StreamId) -> Result<(BasinName, StreamName), StoreError> {
    Ok((stream.basin.parse().map_err(refused)?, stream.name.parse().map_err(refused)?))
}

async fn append(
    backend: &Backend,
    basin: &BasinName,
    name: &StreamName,
    record: AppendRecord,
) -> Result<(), AppendError> {
    let records = vec![record].try_into();
    // One record that was measured before is a batch.
    let Ok(records) = records else { return Ok(()) };
    let input = AppendInput { records, match_seq_num: None, fencing_token: None };
    let stream =
        backend.open_for_append(basin, name, None, OptionalStreamConfig::default()).await?;
    stream.append(input).await.map(drop)
}

async fn open_read(
    backend: &Backend,
    basin: &BasinName,
    name: &StreamName,
    start: ReadStart,
    end: ReadEnd,
) -> Result<impl futures_util::Stream<Item = Result<ReadSessionOutput, ReadError>> + use<>, ReadError>
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        let config = OptionalStreamConfig::default();
        match backend.open_for_read(basin, name, None, config).await {
            Err(ReadError::TransactionConflict(_)) if attempt < ATTEMPTS => {}
            stream => return stream?.read(start, end).await,
        }
    }
}

fn position(position: StreamPosition) -> Position {
    Position { seq_num: position.seq_num, timestamp: position.timestamp }
}

fn render(batch: &ReadBatch) -> Option<Batch> {
    let records = &batch.records;
    let mut builder = BatchBuilder::new(records.metered_size(), records.len());
    for record in records.iter() {
        let (headers, body) = record.inner().clone().into_parts();
        let pairs = headers.iter().map(|header| (&header.name[..], &header.value[..]));
        builder.push(position(*record.position()), pairs, &body, record.metered_size());
    }
    builder.build(batch.tail.map(position))
}
