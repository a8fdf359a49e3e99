//! The door: headers in, a caller or a refusal out.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::http::HeaderMap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::{policy::EvictionPolicy, sync::Cache};
use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore};

use super::{
    barrier::Barrier,
    credential::{Credential, CredentialError, Fingerprint, fingerprint_of_basis},
    facts::Concern,
    grant::{Caller, Clock, Grant, Patience},
    grants::Grants,
    judge::{Basis, Rules, millis},
    keyring::Keyring,
    lookup::Reading,
    meet::Question,
    memory::{Generation, Memory},
    refusal::Refusal,
    registry::Registry,
    settings::Settings,
};
use crate::{postgres::Snapshot, replication::change::Event, telemetry};

/// A credential whose grant nobody asked for is forgotten after this.
const IDLE: Duration = Duration::from_secs(90);

/// Authenticates requests by what is known of the keys, which the stream keeps; by the database where
/// that is not possible.
///
/// A clone shares everything with its original. Its `Debug` shows the settings only.
#[derive(Clone)]
pub struct Door(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub settings: Settings,
    pub rules: Rules,
    pub clock: Clock,
    pub registry: Registry,
    pub keyring: Keyring,
    pub grants: Grants,
    /// Good credentials, by bearer and branch.
    known: Cache<Fingerprint, Arc<Grant>>,
    /// Refused ones, and the generation that they were refused in.
    refused: Cache<Fingerprint, (u64, Refusal)>,
    /// What the database said of keys and environments, while that is needed.
    pub readings: Memory<Arc<Reading>>,
    generation: Generation,
    pub barrier: Barrier,
    pub places: Semaphore,
    pub budget: DefaultDirectRateLimiter,
    /// Whether the stream tells of all changes of keys in time.
    current: AtomicBool,
    pub became_current: Notify,
    /// Whether the keys are being loaded, or will be soon.
    pub loading: AtomicBool,
    /// Told when they are, or are not to be waited for.
    pub loaded: Notify,
}

impl Door {
    /// A door that asks `pool`. It connects when the first credential comes. Until [`Door::run`] runs
    /// and the stream is current, credentials are looked up.
    pub fn new(pool: PgPool, settings: Settings) -> Self {
        let generation = Generation::new(AtomicU64::new(0));
        let readings = Memory::new(
            generation.clone(),
            settings.accepted_for,
            settings.accepted_bytes / 4,
            |reading: &Arc<Reading>| 256 + reading.facts.bytes(),
        );
        let known = Cache::builder()
            .weigher(|_, grant: &Arc<Grant>| u32::try_from(grant.weight()).unwrap_or(u32::MAX))
            .max_capacity(settings.accepted_bytes)
            // The default policy may refuse newcomers while the cache is full, and then each of
            // their requests would be judged anew.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE)
            .build();
        let refused = Cache::builder()
            .max_capacity(settings.refused_entries)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(settings.refused_for)
            .build();
        Self(Arc::new(Inner {
            rules: Rules {
                archived_branch_tokens: settings.archived_branch_tokens,
                tokens: settings.tokens,
            },
            clock: Clock::start(),
            registry: Registry::new(
                pool,
                settings.lookups,
                settings.lookups_waiting,
                settings.lookup_deadline,
            ),
            keyring: Keyring::default(),
            grants: Grants::default(),
            known,
            refused,
            readings,
            generation,
            barrier: Barrier::default(),
            places: Semaphore::new(settings.lookups_waiting),
            budget: RateLimiter::direct(Quota::per_second(settings.lookups_per_second)),
            current: AtomicBool::new(false),
            became_current: Notify::new(),
            loading: AtomicBool::new(false),
            loaded: Notify::new(),
            settings,
        }))
    }

