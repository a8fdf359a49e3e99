//! A grant: what a credential opens, for all who present it, and whether that still holds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use super::{
    facts::{Concern, Facts},
    judge::{Basis, Rules, Standing, instant},
    refusal::Refusal,
    scope::Ability,
};
use crate::{lease::Lease, telemetry};

/// Somebody who was let in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The environment whose runs are meant; a branch's own id.
    pub environment_id: Arc<str>,
    /// What the caller may do there.
    pub ability: Arc<Ability>,
    /// When the credential ends: a token's `exp`, a rotated key's grace, an additional key's expiry.
    /// A response that is held open ends then too.
    pub expires_at: Option<SystemTime>,
    /// What is said from then on.
    pub once_expired: Refusal,
    /// Columns that the token asks to be left out (claim `realtime.skipColumns`). Any text can be among them.
    pub skip_columns: Option<Arc<[String]>>,
    /// The shortest time between two answers that the token asks for (claim `realtime.throttleMs`).
    pub throttle: Option<Duration>,
    /// What it rests on, as a text without the secret: [`Door::admit_again`] judges by it again. None
    /// for public tokens.
    ///
    /// [`Door::admit_again`]: super::Door::admit_again
    pub basis: Option<Arc<str>>,
    /// Ended when the credential is revoked, or means something else than it did. Whatever is held
    /// open ends with it; [`Refusal::of`] tells what to say.
    pub lease: Lease,
}

/// What a credential opens as long as nothing has ended, once for all who present it.
#[derive(Debug)]
pub(super) struct Grant {
    caller: Caller,
    pub basis: Basis,
    standing: Standing,
    /// When the credential itself says that it ends, in milliseconds since 1970.
    claims_end: Option<u64>,
    /// When it ends as far as is known now, in milliseconds since 1970.
    ends: AtomicU64,
    /// Since when the facts behind it are known to hold, in milliseconds of its clock; 0 is never.
    confirmed: AtomicU64,
    /// When it was last of use.
    used: AtomicU64,
    clock: Clock,
}

/// Milliseconds since a start, so that times fit in an atomic. It begins at 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> u64 {
        self.0.elapsed().as_millis() as u64 + 1
    }
}

/// For how long facts are believed while the stream tells of changes, and while it does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub told: Duration,
    pub untold: Duration,
}

/// What a grant is made of.
pub(super) struct Prospect {
    pub basis: Basis,
    pub standing: Standing,
    pub ability: Ability,
    pub claims_end: Option<u64>,
    pub once_expired: Refusal,
    pub skip_columns: Option<Arc<[String]>>,
    pub throttle: Option<Duration>,
}

impl Grant {
    /// What was judged by facts that were read then, by the clock.
    pub fn new(prospect: Prospect, clock: Clock, confirmed: u64) -> Self {
        let Prospect { standing, claims_end, .. } = prospect;
        let caller = Caller {
            environment_id: Arc::clone(&standing.environment),
            ability: Arc::new(prospect.ability),
            expires_at: None,
            once_expired: prospect.once_expired,
            skip_columns: prospect.skip_columns,
            throttle: prospect.throttle,
            basis: prospect.basis.to_text().map(Arc::from),
            lease: Lease::default(),
        };
        let ends = standing.ends.into_iter().chain(claims_end).min().unwrap_or(u64::MAX);
        Self {
            caller,
            basis: prospect.basis,
            claims_end,
            ends: AtomicU64::new(ends),
            confirmed: AtomicU64::new(confirmed),
            used: AtomicU64::new(clock.now()),
            clock,
            standing,
        }
    }

    /// Who it is, unless that has expired.
    pub fn caller(&self, now: u64) -> Result<Caller, Refusal> {
        let ends = self.ends.load(Ordering::Acquire);
        if ends <= now {
            return Err(self.caller.once_expired);
        }
        let mut caller = self.caller.clone();
        caller.expires_at = (ends < u64::MAX).then(|| instant(ends));
        Ok(caller)
    }

