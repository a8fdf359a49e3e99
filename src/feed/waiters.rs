//! Who waits on which topic, and how they are woken: few at once, many in slices.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use super::position::Position;
use super::topic::Topic;
use crate::lease::Lease;
use crate::postgres::Lsn;

/// How many of a topic's waiters are woken together. With more, each slice waits until the one
/// before has run, so that whoever else wakes meanwhile is served in between.
const SLICE: usize = 64;
/// A slice is waited for no longer than this: a task may be busy with something else.
const SLICE_PATIENCE: Duration = Duration::from_millis(20);

/// The wake lists. A topic that nobody waits on takes no memory.
#[derive(Debug, Default)]
pub struct Waiters {
    topics: DashMap<Topic, List>,
    rounds: Rounds,
}

/// Who waits on a topic. Most topics are a run with one client, which takes no memory but its place;
/// nothing of it has left the window since it came.
#[derive(Clone, Debug)]
enum List {
    One(Arc<Place>),
    Crowd(Arc<Crowd>),
}

#[derive(Debug, Default)]
struct Crowd {
    places: Mutex<Slab<Arc<Place>>>,
    /// How often the topic was woken.
    wakes: AtomicU64,
    /// The commit LSN of the topic's newest change that has left the window since the list began.
    lost: AtomicU64,
    /// Whether the list waits for its next slice.
    in_rounds: AtomicBool,
}

#[derive(Debug, Default)]
struct Place {
    wait: Mutex<Wait>,
    /// What its waiter may see, it may see for as long as this.
    lease: Lease,
}

#[derive(Debug, Default)]
struct Wait {
    woken: bool,
    waker: Option<Waker>,
    /// The slice that waits for this one to have run.
    slice: Option<Arc<Slice>>,
}

/// The lists that are being woken in slices, in turn.
#[derive(Debug, Default)]
struct Rounds {
    queue: Mutex<VecDeque<Round>>,
    more: Notify,
}

#[derive(Debug)]
struct Round {
    crowd: Arc<Crowd>,
    /// The wakes that this round answers to.
    wakes: u64,
    next: usize,
}

#[derive(Debug)]
struct Slice {
    running: AtomicUsize,
    done: Notify,
}

/// A place on a topic's wake list, given up when dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    topic: Topic,
    place: Arc<Place>,
    /// Where the place is in its crowd; who is alone is the first of one that may come.
    key: usize,
}

impl Waiters {
    /// Takes a place on the topic's list, for as long as the lease is good.
    pub fn join(self: &Arc<Self>, topic: Topic, lease: Lease) -> Waiter {
        let place = Arc::new(Place { lease, ..Place::default() });
        let key = match self.topics.entry(topic) {
            Entry::Vacant(entry) => {
                entry.insert(List::One(Arc::clone(&place)));
                FIRST
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().as_crowd().places.lock().insert(Arc::clone(&place))
            }
        };
        Waiter { waiters: Arc::clone(self), topic, place, key }
    }

