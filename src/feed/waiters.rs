//! Who waits on which topic.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::{DashMap, Entry};
use rustc_hash::FxBuildHasher;

use super::position::Position;
use super::topic::Topic;
use crate::lease::Lease;
use crate::postgres::Lsn;
use crate::wake::{self, List, Lone, Place, Rounds};

/// The wake lists. A topic that nobody waits on takes no memory.
#[derive(Debug, Default)]
pub struct Waiters {
    topics: DashMap<Topic, OfTopic, FxBuildHasher>,
    rounds: Rounds<Crowd>,
}

/// Who waits on a topic; what they may see, they may see for as long as their lease. Most topics are a
/// run with one client, which takes no memory but its place; nothing of it has left the window since
/// it came.
#[derive(Clone, Debug)]
enum OfTopic {
    One(Lone<Lease>),
    Crowd(Arc<Crowd>),
}

#[derive(Debug)]
struct Crowd {
    list: List<Lease>,
    /// The commit LSN of the topic's newest change that has left the window since the list began.
    lost: AtomicU64,
}

impl AsRef<List<Lease>> for Crowd {
    fn as_ref(&self) -> &List<Lease> {
        &self.list
    }
}

/// See [`Waiter::woken`].
pub type Woken<'a> = wake::Woken<'a, Lease>;

/// A place on a topic's wake list, given up when dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    topic: Topic,
    place: Place<Lease>,
}

impl Waiters {
    /// Takes a place on the topic's list, for as long as the lease is good.
    pub fn join(self: &Arc<Self>, topic: Topic, lease: Lease) -> Waiter {
        let place = match self.topics.entry(topic) {
            Entry::Vacant(entry) => {
                let (place, lone) = Place::alone(lease);
                entry.insert(OfTopic::One(lone));
                place
            }
            Entry::Occupied(mut entry) => entry.get_mut().as_crowd().list.join(lease),
        };
        Waiter { waiters: Arc::clone(self), topic, place }
    }

    /// Wakes everybody on the topic's list: at once, or in slices by [`Waiters::run_rounds`].
    pub fn wake(&self, topic: Topic) {
        // The lock on the map's shard is given back before the wakes, which may be many.
        let waiting = self.topics.get(&topic).map(|waiting| OfTopic::clone(&waiting));
        if let Some(waiting) = waiting {
            self.wake_those_of(&waiting);
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.topics.iter().map(|waiting| OfTopic::clone(&waiting)).collect();
        all.iter().for_each(|waiting| self.wake_those_of(waiting));
    }

    fn wake_those_of(&self, waiting: &OfTopic) {
        match waiting {
            OfTopic::One(lone) => lone.wake(),
            OfTopic::Crowd(crowd) => self.rounds.wake(crowd),
        }
    }

    /// Wakes everybody, in no slices: nothing else is to be served any more.
    pub fn wake_all_at_once(&self) {
        self.wake_where(|_| true);
    }

    /// Wakes those whose lease is over. It goes through all that wait: leases end rarely, and a list
    /// of waiters by lease would take memory for each.
    pub fn wake_ended(&self) {
        self.wake_where(|lease| lease.over().is_some());
    }

    fn wake_where(&self, holds: impl Fn(&Lease) -> bool) {
        for waiting in &self.topics {
            match &*waiting {
                OfTopic::One(lone) if holds(lone.holder()) => lone.wake(),
                OfTopic::One(_) => {}
                OfTopic::Crowd(crowd) => crowd.list.wake_where(&holds),
            }
        }
    }

    /// A change of this commit LSN has left the window that was found under the topic. To be called
    /// before anybody can see that it has.
    pub fn lost(&self, topic: Topic, commit: Lsn) {
        let lost = |crowd: &Crowd| crowd.lost.fetch_max(commit.0, Ordering::AcqRel);
        match self.topics.get(&topic).as_deref() {
            Some(OfTopic::Crowd(crowd)) => drop(lost(crowd)),
            Some(OfTopic::One(_)) => {}
            None => return,
        }
        // Rarely: for as long as somebody waits alone.
        if let Some(mut waiting) = self.topics.get_mut(&topic) {
            lost(&waiting.as_crowd());
        }
    }

    /// Wakes the long lists, slice by slice and in turn, for as long as it is polled.
    pub async fn run_rounds(&self) -> Infallible {
        self.rounds.run().await
    }

    /// How many topics are waited on.
    pub fn len(&self) -> usize {
        self.topics.len()
    }
}

impl OfTopic {
    /// The topic as a crowd's, which it is from then on.
    fn as_crowd(&mut self) -> Arc<Crowd> {
        match self {
            OfTopic::Crowd(crowd) => Arc::clone(crowd),
            OfTopic::One(first) => {
                let crowd = Crowd { list: List::begun_by(first), lost: AtomicU64::new(0) };
                let crowd = Arc::new(crowd);
                *self = OfTopic::Crowd(Arc::clone(&crowd));
                crowd
            }
        }
    }
}

impl Waiter {
    /// See [`Place::woken`].
    pub fn woken(&self) -> Woken<'_> {
        self.place.woken()
    }

    /// See [`Place::rest`].
    pub fn rest(&self) {
        self.place.rest();
    }

    /// Whether the window has held every change of the topic from there on, since this waiter came.
    pub fn lost_nothing_after(&self, position: Position) -> bool {
        match self.waiters.topics.get(&self.topic).as_deref() {
            Some(OfTopic::Crowd(crowd)) => crowd.lost.load(Ordering::Acquire) < position.lsn.0,
            Some(OfTopic::One(_)) | None => true,
        }
    }

    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.place.holder().over().is_some()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.topics.remove_if_mut(&self.topic, |_, waiting| match waiting {
            OfTopic::One(_) => true,
            OfTopic::Crowd(crowd) => crowd.list.leave(&self.place),
        });
    }
}

#[cfg(test)]
#[path = "waiters_tests.rs"]
mod tests;
