//! Judging a credential that is not known yet: from memory where that is possible, else by the
//! database.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use metrics::Gauge;
use sha2::{Digest as _, Sha256};

use super::{
    credential::{Credential, Fingerprint, fingerprint_of_basis},
    door::{Inner, count},
    facts::Facts,
    grant::{Grant, Prospect},
    judge::{Basis, millis, signing_keys, verify},
    keyring::State,
    lookup::{self, Reading, Subjects},
    memory::Kept,
    refusal::Refusal,
    token::{self, Presented, PublicToken, classify},
};
use crate::{
    replication::keys::{SigningKey, digest},
    telemetry,
};

/// The pause before a reading is made again that lacks what the stream has brought already; the next
/// is longer by as much, up to the last.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Where facts are taken from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Memory,
    Reading(&'a Reading, u64),
}

/// Why nobody was let in.
enum Turned {
    /// By what the facts are. `true`: others may let it in.
    Away(Refusal, bool),
    /// The facts lack what is known already.
    Stale,
}

/// Who is asked about, ready to be judged by any facts.
pub(super) enum Question<'a> {
    /// Whoever presents this credential.
    Presented(&'a Credential<'a>, Presented<'a>),
    /// Whoever was let in to this environment by this.
    Again { environment: &'a str, basis: &'a Basis },
}

impl Inner {
    /// Judges a credential. `known` says that it was good before, so that its look-up is no guess.
    pub(super) async fn meet(
        &self,
        question: &Question<'_>,
        known: bool,
    ) -> Result<Arc<Grant>, Refusal> {
        if let Question::Presented(_, Presented::PublicToken(token)) = question
            && token.subject().is_none()
        {
            return Err(Refusal::InvalidPublicAccessToken);
        }
        if self.is_loaded().await {
            match self.judge(question, Source::Memory) {
                Ok(grant) => {
                    count("memory");
                    return Ok(grant);
                }
                Err(Turned::Away(refusal, false)) => {
                    count("refused");
                    return Err(refusal);
                }
                Err(Turned::Away(_, true)) => {
                    let _place = self.places.try_acquire().map_err(|_| unavailable("places"))?;
                    let waiting = Waiting::begin();
                    let passed = self.barrier.pass().await;
                    drop(waiting);
                    if passed && self.is_current() {
                        match self.judge(question, Source::Memory) {
                            Ok(grant) => {
                                count("memory");
                                return Ok(grant);
                            }
                            Err(Turned::Away(refusal, _)) => {
                                count("refused");
                                return Err(refusal);
                            }
                            Err(Turned::Stale) => {}
                        }
                    }
                }
                Err(Turned::Stale) => {}
            }
        }
        self.ask(question, known).await
    }

    /// Whether all keys are held. While they are being loaded that is waited for: after a start everybody
    /// comes at once, and would have to be looked up.
    async fn is_loaded(&self) -> bool {
        let is_loaded = || self.is_current() && self.keyring.is_complete();
        if is_loaded() {
            return true;
        }
        let loading = || self.is_current() && self.loading.load(Ordering::Acquire);
        let Ok(_place) = self.places.try_acquire() else { return false };
        let loaded = async {
            loop {
                let loaded = self.loaded.notified();
                if is_loaded() || !loading() {
                    return is_loaded();
                }
                loaded.await;
            }
        };
        tokio::time::timeout(self.settings.lookup_deadline, loaded).await.unwrap_or(false)
    }

