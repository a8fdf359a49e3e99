//! All grants: what rests on what, and how those are told who hold something open.

use std::{sync::Arc, time::SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    facts::{Concern, Facts},
    grant::{Grant, Patience},
    judge::{Rules, millis},
};

/// All grants, by what they rest on.
#[derive(Debug, Default)]
pub(super) struct Grants {
    by_concern: DashMap<Concern, Vec<Arc<Grant>>>,
    /// Those whose end has moved: nobody who holds one open knows of it.
    moved: Mutex<Vec<Arc<Grant>>>,
    /// Told when a grant has ended that may be held open.
    pub ended: Arc<Notify>,
    /// Told when grants are in doubt.
    pub doubted: Notify,
}

impl Grants {
    /// Adds one. To be called under the keyring's lock, in which it was judged: a change after that
    /// finds it.
    pub fn add(&self, grant: &Arc<Grant>) {
        let [environment, root, project] = grant.concerns();
        let own = (environment != root).then_some(environment);
        for concern in own.into_iter().chain([root, project]) {
            self.by_concern.entry(concern).or_default().push(Arc::clone(grant));
        }
    }

    fn of(&self, concern: &Concern) -> Vec<Arc<Grant>> {
        match concern {
            Concern::All | Concern::Lost => self.all(),
            concern => self.by_concern.get(concern).map(|list| list.clone()).unwrap_or_default(),
        }
    }

    /// All that are alive.
    pub fn all(&self) -> Vec<Arc<Grant>> {
        let mut all = Vec::new();
        for list in &self.by_concern {
            // Each is in the list of its project exactly once.
            if let Concern::Project(_) = list.key() {
                all.extend(list.iter().cloned());
            }
        }
        all
    }

    /// Judges what the concerns touch. Without facts it is in doubt, until a query has told.
    pub fn judge_again(
        &self,
        concerns: &[Concern],
        facts: Option<&Facts>,
        rules: &Rules,
        patience: &Patience,
    ) {
        let now = millis(SystemTime::now());
        let mut ended = false;
        for concern in concerns {
            for grant in self.of(concern) {
                let Some(facts) = facts else {
                    match concern {
                        Concern::Lost => grant.believe_for(patience),
                        _ => grant.doubt(),
                    }
                    self.doubted.notify_one();
                    continue;
                };
                let before = grant.ends();
                ended |= grant.judge_again(facts, rules, now, None);
                self.note_moved(&grant, before);
            }
        }
        if ended {
            self.ended.notify_one();
        }
    }

    /// Judges one by what was read for it.
    pub fn confirm(&self, grant: &Arc<Grant>, facts: &Facts, rules: &Rules, read: u64) -> bool {
        let now = millis(SystemTime::now());
        let before = grant.ends();
        let ended = grant.judge_again(facts, rules, now, Some(read));
        self.note_moved(grant, before);
        if ended {
            self.ended.notify_one();
        }
        ended
    }

    /// One that ends sooner than was told to those who hold it open is watched.
    fn note_moved(&self, grant: &Arc<Grant>, before: u64) {
        if grant.ends() < before {
            self.moved.lock().push(Arc::clone(grant));
        }
    }

    /// Ends those that have expired, of which nobody else would know.
    pub fn end_expired(&self) {
        let now = millis(SystemTime::now());
        let mut ended = false;
        self.moved.lock().retain(|grant| {
            if grant.ends() <= now {
                ended |= grant.expire();
            }
            grant.is_open() && grant.is_held()
        });
        if ended {
            self.ended.notify_one();
        }
    }

    /// Forgets those that nobody has: no cache, and nobody who holds something open.
    pub fn sweep(&self) {
        self.by_concern.retain(|_, list| {
            list.retain(|grant| {
                let [environment, root, _] = grant.concerns();
                let lists = if environment == root { 2 } else { 3 };
                grant.is_held() || Arc::strong_count(grant) > lists
            });
            !list.is_empty()
        });
    }
}
