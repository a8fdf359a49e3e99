//! The door: headers in, a caller or a refusal out.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::http::HeaderMap;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;

use super::{
    credential::{Credential, CredentialError, Fingerprint},
    environments::{self, Signer, SigningKey},
    memory::{Generation, Kept, Memory, Retention},
    refusal::Refusal,
    registry::Registry,
    token::{Presented, PublicToken, TokenError, classify},
    verdict::{self, Caller, Verdict},
};

/// How the door works. [`Settings::default`] suits a gateway whose key tables are not replicated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long what the database said of a good credential is believed.
    pub accepted_for: Duration,
    /// How long a refusal is believed. It is shorter, since a key may be about to exist.
    pub refused_for: Duration,
    /// Memory for good credentials, in bytes; about 500 per credential.
    pub accepted_bytes: u64,
    /// How many refusals are remembered.
    pub refused_entries: u64,
    /// How many look-ups run in the database at once.
    pub lookups: usize,
    /// How many look-ups may wait for their turn; more are refused as [`Refusal::Unavailable`].
    pub lookups_waiting: usize,
    /// How long a look-up may take, its wait included.
    pub lookup_deadline: Duration,
    /// Whether additional keys are accepted at all (`runs-and-auth.md` 12.3, the platform's switch).
    pub additional_keys: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            accepted_for: Duration::from_secs(5),
            refused_for: Duration::from_secs(1),
            accepted_bytes: 128 << 20,
            refused_entries: 50_000,
            lookups: 8,
            lookups_waiting: 4096,
            lookup_deadline: Duration::from_secs(2),
            additional_keys: true,
        }
    }
}

/// Authenticates requests against the database, and remembers what it learnt for a few seconds.
///
/// A clone shares everything with its original. Its `Debug` shows the settings only.
#[derive(Clone)]
pub struct Door {
    settings: Arc<Settings>,
    registry: Arc<Registry>,
    generation: Generation,
    /// By bearer and branch.
    verdicts: Memory<Verdict>,
    /// By environment: each of its tokens is verified with one look-up for all.
    signers: Memory<Arc<Signer>>,
}

impl Door {
    /// A door that asks `pool`. It connects when the first credential comes.
    pub fn new(pool: PgPool, settings: Settings) -> Self {
        let generation = Generation::new(AtomicU64::new(0));
        let retention = Retention {
            accepted_for: settings.accepted_for,
            refused_for: settings.refused_for,
            accepted_bytes: settings.accepted_bytes,
            refused_entries: settings.refused_entries,
        };
        let weigh_signer = |signer: &Arc<Signer>| 256 + 128 * signer.rotated.len();
        Self {
            registry: Arc::new(Registry::new(
                pool,
                settings.lookups,
                settings.lookups_waiting,
                settings.lookup_deadline,
            )),
            verdicts: Memory::new(generation.clone(), retention, Verdict::weight),
            signers: Memory::new(generation.clone(), retention, weigh_signer),
            generation,
            settings: Arc::new(settings),
        }
    }

    /// Lets a request in or says why not (`runs-and-auth.md` 12).
    ///
    /// A credential seen within the last seconds costs a digest and a look-up in memory. Otherwise
    /// there is at most one query, shared with whoever else asks for the same.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let credential = Credential::read(headers).map_err(|error| match error {
            CredentialError::Missing => Refusal::MissingKey,
            CredentialError::TooLong => Refusal::InvalidKey,
        })?;
        let fingerprint = credential.fingerprint();
        let remembered = self.verdicts.recall(&fingerprint, self.settings.accepted_for);
        let outcome = match remembered {
            Some(kept) => kept.outcome,
            None => match classify(credential.bearer()) {
                Presented::PublicToken(token) => self.judge_token(fingerprint, &token).await,
                Presented::AdditionalKey if !self.settings.additional_keys => {
                    Err(Refusal::InvalidKey)
                }
                Presented::AdditionalKey => self.judge_key(fingerprint, &credential, true).await,
                Presented::RootKey => self.judge_key(fingerprint, &credential, false).await,
            },
        };
        let Verdict { caller, once_expired } = outcome?;
        match caller.expires_at {
            Some(end) if SystemTime::now() >= end => Err(once_expired),
            _ => Ok(caller),
        }
    }

    /// Voids all that is remembered. To be called when a key table has changed: what is asked from
    /// now on is answered by queries that begin after this call.
    pub fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    async fn judge_key(
        &self,
        fingerprint: Fingerprint,
        credential: &Credential<'_>,
        additional: bool,
    ) -> Result<Verdict, Refusal> {
        let kept = self.verdicts.learn(fingerprint, self.settings.accepted_for, || {
            let registry = Arc::clone(&self.registry);
            let key: Box<str> = credential.bearer().into();
            let branch: Option<Box<str>> = credential.branch().map(Box::from);
            async move {
                let branch = branch.as_deref();
                let holder = if additional {
                    let query = environments::by_additional_key(&registry.pool, &key, branch);
                    registry.ask(query).await
                } else {
                    registry.ask(environments::by_root_key(&registry.pool, &key, branch)).await
                };
                verdict::of_key(holder?.ok_or(Refusal::InvalidKey)?, branch)
            }
        });
        kept.await.outcome
    }

    async fn judge_token(
        &self,
        fingerprint: Fingerprint,
        token: &PublicToken<'_>,
    ) -> Result<Verdict, Refusal> {
        let id = token.subject().ok_or(Refusal::InvalidPublicAccessToken)?;
        let judge = |signer: &Kept<Arc<Signer>>| match &signer.outcome {
            Ok(signer) => Ok(verdict::of_token(signer, token)),
            Err(refusal) => Err(*refusal),
        };
        let mut signer = self.signer(id, self.settings.accepted_for).await;
        let mut judged = judge(&signer);
        // The key may just have been rotated: a bad signature is believed only of fresh facts.
        if matches!(judged, Ok(Err(TokenError::Signature)))
            && signer.read_at.elapsed() >= self.settings.refused_for
        {
            signer = self.signer(id, self.settings.refused_for).await;
            judged = judge(&signer);
        }
        let outcome = match judged {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(_)) => Err(Refusal::PublicAccessTokenIsInvalid),
            Err(refusal) => Err(refusal),
        };
        // The verdict is as old as the facts behind it.
        let Kept { read_at, generation, .. } = signer;
        self.verdicts.store(fingerprint, Kept { outcome: outcome.clone(), read_at, generation });
        outcome
    }

    /// The secret that signs an environment's new tokens.
    pub(super) async fn signing_key(&self, id: &str) -> Result<SigningKey, Refusal> {
        let signer = self.signer(id, self.settings.accepted_for).await.outcome;
        signer.map(|signer| signer.key.clone())
    }

    async fn signer(&self, id: &str, within: Duration) -> Kept<Arc<Signer>> {
        let key: Fingerprint = Sha256::digest(id.as_bytes()).into();
        if let Some(kept) = self.signers.recall(&key, within) {
            return kept;
        }
        let load = || {
            let registry = Arc::clone(&self.registry);
            let id: Box<str> = id.into();
            async move {
                let signer = registry.ask(environments::signer(&registry.pool, &id)).await?;
                signer.map(Arc::new).ok_or(Refusal::InvalidPublicAccessToken)
            }
        };
        self.signers.learn(key, within, load).await
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("settings", &self.settings).finish_non_exhaustive()
    }
}
