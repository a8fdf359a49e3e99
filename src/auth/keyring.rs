//! What is known of all keys: loaded once, and kept by the stream.
//!
//! A query and the stream see the database at different times, and position cannot tell which is
//! ahead (`postgres.md`, 5). So the changes that the stream brought lately are remembered with their
//! transaction ids. What a query read is joined only when the stream has passed all that it saw; the
//! remembered changes that its snapshot does not show are laid over it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use super::{
    facts::{Concern, Facts},
    lookup::Reading,
};
use crate::{
    postgres::{Lsn, Snapshot},
    replication::{
        change::{Change, Event, Tx},
        keys::KeyChange,
    },
};

/// For how long a change is remembered after a finished query has shown it. Longer than a query of a
/// few rows may take; a longer one is repeated if it must be.
const REMEMBERED: Duration = Duration::from_secs(60);
/// More changes are not remembered. A single transaction brings half as many at most.
const MAX_RECENT: usize = 20_000;

/// The facts and the changes that they rest on.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    state: RwLock<State>,
    /// Everything that commits below has been taken in.
    head: AtomicU64,
}

/// One version of what is known. What is read under one lock belongs together.
#[derive(Debug, Default)]
pub(super) struct State {
    facts: Facts,
    /// Whether the facts are all that the database has.
    complete: bool,
    /// How often the facts were given up.
    restarts: u64,
    recent: VecDeque<Recent>,
    /// How many changes they hold.
    remembered: usize,
    /// A query's rows are good only if it shows all that this one does: what is not remembered
    /// any more.
    required: Option<Arc<Snapshot>>,
    /// The same for changes that were too many: all up to this transaction id must have ended.
    crowd: Option<u32>,
}

/// What one transaction changed.
#[derive(Debug)]
struct Recent {
    xid: u32,
    commit_lsn: Lsn,
    changes: Vec<KeyChange>,
    concerns: Vec<Concern>,
    /// The first finished query that showed it, and when that was.
    shown: Option<(Arc<Snapshot>, Instant)>,
}

impl State {
    /// The facts, if they are all that the database has.
    pub fn complete(&self) -> Option<&Facts> {
        self.complete.then_some(&self.facts)
    }

    /// Whether a reading lacks nothing that the stream has brought of these environments and this
    /// project.
    pub fn admits(&self, reading: &Reading, concerns: &[Concern]) -> bool {
        self.shows_forgotten(&reading.snapshot)
            && self.recent.iter().all(|recent| {
                let touches = |c: &Concern| c.is_everything() || concerns.contains(c);
                recent.is_shown_by(&reading.snapshot, reading.end)
                    || !recent.concerns.iter().any(touches)
            })
    }

    /// Whether a reading lacks nothing at all that the stream has brought.
    pub fn admits_all(&self, reading: &Reading) -> bool {
        self.shows_forgotten(&reading.snapshot)
            && self.recent.iter().all(|recent| {
                recent.concerns.is_empty() || recent.is_shown_by(&reading.snapshot, reading.end)
            })
    }

    /// Whether what the snapshot shows includes all that is not remembered.
    fn shows_forgotten(&self, snapshot: &Snapshot) -> bool {
        self.required.as_ref().is_none_or(|required| snapshot.includes(required))
            && self.crowd.is_none_or(|xid| has_ended(snapshot, xid))
    }

    fn restart(&mut self) {
        self.facts = Facts::default();
        self.complete = false;
        self.restarts += 1;
    }

    fn remember(&mut self, recent: Recent) {
        if self.remembered + recent.weight() > MAX_RECENT {
            while self.remembered > MAX_RECENT / 2
                && let Some(gone) = self.forget_first()
            {
                let newer = |known: u32| known.wrapping_sub(gone.xid) as i32 > 0;
                if !self.crowd.is_some_and(newer) {
                    self.crowd = Some(gone.xid);
                }
            }
        }
        self.remembered += recent.weight();
        self.recent.push_back(recent);
    }

    fn forget_first(&mut self) -> Option<Recent> {
        let gone = self.recent.pop_front()?;
        self.remembered -= gone.weight();
        Some(gone)
    }
}

/// Whether every id up to this one had ended.
fn has_ended(snapshot: &Snapshot, xid: u32) -> bool {
    snapshot.shows(xid) && (snapshot.xmin as u32).wrapping_sub(xid) as i32 > 0
}

impl Recent {
    /// What it counts for among those that are remembered.
    fn weight(&self) -> usize {
        self.changes.len().max(1)
    }

    /// Whether the reading's rows hold it.
    fn is_shown_by(&self, snapshot: &Snapshot, end: Lsn) -> bool {
        snapshot.shows(self.xid) && self.commit_lsn < end
    }
}

