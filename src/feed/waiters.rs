//! Who waits on which topic, and how they are woken: few at once, many in slices.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use dashmap::DashMap;
use futures_util::task::AtomicWaker;
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
    topics: DashMap<Topic, Arc<List>>,
    rounds: Rounds,
}

#[derive(Debug, Default)]
struct List {
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
    waker: AtomicWaker,
    woken: AtomicBool,
    /// The slice that waits for this one to have run.
    slice: Mutex<Option<Arc<Slice>>>,
    /// What its waiter may see, it may see for as long as this.
    lease: Lease,
}

/// The lists that are being woken in slices, in turn.
#[derive(Debug, Default)]
struct Rounds {
    queue: Mutex<VecDeque<Round>>,
    more: Notify,
}

#[derive(Debug)]
struct Round {
    list: Arc<List>,
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
    list: Arc<List>,
    place: Arc<Place>,
    key: usize,
}

impl Waiters {
    /// Takes a place on the topic's list, for as long as the lease is good.
    pub fn join(self: &Arc<Self>, topic: Topic, lease: Lease) -> Waiter {
        let place = Arc::new(Place { lease, ..Place::default() });
        let (list, key) = {
            let list = self.topics.entry(topic).or_default();
            let key = list.places.lock().insert(Arc::clone(&place));
            (Arc::clone(&list), key)
        };
        Waiter { waiters: Arc::clone(self), topic, list, place, key }
    }

    /// Wakes everybody on the topic's list: at once, or in slices by [`Waiters::run_rounds`].
    pub fn wake(&self, topic: Topic) {
        // The lock on the map's shard is given back before the wakes, which may be many.
        let list = self.topics.get(&topic).map(|list| Arc::clone(&list));
        if let Some(list) = list {
            self.wake_list(list);
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.topics.iter().map(|list| Arc::clone(&list)).collect();
        all.into_iter().for_each(|list| self.wake_list(list));
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
            let places = list.places.lock();
            let over = |place: &&Arc<Place>| place.lease.over().is_some();
            places.iter().map(|(_, place)| place).filter(over).for_each(|place| place.wake());
        }
    }

