//! The wake lists.

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

#[test]
fn who_leaves_a_crowd_takes_nobodys_place_along() {
    let waiters = Arc::new(Waiters::default());
    let topic = Topics::default().run("env", "run");
    let join = || waiters.join(topic, Lease::default());
    let (first, second) = (join(), join());
    drop(first);
    let third = join();
    let mut waits = [second.woken(), third.woken()];
    waiters.wake(topic);
    assert!(waits.iter_mut().all(|woken| woken.now_or_never().is_some()));
    drop(waits);
    drop(third);
    let mut woken = second.woken();
    waiters.wake(topic);
    assert!((&mut woken).now_or_never().is_some());
}

#[test]
fn what_was_lost_while_one_waited_alone_counts_when_others_have_come() {
    let waiters = Arc::new(Waiters::default());
    let topic = Topics::default().run("env", "run");
    let first = waiters.join(topic, Lease::default());
    let lost = |waiter: &Waiter| !waiter.lost_nothing_after(Position::before(Lsn(5)));
    assert!(!lost(&first));
    waiters.lost(topic, Lsn(5));
    assert!(lost(&first));
    let second = waiters.join(topic, Lease::default());
    assert!(lost(&first) && lost(&second));
    let after = Position::before(Lsn(8));
    assert!(first.lost_nothing_after(after));
    waiters.lost(topic, Lsn(9));
    assert!([first, second].iter().all(|waiter| !waiter.lost_nothing_after(after)));
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
    waiter.place.wait.lock().slice.is_some()
}

#[tokio::test]
async fn those_who_leave_in_their_slice_hold_nobody_up() {
    let waiters = Arc::new(Waiters::default());
    let topic = Topics::default().tag("env", "tag");
    let idle: Vec<Waiter> = (0..2 * SLICE).map(|_| waiters.join(topic, Lease::default())).collect();
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
    let busy: Vec<Waiter> = (0..2 * SLICE).map(|_| waiters.join(topic, Lease::default())).collect();
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