    /// Judges a credential by what the database says.
    async fn ask(&self, question: &Question<'_>, known: bool) -> Result<Arc<Grant>, Refusal> {
        let mut kept = self.read(question, known, self.settings.accepted_for).await;
        let (began, mut pause) = (Instant::now(), PAUSE);
        loop {
            let reading = kept.outcome.as_ref().map_err(|refusal| *refusal)?;
            let age = kept.read_at.elapsed();
            let read = self.clock.now().saturating_sub(age.as_millis() as u64).max(1);
            let within = match self.judge(question, Source::Reading(reading, read)) {
                Ok(grant) => {
                    count("query");
                    return Ok(grant);
                }
                // The key may just have been made or rotated: a refusal is believed only of fresh facts.
                Err(Turned::Away(_, true)) if age >= self.settings.refused_for => {
                    self.settings.refused_for
                }
                Err(Turned::Away(refusal, _)) => {
                    count("refused");
                    return Err(refusal);
                }
                Err(Turned::Stale) if began.elapsed() + pause < self.settings.lookup_deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause + PAUSE).min(LONGEST_PAUSE);
                    Duration::ZERO
                }
                Err(Turned::Stale) => return Err(unavailable("stale")),
            };
            kept = self.read(question, known, within).await;
        }
    }

    fn judge(&self, question: &Question<'_>, source: Source<'_>) -> Result<Arc<Grant>, Turned> {
        let now = millis(SystemTime::now());
        let key = |credential: &Credential<'_>| {
            (digest(credential.bearer()), credential.branch().map(Box::from))
        };
        let (basis, claims) = match question {
            Question::Presented(credential, Presented::RootKey) => {
                let (key, branch) = key(credential);
                (Basis::RootKey(key, branch), None)
            }
            Question::Presented(credential, Presented::AdditionalKey) => {
                let (key, branch) = key(credential);
                (Basis::AdditionalKey(key, branch), None)
            }
            Question::Presented(_, Presented::PublicToken(token)) => {
                let (basis, claims) = self.verify(token, source, now)?;
                (basis, Some(claims))
            }
            Question::Again { basis, .. } => ((*basis).clone(), None),
        };
        // In one look, so that a change finds the grant or is seen by it.
        self.keyring.look(|state| {
            let facts = source.facts(state).ok_or(Turned::Stale)?;
            let standing = match basis.judge(facts, &self.rules, now) {
                // A name that means another branch by now was not let in to that one.
                Ok(standing) if !question.is_about(&standing.environment) => {
                    return Err(source.refuse(state, Refusal::InvalidKey));
                }
                Ok(standing) => standing,
                Err(refusal) => return Err(source.refuse(state, refusal)),
            };
            let grant = Arc::new(match claims {
                Some(claims) => {
                    Grant::new(of_token(basis, standing, claims), self.clock, source.read(self))
                }
                None => Grant::new(of_key(basis, standing), self.clock, source.read(self)),
            });
            if let Source::Reading(reading, _) = source
                && !state.admits(reading, &grant.concerns())
            {
                return Err(Turned::Stale);
            }
            self.grants.add(&grant);
            Ok(grant)
        })
    }

    /// Finds the key that has signed a token. Nobody waits for the signatures.
    fn verify(
        &self,
        token: &PublicToken<'_>,
        source: Source<'_>,
        now: u64,
    ) -> Result<(Basis, token::Verified), Turned> {
        let subject = token.subject().unwrap_or_default();
        let keys = self.keyring.look(|state| {
            let facts = source.facts(state).ok_or(Turned::Stale)?;
            signing_keys(facts, subject, &self.rules, now)
                .map_err(|refusal| source.refuse(state, refusal))
        })?;
        match verify(token, subject, &keys, &self.rules) {
            Ok(verified) => Ok((verified.basis, verified.claims)),
            Err((refusal, false)) => Err(Turned::Away(refusal, false)),
            Err((refusal, true)) => Err(self.keyring.look(|state| source.refuse(state, refusal))),
        }
    }

    /// The secret that signs an environment's new tokens.
    pub(super) async fn signing_key(&self, environment: &str) -> Result<SigningKey, Refusal> {
        let now = millis(SystemTime::now());
        let first = |facts: &Facts| {
            let keys = signing_keys(facts, environment, &self.rules, now)?;
            keys.into_iter().next().ok_or(Refusal::InvalidKey)
        };
        if let Some(found) = self.keyring.look(|state| state.complete().map(first)) {
            return found;
        }
        let mut subjects = Subjects::default();
        subjects.environments.push(environment.to_owned());
        first(&self.registry.read(subjects).await?.facts)
    }

    /// What the database says, shared with whoever else asks for the same.
    async fn read(
        &self,
        question: &Question<'_>,
        known: bool,
        within: Duration,
    ) -> Kept<Arc<Reading>> {
        let (key, subjects) = question.subjects();
        if let Some(kept) = self.readings.recall(&key, within) {
            return kept;
        }
        let allowed = known || self.budget.check().is_ok();
        let registry = self.registry.clone();
        let load = || async move {
            if !allowed {
                return Err(unavailable("budget"));
            }
            let _waiting = Waiting::begin();
            registry.read(subjects).await.map(Arc::new)
        };
        self.readings.learn(key, within, load).await
    }
}