    fn wake_list(&self, list: Arc<List>) {
        let wakes = list.wakes.fetch_add(1, Ordering::AcqRel) + 1;
        {
            let places = list.places.lock();
            if places.len() <= SLICE {
                places.iter().for_each(|(_, place)| place.wake());
                return;
            }
        }
        // A list that is in its round already is looked at again at that round's end.
        if !list.in_rounds.swap(true, Ordering::AcqRel) {
            self.rounds.queue.lock().push_back(Round { list, wakes, next: 0 });
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

impl Round {
    /// Wakes the next slice and waits until it has run. Gives what is left to do.
    async fn advance(mut self) -> Option<Round> {
        let slice = Arc::new(Slice { running: AtomicUsize::new(1), done: Notify::new() });
        let ended = {
            let places = self.list.places.lock();
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
        self.list.in_rounds.swap(false, Ordering::AcqRel);
        // What was woken for since the round began may have come too late for its first slices.
        let wakes = self.list.wakes.load(Ordering::Acquire);
        if wakes == self.wakes || self.list.in_rounds.swap(true, Ordering::AcqRel) {
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
        self.woken.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Who does not wait just now, since it sends what it was told before, is not waited for.
    fn wake_in(&self, slice: &Arc<Slice>) {
        slice.running.fetch_add(1, Ordering::AcqRel);
        let former = self.slice.lock().replace(Arc::clone(slice));
        if let Some(former) = former {
            former.one_has_run();
        }
        self.woken.store(true, Ordering::Release);
        match self.waker.take() {
            Some(waker) => waker.wake(),
            None => self.has_run(),
        }
    }

    fn has_run(&self) {
        if let Some(slice) = self.slice.lock().take() {
            slice.one_has_run();
        }
    }
}

/// See [`Waiter::woken`].
#[derive(Debug)]
pub struct Woken<'a>(&'a Waiter);

impl Future for Woken<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let place = &self.0.place;
        if !place.woken.load(Ordering::Acquire) {
            place.waker.register(context.waker());
            if !place.woken.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        place.has_run();
        Poll::Ready(())
    }
}

impl Drop for Woken<'_> {
    fn drop(&mut self) {
        self.0.place.waker.take();
        self.0.place.has_run();
    }
}

impl Waiter {
    /// Ends at the first wake after this call, also if that comes before it is first polled. So:
    /// call this, then look for news, then await it.
    pub fn woken(&self) -> Woken<'_> {
        self.place.woken.store(false, Ordering::Release);
        self.place.has_run();
        Woken(self)
    }

    /// Whether the window has held every change of the topic from there on, since this waiter came.
    pub fn lost_nothing_after(&self, position: Position) -> bool {
        self.list.lost.load(Ordering::Acquire) < position.lsn.0
    }

    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.place.lease.over().is_some()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.topics.remove_if_mut(&self.topic, |_, list| {
            let mut places = list.places.lock();
            places.remove(self.key);
            places.is_empty()
        });
        self.place.has_run();
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

    /// Each waits for `rounds` wakes and tells of each.
    fn crowd(
        waiters: &Arc<Waiters>,
        topic: Topic,
        size: usize,
        rounds: usize,
    ) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
        let told = Arc::new(AtomicUsize::new(0));
        let members = (0..size).map(|_| {
            let (waiter, told) = (waiters.join(topic, Lease::default()), Arc::clone(&told));
            tokio::spawn(async move {
                for _ in 0..rounds {
                    waiter.woken().await;
                    told.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        (members.collect(), told)
    }

    #[tokio::test]
    async fn a_crowd_is_woken_whole_and_a_lone_waiter_does_not_wait_for_it() {
        let waiters = Arc::new(Waiters::default());
        let topics = Topics::default();
        let (tag, run) = (topics.tag("env", "tag"), topics.run("env", "run"));
        let (members, told) = crowd(&waiters, tag, 10 * SLICE, 1);
        let lone = waiters.join(run, Lease::default());
        let rounds = tokio::spawn({
            let waiters = Arc::clone(&waiters);
            async move { waiters.run_rounds().await }
        });
        tokio::task::yield_now().await;
        waiters.wake(tag);
        let woken = lone.woken();
        waiters.wake(run);
        woken.await;
        assert!(told.load(Ordering::Acquire) <= 2 * SLICE, "the lone one came in between");
        for member in members {
            member.await.unwrap();
        }
        rounds.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wakes_during_a_round_reach_everybody_once_more() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().tag("env", "tag");
        let (members, told) = crowd(&waiters, topic, 5 * SLICE, usize::MAX);
        let rounds = tokio::spawn({
            let waiters = Arc::clone(&waiters);
            async move { waiters.run_rounds().await }
        });
        for _ in 0..100 {
            waiters.wake(topic);
            tokio::task::yield_now().await;
        }
        let before = told.load(Ordering::Acquire);
        waiters.wake(topic);
        // Everybody is told after the last wake, whatever round was under way.
        let all = async {
            while told.load(Ordering::Acquire) < before + members.len() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("everybody is woken");
        members.iter().for_each(|member| member.abort());
        rounds.abort();
    }

    fn has_begun(waiter: &Waiter) -> bool {
        waiter.place.slice.lock().is_some()
    }

    #[tokio::test]
    async fn those_who_leave_in_their_slice_hold_nobody_up() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().tag("env", "tag");
        let idle: Vec<Waiter> =
            (0..2 * SLICE).map(|_| waiters.join(topic, Lease::default())).collect();
        let mut waits: Vec<_> = idle.iter().map(Waiter::woken).collect();
        for woken in &mut waits {
            assert!(woken.now_or_never().is_none());
        }
        waiters.wake(topic);
        let round = waiters.rounds.queue.lock().pop_front().unwrap();
        let first = tokio::spawn(round.advance());
        tokio::task::yield_now().await;
        assert!(idle[..SLICE].iter().all(has_begun) && !first.is_finished());
        drop(waits);
        drop(idle);
        let left = first.await.unwrap();
        assert!(left.is_some_and(|round| round.next == SLICE));
        assert_eq!(waiters.len(), 0);
    }

    #[tokio::test]
    async fn a_round_waits_for_nobody_who_is_busy_and_they_are_told_when_they_ask() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().tag("env", "tag");
        let busy: Vec<Waiter> =
            (0..2 * SLICE).map(|_| waiters.join(topic, Lease::default())).collect();
        let waits: Vec<_> = busy.iter().map(Waiter::woken).collect();
        waiters.wake(topic);
        let round = waiters.rounds.queue.lock().pop_front().unwrap();
        // Polled once alone, so that no patience has run out.
        let advanced = round.advance().now_or_never();
        let round = advanced.expect("it waits for nobody").expect("a second slice");
        round.advance().now_or_never().expect("it waits for nobody");
        for mut woken in waits {
            assert!((&mut woken).now_or_never().is_some());
        }
    }
}
