//! The store in this process: s2-lite on local disk. The only module that knows its interface.
//!
//! It runs on threads of its own, and whatever becomes of it is an error to whoever asks it: the
//! process and its run feeds go on. It opens with its first use, and anew when it was closed under us.

mod append;
mod open;
mod read;
mod room;
mod serve;
#[cfg(test)]
mod tests;
mod threads;

use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use s2_common::basin::BasinName;
use s2_common::stream::StreamName;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use self::open::{Opened, Opening};
use self::threads::Threads;
use super::store::{StoreError, StoreSettings, StreamId};

/// For how long an operation may keep its caller waiting.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// Two who create the same stream at once get in each other's way; the second attempt finds it there.
const ATTEMPTS: usize = 5;
/// Threads for work on files.
const FILES: usize = 16;
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
    threads: Mutex<Option<Threads>>,
}

impl Embedded {
    /// A store that is not open yet.
    pub fn new(settings: StoreSettings) -> Embedded {
        Embedded {
            settings,
            opened: RwLock::default(),
            trouble: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            threads: Mutex::default(),
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
        self.trouble.lock().clone().or_else(|| {
            let opened = self.opened.read();
            let closed = |opened: &&Opened| opened.backend.db_status().is_err();
            opened.as_ref().filter(closed).map(|_| "it was closed".to_owned())
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
        self.end_threads();
        opening.lock = None;
    }

    /// Closes what is open without the store's knowing, as a fault does.
    #[cfg(test)]
    pub(in crate::streams) async fn break_off(&self) {
        let opened = self.opened.read().clone();
        if let Some(opened) = opened {
            let _ = self.patiently(async move { opened.backend.close().await }).await;
        }
    }

    /// Runs on the store's threads, and waits no longer than [`PATIENCE`].
    async fn patiently<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.patiently_on(&self.handle()?, work).await
    }

    async fn patiently_on<T: Send + 'static>(
        &self,
        threads: &Handle,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let work = AbortOnDropHandle::new(threads.spawn(work));
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

    /// Ends the threads, and with them all that still runs on them. s2-lite's own upkeep would go on for
    /// ever, and hold on to a store that is closed.
    fn end_threads(&self) {
        if let Some(threads) = self.threads.lock().take() {
            threads.end();
        }
    }

    fn handle(&self) -> Result<Handle, StoreError> {
        self.on_threads(|threads| threads.present().clone())
    }

    /// The threads for what those need who catch up.
    fn past_handle(&self) -> Result<Handle, StoreError> {
        self.on_threads(|threads| threads.past().clone())
    }

    fn on_threads<T>(&self, look: impl FnOnce(&Threads) -> T) -> Result<T, StoreError> {
        let mut threads = self.threads.lock();
        if let Some(threads) = &*threads {
            return Ok(look(threads));
        }
        Ok(look(threads.insert(Threads::start().map_err(StoreError::of)?)))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Not waited for, which would be an error inside of another runtime.
        self.end_threads();
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

fn names(stream: &StreamId) -> Result<(BasinName, StreamName), StoreError> {
    Ok((stream.basin.parse().map_err(refused)?, stream.name.parse().map_err(refused)?))
}