impl<'a> Source<'a> {
    fn facts(self, state: &'a State) -> Option<&'a Facts> {
        match self {
            Source::Memory => state.complete(),
            Source::Reading(reading, _) => Some(&reading.facts),
        }
    }

    /// Facts that lack something must not turn anybody away.
    fn refuse(self, state: &State, refusal: Refusal) -> Turned {
        match self {
            Source::Reading(reading, _) if !state.admits_all(reading) => Turned::Stale,
            _ => Turned::Away(refusal, refusal != Refusal::BranchRequired),
        }
    }

    /// Since when these facts are known to hold, by the door's clock.
    fn read(self, door: &Inner) -> u64 {
        match self {
            Source::Memory => door.clock.now(),
            Source::Reading(_, read) => read,
        }
    }
}

impl<'a> Question<'a> {
    /// About whoever presents this.
    pub fn of(credential: &'a Credential<'a>) -> Question<'a> {
        Question::Presented(credential, classify(credential.bearer()))
    }

    /// Whether they were let in before, so that asking is no guess.
    pub fn is_vouched_for(&self) -> bool {
        matches!(self, Question::Again { .. })
    }

    fn is_about(&self, environment: &str) -> bool {
        match self {
            Question::Presented(..) => true,
            Question::Again { environment: before, .. } => *before == environment,
        }
    }

    /// What is to be read to answer it, and a name for that.
    fn subjects(&self) -> (Fingerprint, Subjects) {
        let (kind, subject, branch) = match self {
            Question::Presented(_, Presented::PublicToken(token)) => {
                (0u8, token.subject().unwrap_or_default(), None)
            }
            Question::Presented(credential, Presented::AdditionalKey) => {
                (1, credential.bearer(), credential.branch())
            }
            Question::Presented(credential, Presented::RootKey) => {
                (2, credential.bearer(), credential.branch())
            }
            Question::Again { environment, basis } => {
                let mut subjects = Subjects::default();
                subjects.environments.push((*environment).to_owned());
                if let Basis::AdditionalKey(digest, _) = basis {
                    subjects.hashes.push(lookup::hex(digest));
                }
                let text = basis.to_text().unwrap_or_default();
                return (fingerprint_of_basis(environment, &text), subjects);
            }
        };
        let mut hash = Sha256::new();
        hash.update([kind, u8::from(branch.is_some())]);
        // The length goes first, so that no subject can end in what another has as its branch.
        hash.update((subject.len() as u64).to_le_bytes());
        hash.update(subject.as_bytes());
        hash.update(branch.unwrap_or_default().as_bytes());
        let mut subjects = Subjects { branch: branch.map(Box::from), ..Subjects::default() };
        match kind {
            0 => subjects.environments.push(subject.to_owned()),
            1 => subjects.additional_key = Some(subject.into()),
            _ => subjects.root_key = Some(subject.into()),
        }
        (hash.finalize().into(), subjects)
    }
}

fn of_key(basis: Basis, standing: super::judge::Standing) -> Prospect {
    Prospect {
        basis,
        ability: standing.ability(),
        standing,
        claims_end: None,
        once_expired: Refusal::InvalidKey,
        skip_columns: None,
        throttle: None,
    }
}

fn of_token(basis: Basis, standing: super::judge::Standing, claims: token::Verified) -> Prospect {
    Prospect {
        basis,
        standing,
        ability: claims.ability,
        claims_end: claims.expires_at.map(millis),
        once_expired: Refusal::PublicAccessTokenIsInvalid,
        skip_columns: claims.skip_columns,
        throttle: claims.throttle,
    }
}

/// Counts one that waits for the stream or the database, also if they go away.
struct Waiting(Gauge);

impl Waiting {
    fn begin() -> Self {
        let waiting = metrics::gauge!(telemetry::LOOKUPS_WAITING);
        waiting.increment(1.0);
        Self(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Nobody can tell now, because of a limit of ours.
fn unavailable(why: &'static str) -> Refusal {
    metrics::counter!(telemetry::LOOKUPS_REFUSED, "why" => why).increment(1);
    Refusal::Unavailable
}
