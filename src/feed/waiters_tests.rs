//! The wake lists.

use futures_util::FutureExt as _;

use super::super::topic::Topic;
use super::*;

#[tokio::test]
async fn a_wake_between_asking_and_awaiting_is_not_lost() {
    let waiters = Arc::new(Waiters::default());
    let topic = Topic::run("env", "run");
    let waiter = waiters.join(topic, Lease::default());
    let woken = waiter.woken();
    waiters.wake(topic);
    woken.await;
}

#[tokio::test]
async fn who_has_lost_the_lease_is_woken_and_nobody_else() {
    let waiters = Arc::new(Waiters::default());
    let lost = Lease::default();
    let joined = [
        waiters.join(Topic::run("env", "a"), lost.clone()),
        waiters.join(Topic::run("env", "a"), Lease::default()),
        waiters.join(Topic::run("env", "b"), lost.clone()),
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
    let topic = Topic::run("env", "run");
    let (a, b) = (waiters.join(topic, Lease::default()), waiters.join(topic, Lease::default()));
    drop(a);
    assert_eq!(waiters.len(), 1);
    drop(b);
    assert_eq!(waiters.len(), 0);
}

#[test]
fn who_leaves_a_crowd_takes_nobodys_place_along() {
    let waiters = Arc::new(Waiters::default());
    let topic = Topic::run("env", "run");
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
    let topic = Topic::run("env", "run");
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
