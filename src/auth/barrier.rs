//! Waiting until the stream has passed what the database showed to others.
//!
//! A key that memory does not know may have been made a moment ago. Asking the database for each such
//! key would let a flood of garbage reach it. Instead all who miss something wait together for the
//! stream to pass the end of the server's log, which is asked for once for all of them: after that
//! memory knows everything that was there when they came.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sqlx::PgPool;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{keyring::Keyring, lookup};
use crate::postgres::Lsn;

/// At most so often the database is asked.
const INTERVAL: Duration = Duration::from_millis(20);
/// For how long the stream is waited for. One that is later than this is no help.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// What is flushed at its commit has come after this.
const SHORTLY: Duration = Duration::from_millis(50);
/// How often it is looked whether it has come.
const LOOK: Duration = Duration::from_millis(2);

/// The waiting room.
#[derive(Debug)]
pub(super) struct Barrier {
    /// How many rounds have begun.
    begun: AtomicU64,
    wanted: Notify,
    /// The last round that has ended, and whether the stream has passed.
    ended: watch::Sender<(u64, bool)>,
}

impl Default for Barrier {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            wanted: Notify::new(),
            ended: watch::Sender::new((0, false)),
        }
    }
}

impl Barrier {
    /// Waits until memory knows all that was committed and visible when this was called. `false` if that
    /// takes too long.
    pub async fn pass(&self) -> bool {
        let mut ended = self.ended.subscribe();
        // A round that has begun may have asked too early.
        let round = self.begun.load(Ordering::Acquire) + 1;
        self.wanted.notify_one();
        let passed = timeout(2 * PATIENCE, ended.wait_for(|(ended, _)| *ended >= round));
        matches!(passed.await, Ok(Ok(seen)) if seen.1)
    }

    /// Asks and waits for those who come, for as long as it is polled.
    pub async fn run(&self, pool: &PgPool, keyring: &Keyring) {
        loop {
            self.wanted.notified().await;
            let began = Instant::now();
            let round = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let passed = timeout(PATIENCE, passed(pool, keyring)).await.unwrap_or(false);
            self.ended.send_replace((round, passed));
            sleep(INTERVAL.saturating_sub(began.elapsed())).await;
        }
    }
}

async fn passed(pool: &PgPool, keyring: &Keyring) -> bool {
    match lookup::log_end(pool).await {
        Ok(end) => stream_passes(pool, keyring, end).await.is_ok(),
        Err(_) => false,
    }
}

/// Waits until the stream has brought all that was visible while the log ended at `end`. Gives a
/// position that all of this commits below; `end` itself, or a lower one.
///
/// The stream brings what is flushed. A transaction that is still open may leave its records unflushed
/// for long where nothing else is written; what had committed is flushed soon.
pub(super) async fn stream_passes(
    pool: &PgPool,
    keyring: &Keyring,
    mut end: Lsn,
) -> Result<Lsn, sqlx::Error> {
    let began = Instant::now();
    let mut flushed_after = None;
    while keyring.head() < end {
        sleep(LOOK).await;
        if began.elapsed() < SHORTLY {
            continue;
        }
        let delay = match flushed_after {
            Some(delay) => delay,
            None => *flushed_after.insert(lookup::flush_delay(pool).await?),
        };
        if began.elapsed() > delay + SHORTLY {
            end = end.min(lookup::flushed_end(pool).await?);
            flushed_after = Some(Duration::MAX / 2);
        }
    }
    Ok(end)
}
