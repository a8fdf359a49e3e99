//! Long lists that are being woken: slice by slice, and in turn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::list::List;

/// How many of a list are woken together. With more, each slice waits until the one before has run, so
/// that whoever else wakes meanwhile is served in between.
pub(super) const SLICE: usize = 64;
/// A slice is waited for no longer than this: a task may be busy with something else.
const SLICE_PATIENCE: Duration = Duration::from_millis(20);

/// The lists that are being woken in slices, in turn.
#[derive(Debug)]
pub struct Rounds<L> {
    queue: Mutex<VecDeque<Round<L>>>,
    more: Notify,
}

#[derive(Debug)]
struct Round<L> {
    list: Arc<L>,
    /// The wakes that this round answers to.
    wakes: u64,
    next: usize,
}

/// Those who were woken together.
#[derive(Debug)]
pub(super) struct Slice {
    running: AtomicUsize,
    done: Notify,
}

impl<L> Default for Rounds<L> {
    fn default() -> Self {
        Rounds { queue: Mutex::default(), more: Notify::new() }
    }
}

impl<L> Rounds<L> {
    /// Wakes everybody on the list: at once, or in slices by [`Rounds::run`].
    pub fn wake<T>(&self, list: &Arc<L>)
    where
        L: AsRef<List<T>>,
    {
        let places: &List<T> = (**list).as_ref();
        let wakes = places.wakes.fetch_add(1, Ordering::AcqRel) + 1;
        // A list that is in its round already is looked at again at that round's end.
        if !places.wake_few() && !places.in_rounds.swap(true, Ordering::AcqRel) {
            let round = Round { list: Arc::clone(list), wakes, next: 0 };
            self.queue.lock().push_back(round);
            self.more.notify_one();
        }
    }

    /// Wakes the long lists, for as long as it is polled.
    pub async fn run<T>(&self) -> Infallible
    where
        L: AsRef<List<T>>,
    {
        loop {
            let more = self.more.notified();
            let Some(round) = self.queue.lock().pop_front() else {
                more.await;
                continue;
            };
            if let Some(round) = round.advance().await {
                self.queue.lock().push_back(round);
            }
        }
    }
}

impl<L> Round<L> {
    /// Wakes the next slice and waits until it has run. Gives what is left to do.
    async fn advance<T>(mut self) -> Option<Round<L>>
    where
        L: AsRef<List<T>>,
    {
        let slice = Arc::new(Slice { running: AtomicUsize::new(1), done: Notify::new() });
        let next = (*self.list).as_ref().wake_slice(self.next, &slice);
        slice.one_has_run();
        let _ = tokio::time::timeout(SLICE_PATIENCE, slice.all_have_run()).await;
        if let Some(next) = next {
            self.next = next;
            return Some(self);
        }
        let list: &List<T> = (*self.list).as_ref();
        list.in_rounds.swap(false, Ordering::AcqRel);
        // What was woken for since the round began may have come too late for its first slices.
        let wakes = list.wakes.load(Ordering::Acquire);
        if wakes == self.wakes || list.in_rounds.swap(true, Ordering::AcqRel) {
            return None;
        }
        (self.wakes, self.next) = (wakes, 0);
        Some(self)
    }
}

