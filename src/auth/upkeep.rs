//! What the door does by itself: loads all keys, looks again at what is in use, and serves those who
//! wait for the stream.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    barrier::stream_passes,
    door::{Door, Inner},
    facts::Concern,
    grant::Grant,
    judge::{Basis, millis},
    lookup::{self, Subjects},
};
use crate::telemetry;

/// How often the grants are gone through.
const TICK: Duration = Duration::from_millis(500);
/// How many are looked up in one statement.
const BATCH: usize = 500;
/// How often it is looked for expiries that have moved.
const EXPIRIES: Duration = Duration::from_millis(100);
/// How long all tables may be read.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// How long the stream is waited for after that.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// The pause before it is tried again, at first and at most.
const LOAD_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The pause where the tables take more memory than they may.
const TOO_LARGE_PAUSE: Duration = Duration::from_secs(600);

impl Door {
    /// The door's own work. To be polled for as long as it lets anybody in.
    pub async fn run(&self) {
        let door = &*self.0;
        let expiries = async {
            loop {
                sleep(EXPIRIES).await;
                door.grants.end_expired();
            }
        };
        let barrier = door.barrier.run(&door.registry.pool, &door.keyring);
        tokio::join!(door.keep_loaded(), door.keep_confirmed(), barrier, expiries);
    }
}

impl Inner {
    async fn keep_loaded(&self) {
        let mut pause = LOAD_PAUSE.0;
        self.set_loading(true);
        loop {
            if !self.is_current() {
                self.became_current.notified().await;
                continue;
            }
            if self.keyring.is_complete() {
                let bytes = self.keyring.look(|state| state.complete().map_or(0, |f| f.bytes()));
                metrics::gauge!(telemetry::KEY_BYTES).set(bytes as f64);
                if bytes > self.settings.key_bytes {
                    self.keyring.distrust();
                    self.judge_again(&[Concern::All]);
                }
                pause = LOAD_PAUSE.0;
                sleep(LOAD_PAUSE.0).await;
                continue;
            }
            match self.load().await {
                Ok(()) => self.set_loading(true),
                Err(LoadError::TooLarge) => {
                    self.set_loading(false);
                    tracing::warn!(
                        limit = self.settings.key_bytes,
                        "the environments and keys take more memory than they may: each credential is looked up"
                    );
                    metrics::gauge!(telemetry::KEY_BYTES).set(0.0);
                    sleep(TOO_LARGE_PAUSE).await;
                }
                Err(error) => {
                    // Told once, and not at all where the server goes away, which others tell.
                    if let LoadError::Refused(code) = error
                        && pause == LOAD_PAUSE.0
                    {
                        tracing::warn!(code, "the keys could not be loaded; trying again");
                    }
                    metrics::gauge!(telemetry::KEY_BYTES).set(0.0);
                    // It may fail for long.
                    self.set_loading(pause < LOAD_PAUSE.1 / 8);
                    sleep(pause).await;
                    pause = (2 * pause).min(LOAD_PAUSE.1);
                }
            }
        }
    }

    /// Says whether it is worth while to wait for the keys.
    fn set_loading(&self, loading: bool) {
        self.loading.store(loading, Ordering::Release);
        self.loaded.notify_waiters();
    }

    async fn load(&self) -> Result<(), LoadError> {
        let restarts = self.keyring.restarts();
        let read = self.registry.read_all(self.settings.key_bytes);
        let mut reading = match timeout(LOAD_LIMIT, read).await {
            Ok(Ok(Some(reading))) => reading,
            Ok(Ok(None)) => return Err(LoadError::TooLarge),
            Ok(Err(error)) => {
                let code = error.as_database_error().and_then(|error| error.code());
                let away =
                    |code: &str| ["08", "53", "57"].iter().any(|class| code.starts_with(class));
                return Err(match code {
                    Some(code) if !away(&code) => LoadError::Refused(code.into()),
                    _ => LoadError::Later,
                });
            }
            Err(_) => return Err(LoadError::Later),
        };
        let passes = stream_passes(&self.registry.pool, &self.keyring, reading.end);
        match timeout(JOIN_LIMIT, passes).await {
            Ok(Ok(end)) => reading.end = end,
            _ => return Err(LoadError::Later),
        }
        let rows = reading.facts.rows();
        if !self.keyring.join(reading, restarts) {
            return Err(LoadError::Later);
        }
        metrics::counter!(telemetry::KEY_LOADS).increment(1);
        tracing::info!(rows, "the environments and keys are loaded");
        self.judge_again(&[Concern::All]);
        Ok(())
    }

    /// Looks at what is in use again before it is too old, so that nobody waits for it.
    async fn keep_confirmed(&self) {
        let mut swept = Instant::now();
        loop {
            let doubted = tokio::select! {
                () = self.grants.doubted.notified() => true,
                () = sleep(TICK) => false,
            };
            let within = self.believed_for();
            let all = self.grants.all();
            let due: Vec<_> = all.into_iter().filter(|grant| grant.is_due(within)).collect();
            let mut failed = false;
            for batch in due.chunks(BATCH) {
                failed |= !self.confirm(batch).await;
            }
            if swept.elapsed() >= 10 * TICK {
                self.grants.sweep();
                swept = Instant::now();
            }
            if failed || doubted {
                // Doubts come in crowds, and a database that is away is not asked all the time.
                sleep(if failed { TICK } else { Duration::from_millis(10) }).await;
            }
        }
    }

    /// Asks the database for what some grants rest on. `false` if it does not answer.
    async fn confirm(&self, grants: &[Arc<Grant>]) -> bool {
        let mut subjects = Subjects::default();
        for grant in grants {
            for concern in grant.concerns() {
                if let Concern::Environment(id) = concern {
                    subjects.environments.push((*id).to_owned());
                }
            }
            if let Basis::AdditionalKey(digest, _) = &grant.basis {
                subjects.hashes.push(lookup::hex(digest));
            }
        }
        for list in [&mut subjects.environments, &mut subjects.hashes] {
            list.sort_unstable();
            list.dedup();
        }
        let began = self.clock.now();
        let Ok(reading) = self.registry.read(subjects).await else { return false };
        let (mut faults, mut any_ended) = (0, false);
        self.keyring.look(|state| {
            for grant in grants {
                if !state.admits(&reading, &grant.concerns()) {
                    continue;
                }
                let ended = self.grants.confirm(grant, &reading.facts, &self.rules, began);
                any_ended |= ended;
                // Where the stream has passed all that the query saw, memory must say the same.
                let now = millis(std::time::SystemTime::now());
                let believed = state
                    .complete()
                    .is_some_and(|facts| grant.basis.judge(facts, &self.rules, now).is_ok());
                if ended && believed && self.keyring.head() >= reading.end {
                    faults += 1;
                }
            }
        });
        if any_ended {
            // What was read before must not let it in again.
            self.void_readings();
        }
        if faults > 0 {
            tracing::error!(
                faults,
                "the keys in memory are not those of the database: loading anew"
            );
            self.keyring.distrust();
            self.judge_again(&[Concern::All]);
        }
        true
    }
}

/// Why the keys are not loaded.
enum LoadError {
    /// The tables take more memory than they may.
    TooLarge,
    /// The database does not let us read them; its code for that.
    Refused(String),
    /// The database is away, the stream is behind, or something changed that cannot be laid over.
    Later,
}