    /// Lets a request in or says why not (`runs-and-auth.md` 12).
    ///
    /// A credential that is known costs a digest and a look-up in memory.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let credential = Credential::read(headers).map_err(|error| match error {
            CredentialError::Missing => Refusal::MissingKey,
            CredentialError::TooLong => Refusal::InvalidKey,
        })?;
        self.admit_by(credential.fingerprint(), Question::of(&credential)).await
    }

    /// The same for a credential that is known to be good; `None` if that has to be found out.
    pub fn admit_known(&self, headers: &HeaderMap) -> Option<Caller> {
        let fingerprint = Credential::read(headers).ok()?.fingerprint();
        let grant = self.0.known.get(&fingerprint)?;
        let good = grant.is_good(self.0.believed_for());
        good.then(|| grant.caller(millis(SystemTime::now())))?.ok()
    }

    /// Says who it is whose [`Caller::basis`] this was, in this environment: whether the key still
    /// opens it, whichever gateway let it in. For those whose word we have for that, signed by us.
    pub async fn admit_again(&self, environment: &str, basis: &str) -> Result<Caller, Refusal> {
        let fingerprint = fingerprint_of_basis(environment, basis);
        let basis = Basis::from_text(basis).ok_or(Refusal::InvalidKey)?;
        self.admit_by(fingerprint, Question::Again { environment, basis: &basis }).await
    }

    async fn admit_by(
        &self,
        fingerprint: Fingerprint,
        question: Question<'_>,
    ) -> Result<Caller, Refusal> {
        let known = self.0.known.get(&fingerprint);
        if let Some(grant) = &known
            && grant.is_good(self.0.believed_for())
        {
            return grant.caller(millis(SystemTime::now()));
        }
        if known.is_none()
            && let Some((generation, refusal)) = self.0.refused.get(&fingerprint)
            && generation == self.0.generation.load(Ordering::Acquire)
        {
            return Err(refusal);
        }
        let generation = self.0.generation.load(Ordering::Acquire);
        // What was signed here is no guess.
        let known = question.is_vouched_for() || known.is_some_and(|grant| grant.is_open());
        match Box::pin(self.0.meet(&question, known)).await {
            Ok(grant) => {
                let caller = grant.caller(millis(SystemTime::now()));
                self.0.known.insert(fingerprint, grant);
                caller
            }
            Err(Refusal::Unavailable) => Err(Refusal::Unavailable),
            Err(refusal) => {
                self.0.known.invalidate(&fingerprint);
                self.0.refused.insert(fingerprint, (generation, refusal));
                Err(refusal)
            }
        }
    }

    /// Takes in the next step of the stream: what rests on rows that changed is judged again, and
    /// ended if it no longer holds. To be called in the stream's order, before what follows the stream
    /// tells anybody how far it is.
    pub fn apply(&self, event: &Event) {
        let mut concerns = self.0.keyring.apply(event);
        if concerns.is_empty() {
            return;
        }
        // A transaction may touch many rows of one environment.
        let mut seen = HashSet::with_capacity(concerns.len());
        concerns.retain(|concern| seen.insert(concern.clone()));
        self.0.void_readings();
        self.0.judge_again(&concerns);
    }

    /// A query has finished that saw this: what it showed need not be remembered for others.
    pub fn settle(&self, snapshot: &Snapshot) {
        self.0.keyring.settle(snapshot);
    }

    /// Says whether the stream is attached, carries the tables of keys, and is not behind. While it
    /// is not, nothing is believed for longer than [`Settings::accepted_for`].
    pub fn set_current(&self, current: bool) {
        if !self.0.current.swap(current, Ordering::AcqRel) && current {
            self.0.became_current.notify_one();
        }
    }

    /// Whether all environments and keys are held in memory and kept by the stream.
    pub fn is_loaded(&self) -> bool {
        self.0.is_current() && self.0.keyring.is_complete()
    }

    /// Told whenever something has ended that may be held open.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.0.grants.ended)
    }

    /// Voids all that is remembered: what is asked from now on is answered by queries that begin
    /// after this call, and what is open is looked at again.
    pub fn forget_all(&self) {
        self.0.keyring.distrust();
        self.0.void_readings();
        self.0.judge_again(&[Concern::All]);
    }
}

impl Inner {
    /// Whether the stream tells of all changes in time.
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// How long facts are believed that nobody has looked at again.
    pub fn believed_for(&self) -> Duration {
        if self.is_current() { self.settings.confirmed_for } else { self.settings.accepted_for }
    }

    /// Voids what was read of the database before now, and what was refused.
    pub fn void_readings(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub fn judge_again(&self, concerns: &[Concern]) {
        // Who is let in meanwhile waits for the lock or is found.
        let patience =
            Patience { told: self.settings.confirmed_for, untold: self.settings.accepted_for };
        self.keyring.look(|state| {
            self.grants.judge_again(concerns, state.complete(), &self.rules, &patience);
        });
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// Where a verdict came from, for the count.
pub(super) fn count(from: &'static str) {
    metrics::counter!(telemetry::VERDICTS, "from" => from).increment(1);
}