impl Slice {
    pub fn one_more(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    pub fn one_has_run(&self) {
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::task::JoinHandle;

    use super::super::list::Place;
    use super::*;

    type Crowd = List<()>;

    /// Each waits for `wakes` wakes and tells of each.
    fn crowd(
        list: &Arc<Crowd>,
        size: usize,
        wakes: usize,
    ) -> (Vec<JoinHandle<()>>, Arc<AtomicUsize>) {
        let told = Arc::new(AtomicUsize::new(0));
        let members = (0..size).map(|_| {
            let (place, told) = (list.join(()), Arc::clone(&told));
            tokio::spawn(async move {
                for _ in 0..wakes {
                    place.woken().await;
                    told.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        (members.collect(), told)
    }

    fn running(rounds: &Arc<Rounds<Crowd>>) -> JoinHandle<Infallible> {
        let rounds = Arc::clone(rounds);
        tokio::spawn(async move { rounds.run().await })
    }

    #[tokio::test]
    async fn a_crowd_is_woken_whole_and_a_lone_waiter_does_not_wait_for_it() {
        let (many, one) = (Arc::<Crowd>::default(), Arc::<Crowd>::default());
        let rounds = Arc::<Rounds<Crowd>>::default();
        let (members, told) = crowd(&many, 10 * SLICE, 1);
        let lone = one.join(());
        let running = running(&rounds);
        tokio::task::yield_now().await;
        rounds.wake(&many);
        let woken = lone.woken();
        rounds.wake(&one);
        woken.await;
        assert!(told.load(Ordering::Acquire) <= 2 * SLICE, "the lone one came in between");
        for member in members {
            member.await.unwrap();
        }
        running.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wakes_during_a_round_reach_everybody_once_more() {
        let list = Arc::<Crowd>::default();
        let rounds = Arc::<Rounds<Crowd>>::default();
        let (members, told) = crowd(&list, 5 * SLICE, usize::MAX);
        let running = running(&rounds);
        for _ in 0..100 {
            rounds.wake(&list);
            tokio::task::yield_now().await;
        }
        let before = told.load(Ordering::Acquire);
        rounds.wake(&list);
        // Everybody is told after the last wake, whatever round was under way.
        let all = async {
            while told.load(Ordering::Acquire) < before + members.len() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("everybody is woken");
        members.iter().for_each(|member| member.abort());
        running.abort();
    }

    fn waiting(list: &Arc<Crowd>) -> Vec<Place<()>> {
        (0..2 * SLICE).map(|_| list.join(())).collect()
    }

    fn begun(rounds: &Rounds<Crowd>, list: &Arc<Crowd>) -> Round<Crowd> {
        rounds.wake(list);
        rounds.queue.lock().pop_front().expect("a round")
    }

    #[tokio::test]
    async fn a_wake_during_a_round_is_followed_by_another_round() {
        let (list, rounds) = (Arc::<Crowd>::default(), Rounds::default());
        let _busy = waiting(&list);
        let round = begun(&rounds, &list).advance().await.expect("a second slice");
        rounds.wake(&list);
        let round = round.advance().await.expect("another round");
        assert_eq!(round.next, 0);
        let round = round.advance().await.expect("a second slice");
        assert!(round.advance().await.is_none(), "nobody was woken meanwhile");
    }

    #[tokio::test]
    async fn those_who_leave_in_their_slice_hold_nobody_up() {
        let (list, rounds) = (Arc::<Crowd>::default(), Rounds::default());
        let idle = waiting(&list);
        let mut waits: Vec<_> = idle.iter().map(Place::woken).collect();
        for woken in &mut waits {
            assert!(woken.now_or_never().is_none());
        }
        let first = tokio::spawn(begun(&rounds, &list).advance());
        tokio::task::yield_now().await;
        assert!(idle[..SLICE].iter().all(Place::is_waited_for) && !first.is_finished());
        drop(waits);
        let empty: Vec<bool> = idle.iter().map(|place| list.leave(place)).collect();
        drop(idle);
        let left = first.await.unwrap();
        assert!(left.is_some_and(|round| round.next == SLICE));
        assert_eq!(empty.iter().position(|empty| *empty), Some(2 * SLICE - 1));
    }

    #[tokio::test]
    async fn a_round_waits_for_nobody_who_is_busy_and_they_are_told_when_they_ask() {
        let (list, rounds) = (Arc::<Crowd>::default(), Rounds::default());
        let busy = waiting(&list);
        let waits: Vec<_> = busy.iter().map(Place::woken).collect();
        // Polled once alone, so that no patience has run out.
        let advanced = begun(&rounds, &list).advance().now_or_never();
        let round = advanced.expect("it waits for nobody").expect("a second slice");
        round.advance().now_or_never().expect("it waits for nobody");
        for mut woken in waits {
            assert!((&mut woken).now_or_never().is_some());
        }
    }
}
