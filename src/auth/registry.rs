//! The way to the database, with its limits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::PgPool;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    lookup::{self, Reading, Subjects},
    refusal::Refusal,
};

/// The database behind the door, and how hard it may be leant on.
#[derive(Clone)]
pub(super) struct Registry {
    pub pool: PgPool,
    /// Whether the database has additional keys, as far as is known.
    additional: Arc<AtomicBool>,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    deadline: Duration,
}

impl Registry {
    /// At most `at_once` look-ups run and `waiting` more wait; each has until `deadline`.
    pub fn new(pool: PgPool, at_once: usize, waiting: usize, deadline: Duration) -> Self {
        let places = Semaphore::new(at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS));
        let turns = Arc::new(Semaphore::new(at_once));
        let additional = Arc::new(AtomicBool::new(true));
        Self { pool, additional, turns, places: Arc::new(places), deadline }
    }

    /// Reads what is known of the subjects.
    pub async fn read(&self, subjects: Subjects) -> Result<Reading, Refusal> {
        self.ask(async {
            let additional = self.additional.load(Ordering::Acquire);
            match lookup::read(&self.pool, subjects.clone(), additional).await {
                Err(error) if additional && lookup::lacks_table(&error) => {
                    // A database of an older version, or something worse, which fails again.
                    let additional = lookup::has_additional(&self.pool).await?;
                    self.additional.store(additional, Ordering::Release);
                    lookup::read(&self.pool, subjects, additional).await
                }
                read => read,
            }
        })
        .await
    }

    /// Reads all facts, unless they take more than `max_bytes`.
    pub async fn read_all(&self, max_bytes: usize) -> Result<Option<Reading>, sqlx::Error> {
        let additional = lookup::has_additional(&self.pool).await?;
        self.additional.store(additional, Ordering::Release);
        lookup::read_all(&self.pool, max_bytes, additional).await
    }

    /// Runs one look-up in its turn. Whatever goes wrong is ours, not the credential's.
    async fn ask<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Refusal> {
        let _place = self.places.try_acquire().map_err(|_| Refusal::Unavailable)?;
        let answer = timeout(self.deadline, async {
            let _turn = self.turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            query.await
        });
        match answer.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                // The kind alone: an error's own text may quote the values that were bound.
                let code = error.as_database_error().and_then(|error| error.code());
                tracing::warn!(code = code.as_deref(), "a key could not be looked up");
                Err(Refusal::Unavailable)
            }
            Err(_) => {
                tracing::warn!(deadline = ?self.deadline, "looking up a key took too long");
                Err(Refusal::Unavailable)
            }
        }
    }
}
