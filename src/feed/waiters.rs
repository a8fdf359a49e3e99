//! Who waits on which topic.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use super::position::Position;
use super::topic::Topic;
use crate::lease::Lease;
use crate::postgres::Lsn;
use crate::wake::{List, Place, Rounds, Woken};

/// The wake lists. A topic that nobody waits on takes no memory.
#[derive(Debug, Default)]
pub struct Waiters {
    topics: DashMap<Topic, Arc<OfTopic>>,
    rounds: Rounds<OfTopic>,
}

#[derive(Debug, Default)]
struct OfTopic {
    /// What a waiter may see, it may see for as long as its lease.
    list: List<Lease>,
    /// The commit LSN of the topic's newest change that has left the window since the list began.
    lost: AtomicU64,
}

impl AsRef<List<Lease>> for OfTopic {
    fn as_ref(&self) -> &List<Lease> {
        &self.list
    }
}

/// A place on a topic's wake list, given up when dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    topic: Topic,
    list: Arc<OfTopic>,
    place: Place<Lease>,
}

impl Waiters {
    /// Takes a place on the topic's list, for as long as the lease is good.
    pub fn join(self: &Arc<Self>, topic: Topic, lease: Lease) -> Waiter {
        let (list, place) = {
            let list = self.topics.entry(topic).or_default();
            let place = list.list.join(lease);
            (Arc::clone(&list), place)
        };
        Waiter { waiters: Arc::clone(self), topic, list, place }
    }

    /// Wakes everybody on the topic's list: at once, or in slices by [`Waiters::run_rounds`].
    pub fn wake(&self, topic: Topic) {
        // The lock on the map's shard is given back before the wakes, which may be many.
        let list = self.topics.get(&topic).map(|list| Arc::clone(&list));
        if let Some(list) = list {
            self.rounds.wake(&list);
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.topics.iter().map(|list| Arc::clone(&list)).collect();
        all.iter().for_each(|list| self.rounds.wake(list));
    }

    /// A change of this commit LSN has left the window that was found under the topic. To be called
    /// before anybody can see that it has.
    pub fn lost(&self, topic: Topic, commit: Lsn) {
        if let Some(list) = self.topics.get(&topic) {
            list.lost.fetch_max(commit.0, Ordering::AcqRel);
        }
    }

    /// Wakes those whose lease is over. It goes through all that wait: leases end rarely, and a list
    /// of waiters by lease would take memory for each.
    pub fn wake_ended(&self) {
        for list in &self.topics {
            list.list.wake_where(|lease| lease.over().is_some());
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

impl Waiter {
    /// See [`Place::woken`].
    pub fn woken(&self) -> Woken<'_, Lease> {
        self.place.woken()
    }

    /// Whether the window has held every change of the topic from there on, since this waiter came.
    pub fn lost_nothing_after(&self, position: Position) -> bool {
        self.list.lost.load(Ordering::Acquire) < position.lsn.0
    }

    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.place.holder().over().is_some()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let (list, place) = (&self.list.list, &self.place);
        self.waiters.topics.remove_if_mut(&self.topic, |_, _| list.leave(place));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::topic::Topics;
    use super::*;

    #[tokio::test]
    async fn a_wake_between_asking_and_awaiting_is_not_lost() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().run("env", "run");
        let waiter = waiters.join(topic, Lease::default());
        let woken = waiter.woken();
        waiters.wake(topic);
        woken.await;
    }

    #[tokio::test]
    async fn who_has_lost_the_lease_is_woken_and_nobody_else() {
        let waiters = Arc::new(Waiters::default());
        let topics = Topics::default();
        let lost = Lease::default();
        let joined = [
            waiters.join(topics.run("env", "a"), lost.clone()),
            waiters.join(topics.run("env", "a"), Lease::default()),
            waiters.join(topics.run("env", "b"), lost.clone()),
        ];
        let mut waits: Vec<_> = joined.iter().map(Waiter::woken).collect();
        waiters.wake_ended();
        assert!(waits.iter_mut().all(|woken| woken.now_or_never().is_none()));
        lost.end(1);
        waiters.wake_ended();
        let woken: Vec<_> = waits.iter_mut().map(|w| w.now_or_never().is_some()).collect();
        assert_eq!(woken, [true, false, true]);
    }

    #[test]
    fn the_last_to_leave_removes_the_list() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().run("env", "run");
        let (a, b) = (waiters.join(topic, Lease::default()), waiters.join(topic, Lease::default()));
        drop(a);
        assert_eq!(waiters.len(), 1);
        drop(b);
        assert_eq!(waiters.len(), 0);
    }
}