    /// Wakes everybody on the topic's list: at once, or in slices by [`Waiters::run_rounds`].
    pub fn wake(&self, topic: Topic) {
        // The lock on the map's shard is given back before the wakes, which may be many.
        let list = self.topics.get(&topic).map(|list| List::clone(&list));
        if let Some(list) = list {
            self.wake_list(list);
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.topics.iter().map(|list| List::clone(&list)).collect();
        all.into_iter().for_each(|list| self.wake_list(list));
    }

    /// Wakes everybody, in no slices: nothing else is to be served any more.
    pub fn wake_all_at_once(&self) {
        self.wake_those(|_| true);
    }

    /// A change of this commit LSN has left the window that was found under the topic. To be called
    /// before anybody can see that it has.
    pub fn lost(&self, topic: Topic, commit: Lsn) {
        if let Some(mut list) = self.topics.get_mut(&topic) {
            list.as_crowd().lost.fetch_max(commit.0, Ordering::AcqRel);
        }
    }

    /// Wakes those whose lease is over. It goes through all that wait: leases end rarely, and a list
    /// of waiters by lease would take memory for each.
    pub fn wake_ended(&self) {
        self.wake_those(|place| place.lease.over().is_some());
    }

    fn wake_those(&self, those: impl Fn(&Place) -> bool) {
        let wake = |place: &Arc<Place>| {
            if those(place) {
                place.wake();
            }
        };
        for list in &self.topics {
            match &*list {
                List::One(place) => wake(place),
                List::Crowd(crowd) => crowd.places.lock().iter().for_each(|(_, place)| wake(place)),
            }
        }
    }

    fn wake_list(&self, list: List) {
        let crowd = match list {
            List::One(place) => return place.wake(),
            List::Crowd(crowd) => crowd,
        };
        let wakes = crowd.wakes.fetch_add(1, Ordering::AcqRel) + 1;
        {
            let places = crowd.places.lock();
            if places.len() <= SLICE {
                places.iter().for_each(|(_, place)| place.wake());
                return;
            }
        }
        // A list that is in its round already is looked at again at that round's end.
        if !crowd.in_rounds.swap(true, Ordering::AcqRel) {
            self.rounds.queue.lock().push_back(Round { crowd, wakes, next: 0 });
            self.rounds.more.notify_one();
        }
    }

    /// Wakes the long lists, slice by slice and in turn, for as long as it is polled.
    pub async fn run_rounds(&self) {
        loop {
            let more = self.rounds.more.notified();
            let Some(round) = self.rounds.queue.lock().pop_front() else {
                more.await;
                continue;
            };
            if let Some(round) = round.advance().await {
                self.rounds.queue.lock().push_back(round);
            }
        }
    }

    /// How many topics are waited on.
    pub fn len(&self) -> usize {
        self.topics.len()
    }
}

/// The key of a crowd's first place.
const FIRST: usize = 0;

impl List {
    /// The list as a crowd's, which it is from then on.
    fn as_crowd(&mut self) -> Arc<Crowd> {
        match self {
            List::Crowd(crowd) => Arc::clone(crowd),
            List::One(place) => {
                let mut places = Slab::with_capacity(2);
                let key = places.insert(Arc::clone(place));
                debug_assert_eq!(key, FIRST);
                let crowd = Arc::new(Crowd { places: Mutex::new(places), ..Crowd::default() });
                *self = List::Crowd(Arc::clone(&crowd));
                crowd
            }
        }
    }
}

impl Round {
    /// Wakes the next slice and waits until it has run. Gives what is left to do.
    async fn advance(mut self) -> Option<Round> {
        let slice = Arc::new(Slice { running: AtomicUsize::new(1), done: Notify::new() });
        let ended = {
            let places = self.crowd.places.lock();
            let end = places.capacity();
            let mut woken = 0;
            while self.next < end && woken < SLICE {
                if let Some(place) = places.get(self.next) {
                    place.wake_in(&slice);
                    woken += 1;
                }
                self.next += 1;
            }
            self.next >= end
        };
        slice.one_has_run();
        let _ = tokio::time::timeout(SLICE_PATIENCE, slice.all_have_run()).await;
        if !ended {
            return Some(self);
        }
        self.crowd.in_rounds.swap(false, Ordering::AcqRel);
        // What was woken for since the round began may have come too late for its first slices.
        let wakes = self.crowd.wakes.load(Ordering::Acquire);
        if wakes == self.wakes || self.crowd.in_rounds.swap(true, Ordering::AcqRel) {
            return None;
        }
        (self.wakes, self.next) = (wakes, 0);
        Some(self)
    }
}

impl Slice {
    fn one_has_run(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    async fn all_have_run(&self) {
        while self.running.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
    }
}

impl Place {
    fn wake(&self) {
        let waker = {
            let mut wait = self.wait.lock();
            wait.woken = true;
            wait.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Who does not wait just now, since it sends what it was told before, is not waited for.
    fn wake_in(&self, slice: &Arc<Slice>) {
        let (waker, former) = {
            let mut wait = self.wait.lock();
            wait.woken = true;
            let (waker, former) = (wait.waker.take(), wait.slice.take());
            if waker.is_some() {
                slice.running.fetch_add(1, Ordering::AcqRel);
                wait.slice = Some(Arc::clone(slice));
            }
            (waker, former)
        };
        former.iter().for_each(|former| former.one_has_run());
        waker.into_iter().for_each(Waker::wake);
    }

    /// It waits no more. Who waits for it to have run has waited enough.
    fn rest(&self) {
        let (_waker, slice) = {
            let mut wait = self.wait.lock();
            (wait.waker.take(), wait.slice.take())
        };
        slice.iter().for_each(|slice| slice.one_has_run());
    }
}

/// See [`Waiter::woken`].
#[derive(Debug)]
pub struct Woken<'a>(&'a Waiter);

impl Future for Woken<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let slice = {
            let mut wait = self.0.place.wait.lock();
            if !wait.woken {
                let waker = context.waker();
                if !wait.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    wait.waker = Some(waker.clone());
                }
                return Poll::Pending;
            }
            wait.slice.take()
        };
        slice.iter().for_each(|slice| slice.one_has_run());
        Poll::Ready(())
    }
}

impl Drop for Woken<'_> {
    fn drop(&mut self) {
        self.0.place.rest();
    }
}

impl Waiter {
    /// Ends at the first wake after this call, also if that comes before it is first polled. So:
    /// call this, then look for news, then await it.
    pub fn woken(&self) -> Woken<'_> {
        let slice = {
            let mut wait = self.place.wait.lock();
            wait.woken = false;
            wait.slice.take()
        };
        slice.iter().for_each(|slice| slice.one_has_run());
        Woken(self)
    }

    /// Whether the window has held every change of the topic from there on, since this waiter came.
    pub fn lost_nothing_after(&self, position: Position) -> bool {
        match self.waiters.topics.get(&self.topic).as_deref() {
            Some(List::Crowd(crowd)) => crowd.lost.load(Ordering::Acquire) < position.lsn.0,
            Some(List::One(_)) | None => true,
        }
    }

    /// It is busy: nobody waits for it to have run.
    pub fn rest(&self) {
        self.place.rest();
    }

    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.place.lease.over().is_some()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.topics.remove_if_mut(&self.topic, |_, list| match list {
            List::One(_) => true,
            List::Crowd(crowd) => {
                let mut places = crowd.places.lock();
                places.remove(self.key);
                places.is_empty()
            }
        });
        self.place.rest();
    }
}

#[cfg(test)]
#[path = "waiters_tests.rs"]
mod tests;
