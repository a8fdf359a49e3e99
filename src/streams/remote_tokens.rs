//! Tokens that an S2 elsewhere issues for writers, kept for others as upstream keeps them
//! (`streams-and-sessions.md`, 4.3).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::remote::Remote;
use super::store::StoreError;

/// How many are kept, one for each environment and basin.
const KEPT: u64 = 10_000;

/// Tokens, by basin and prefix.
#[derive(Debug)]
pub struct WriterTokens {
    kept: Cache<(Arc<str>, Arc<str>), Arc<Slot>>,
    lifetime: Duration,
}

/// One of them. Held by whoever asks for it, so that nobody else does.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<(String, Instant)>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot(…)")
    }
}

impl WriterTokens {
    /// None yet; they are to live for so long.
    pub fn new(lifetime: Duration) -> WriterTokens {
        let kept = Cache::builder().max_capacity(KEPT).eviction_policy(EvictionPolicy::lru());
        WriterTokens { kept: kept.time_to_live(lifetime).build(), lifetime }
    }

    /// One for this basin and prefix. If whoever asks ends sooner than it would it is their own, and
    /// ends with them.
    pub async fn get(
        &self,
        remote: &Remote,
        (basin, prefix): (&str, &str),
        expires_at: Option<SystemTime>,
    ) -> Result<String, StoreError> {
        let end = SystemTime::now() + self.lifetime;
        if let Some(expiry) = expires_at.filter(|expiry| *expiry < end) {
            return remote.issue(basin, prefix, expiry).await;
        }
        let slot = self.kept.get_with((basin.into(), prefix.into()), Arc::default);
        let mut kept = slot.0.lock().await;
        let young = |age: Duration| age < self.lifetime / 2;
        if let Some((token, at)) = &*kept
            && young(at.elapsed())
        {
            return Ok(token.clone());
        }
        match (remote.issue(basin, prefix, end).await, &*kept) {
            (Ok(token), _) => {
                *kept = Some((token.clone(), Instant::now()));
                Ok(token)
            }
            // It is good for a while.
            (Err(_), Some((token, at))) if at.elapsed() < self.lifetime / 4 * 3 => {
                Ok(token.clone())
            }
            (Err(error), _) => Err(error),
        }
    }
}