    /// Whether it is good as far as anybody knows, by facts no older than this.
    pub fn is_good(&self, within: Duration) -> bool {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let now = self.clock.now();
        let used = self.used.load(Ordering::Relaxed);
        // Rarely, so that a hot credential's line is not passed between cores.
        if now > used + 500 {
            self.used.store(now, Ordering::Relaxed);
        }
        self.caller.lease.over().is_none()
            && confirmed > 0
            && now < confirmed + within.as_millis() as u64
    }

    /// Whether it has not ended, however old its facts are.
    pub fn is_open(&self) -> bool {
        self.caller.lease.over().is_none()
    }

    /// Whether somebody holds something open by it.
    pub fn is_held(&self) -> bool {
        self.caller.lease.is_held()
    }

    /// When it ends as far as is known now, in milliseconds since 1970.
    pub fn ends(&self) -> u64 {
        self.ends.load(Ordering::Acquire)
    }

    /// Ends it, since its time is over. `true` if it ended by this.
    pub fn expire(&self) -> bool {
        self.end(Some(self.caller.once_expired))
    }

    /// Whether its facts should be looked at again, as somebody relies on it who must not wait.
    pub fn is_due(&self, within: Duration) -> bool {
        let (now, within) = (self.clock.now(), within.as_millis() as u64);
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let of_use =
            || self.caller.lease.is_held() || now < self.used.load(Ordering::Relaxed) + within;
        self.is_open() && (confirmed == 0 || now > confirmed + within / 2) && of_use()
    }

    /// Its facts are no longer known to hold.
    pub fn doubt(&self) {
        self.confirmed.store(0, Ordering::Release);
    }

    /// Something may have been missed: it is believed as when the stream does not tell of changes.
    pub fn believe_for(&self, patience: &Patience) {
        let longer = patience.told.saturating_sub(patience.untold).as_millis() as u64;
        let aged = self.clock.now().saturating_sub(longer).max(1);
        self.confirmed.fetch_min(aged, Ordering::AcqRel);
    }

    /// Judges it again. Facts of a reading are as of when that began; those of the stream leave its
    /// age as it is. `true` if it ended by this.
    pub fn judge_again(&self, facts: &Facts, rules: &Rules, now: u64, read: Option<u64>) -> bool {
        let refusal = match self.basis.judge(facts, rules, now) {
            Err(refusal) => Some(refusal),
            // It means something else now, so that who holds it must ask anew.
            Ok(standing) if self.differs(&standing) => None,
            Ok(standing) => {
                let ends = standing.ends.into_iter().chain(self.claims_end).min();
                self.ends.store(ends.unwrap_or(u64::MAX), Ordering::Release);
                if let Some(read) = read {
                    self.confirmed.store(read, Ordering::Release);
                }
                return false;
            }
        };
        self.end(refusal)
    }

    fn differs(&self, standing: &Standing) -> bool {
        let was = &self.standing;
        (&was.environment, &was.root, &was.project, &was.scopes)
            != (&standing.environment, &standing.root, &standing.project, &standing.scopes)
    }

    fn end(&self, refusal: Option<Refusal>) -> bool {
        let ends = self.is_open();
        if ends {
            self.caller.lease.end(Refusal::code(refusal));
            metrics::counter!(telemetry::LEASES_ENDED).increment(1);
        }
        ends
    }

    /// What it rests on.
    pub fn concerns(&self) -> [Concern; 3] {
        let Standing { environment, root, project, .. } = &self.standing;
        [
            Concern::Environment(Arc::clone(environment)),
            Concern::Environment(Arc::clone(root)),
            Concern::Project(Arc::clone(project)),
        ]
    }

    /// Heap bytes, roughly.
    pub fn weight(&self) -> usize {
        let scopes = match &*self.caller.ability {
            Ability::Full => 0,
            Ability::Scoped(scopes) => scopes.iter().map(|scope| scope.weight()).sum(),
        };
        let columns = self.caller.skip_columns.iter().flat_map(|columns| columns.iter());
        let columns: usize = columns.map(|column| size_of::<String>() + column.len()).sum();
        let basis = self.caller.basis.as_ref().map_or(0, |basis| basis.len());
        size_of::<Self>() + size_of::<Ability>() + scopes + columns + basis + 320
    }
}
