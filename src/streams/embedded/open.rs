//! Opening it: its lock, its settings, its basins.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use parking_lot::Mutex;
use s2_common::basin::BasinName;
use s2_common::config::{
    BasinConfig, OptionalDeleteOnEmptyConfig, OptionalStreamConfig, RetentionPolicy,
};
use s2_common::resources::ProvisionMode;
use s2_lite::backend::error::ProvisionBasinError;
use s2_lite::backend::{Backend, bgtasks};
use slatedb::config::{GarbageCollectorDirectoryOptions, GarbageCollectorOptions};
use slatedb::db_cache::foyer::{FoyerCache, FoyerCacheOptions};
use slatedb::object_store::local::LocalFileSystem;

use super::room::Room;
use super::{ATTEMPTS, Embedded, unavailable};
use crate::streams::store::StoreError;

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

#[derive(Clone)]
pub(super) struct Opened {
    pub backend: Backend,
    pub routes: Router,
    pub room: Room,
    /// Basins that are known to exist.
    basins: Arc<Mutex<HashSet<BasinName>>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Keeps other processes away from the directory, also those that took over a dead one's.
    pub lock: Option<File>,
    failed: Option<(Instant, StoreError)>,
    pub closed: bool,
}

impl Embedded {
    /// The store, open, and with this basin.
    pub(super) async fn in_basin(&self, basin: &BasinName) -> Result<Opened, StoreError> {
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
    pub(super) async fn open(&self) -> Result<Opened, StoreError> {
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
                let why = match &error {
                    StoreError::Unavailable(why) | StoreError::Refused(why) => why.clone(),
                    StoreError::Full => error.to_string(),
                };
                // It is tried again and again.
                if self.trouble.lock().replace(why.clone()).as_ref() != Some(&why) {
                    tracing::warn!(why, "the stream store could not be opened");
                }
                opening.failed = Some((Instant::now(), error.clone()));
                self.end_threads();
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
            self.end_threads();
        }
        if opening.lock.is_none() {
            opening.lock = Some(self.lock()?);
        }
        let directory = self.settings.directory.clone();
        let (flush, min_free) = (self.settings.flush, self.settings.min_free);
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
            let room = Room::watch(directory, min_free);
            Ok(Opened { backend, routes, room, basins: Arc::default() })
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