impl Keyring {
    /// Looks at one version of it. Changes wait meanwhile.
    pub fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.read())
    }

    /// Whether all of the database's facts are held.
    pub fn is_complete(&self) -> bool {
        self.state.read().complete
    }

    /// Everything that commits below this has been taken in.
    pub fn head(&self) -> Lsn {
        Lsn(self.head.load(Ordering::Acquire))
    }

    /// How often the facts were given up: a reading that began before that must not be joined.
    pub fn restarts(&self) -> u64 {
        self.state.read().restarts
    }

    /// Takes in the next step of the stream, and gives what it concerns.
    pub fn apply(&self, event: &Event) -> Vec<Concern> {
        match event {
            Event::Tx(tx) => {
                let matters = |change: &Change| matches!(change, Change::Key(_) | Change::TooLarge);
                let concerns =
                    if tx.changes.iter().any(matters) { self.commit(tx) } else { Vec::new() };
                self.head.store(tx.end_lsn.0, Ordering::Release);
                concerns
            }
            Event::Progress(lsn) => {
                self.head.store(lsn.0, Ordering::Release);
                Vec::new()
            }
            Event::Reset(reset) => {
                let mut state = self.state.write();
                state.restart();
                state.recent.clear();
                state.remembered = 0;
                state.crowd = None;
                state.required = reset.past.clone().map(Arc::new);
                drop(state);
                self.head.store(reset.floor.0, Ordering::Release);
                vec![Concern::Lost]
            }
            Event::Resumed { .. } => {
                // After a crash ids are given out again, and no snapshot may ever show as many. What
                // was shown is durable.
                self.state.write().required = None;
                Vec::new()
            }
        }
    }

    fn commit(&self, tx: &Tx) -> Vec<Concern> {
        let changes: Vec<KeyChange> = tx
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::Key(change) => Some(change.clone()),
                Change::TooLarge => Some(KeyChange::Lost),
                _ => None,
            })
            .collect();
        let mut state = self.state.write();
        let mut concerns = Vec::new();
        for change in &changes {
            if *change == KeyChange::Lost {
                state.restart();
                concerns.push(Concern::Lost);
            } else if state.complete {
                state.facts.apply(change.clone(), true, &mut concerns);
            } else {
                // What is not held may be anything, so whatever the change names is concerned.
                Facts::default().apply(change.clone(), false, &mut concerns);
            }
        }
        state.remember(Recent {
            xid: tx.xid,
            commit_lsn: tx.commit_lsn,
            changes,
            concerns: concerns.clone(),
            shown: None,
        });
        concerns
    }

    /// Joins what a query has read of all tables. `false` if it must be read again.
    pub fn join(&self, reading: Reading, restarts: u64) -> bool {
        let mut state = self.state.write();
        if state.restarts != restarts
            || self.head() < reading.end
            || !state.shows_forgotten(&reading.snapshot)
        {
            return false;
        }
        let Reading { snapshot, end, mut facts } = reading;
        for recent in state.recent.iter().filter(|recent| !recent.is_shown_by(&snapshot, end)) {
            for change in &recent.changes {
                if *change == KeyChange::Lost {
                    return false;
                }
                facts.apply(change.clone(), true, &mut Vec::new());
            }
        }
        let before = std::mem::replace(&mut state.facts, facts);
        state.complete = true;
        drop(state);
        drop(before);
        true
    }

    /// Gives the facts up, to be read anew.
    pub fn distrust(&self) {
        self.state.write().restart();
    }

    /// A query has finished that saw this. What it showed is forgotten after a while.
    pub fn settle(&self, snapshot: &Snapshot) {
        // Once a second, and nearly always for nothing.
        let idle = |state: &State| state.recent.is_empty() && state.crowd.is_none();
        if idle(&self.state.read()) {
            return;
        }
        let now = Instant::now();
        let shared = Arc::new(snapshot.clone());
        let mut state = self.state.write();
        for recent in &mut state.recent {
            if recent.shown.is_none() && snapshot.shows(recent.xid) {
                recent.shown = Some((Arc::clone(&shared), now));
            }
        }
        while let Some(Recent { shown: Some((by, at)), .. }) = state.recent.front()
            && now.duration_since(*at) >= REMEMBERED
        {
            // One that committed later may have been shown earlier.
            let by = Arc::clone(by);
            if state.required.as_ref().is_none_or(|required| by.includes(required)) {
                state.required = Some(by);
            }
            state.forget_first();
        }
        if state.crowd.is_some_and(|xid| has_ended(snapshot, xid)) {
            state.crowd = None;
            state.required = Some(shared);
        }
    }
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
