//! Gates and budgets under random use, polled by hand so that every step can be looked at.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::queue::{FairQueue, Pushed};
use super::{Budget, Full, Gate, Place, Share};

const LONG: Duration = Duration::from_secs(3_600);

type Asked<T> = Pin<Box<dyn Future<Output = Result<T, Full>>>>;

fn poll<T>(asked: &mut Asked<T>) -> Poll<Result<T, Full>> {
    asked.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn name(environment: usize) -> String {
    format!("env_{environment}")
}

fn enter(gate: &Gate, environment: usize, within: Duration) -> Asked<Place> {
    let gate = gate.clone();
    Box::pin(async move { gate.enter(&name(environment), within).await })
}

fn take(budget: &Budget, environment: usize, bytes: usize) -> Asked<Share> {
    let budget = budget.clone();
    Box::pin(async move { budget.take(&name(environment), bytes, LONG).await })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Ask { environment: usize, bytes: usize },
    Leave(prop::sample::Index),
    Release(prop::sample::Index),
    Resize(prop::sample::Index, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..4usize, 1..60usize).prop_map(|(environment, bytes)| Step::Ask { environment, bytes }),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        4 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (any::<prop::sample::Index>(), 1..60usize).prop_map(|(i, bytes)| Step::Resize(i, bytes)),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn a_gate_is_never_above_its_places_and_goes_in_turns(places in 1..7usize, steps in steps()) {
        let runtime = runtime();
        let _entered = runtime.enter();
        let gate = Gate::new(places, 1_000, "test");
        let share = (places - (places / 4).max(1)).max(1);
        let mut waiting: Vec<(usize, Asked<Place>)> = Vec::new();
        let mut held: Vec<(usize, Place)> = Vec::new();
        // How often each environment went in while the other waited and could have.
        let mut passed: HashMap<(usize, usize), usize> = HashMap::new();
        for step in steps {
            match step {
                Step::Ask { environment, .. } => waiting.push((environment, enter(&gate, environment, LONG))),
                Step::Leave(i) if !waiting.is_empty() => drop(waiting.remove(i.index(waiting.len()))),
                Step::Release(i) if !held.is_empty() => drop(held.remove(i.index(held.len()))),
                _ => {}
            }
            let of = |held: &[(usize, Place)], environment| held.iter().filter(|(e, _)| *e == environment).count();
            let before: HashMap<usize, bool> = (0..4).map(|e| (e, of(&held, e) < share)).collect();
            let mut entered = Vec::new();
            let mut still = Vec::new();
            for (environment, mut asked) in waiting {
                match poll(&mut asked) {
                    Poll::Ready(place) => {
                        let waits_before = still.iter().any(|(e, _)| *e == environment);
                        prop_assert!(!waits_before, "first in, first out within an environment");
                        held.push((environment, place.unwrap()));
                        entered.push(environment);
                    }
                    Poll::Pending => still.push((environment, asked)),
                }
            }
            waiting = still;
            prop_assert!(held.len() <= places);
            for waiter in 0..4 {
                prop_assert!(of(&held, waiter) <= share);
                let waits = waiting.iter().any(|(e, _)| *e == waiter);
                let could = of(&held, waiter) < share;
                prop_assert!(!(waits && could && held.len() < places), "a place is free for it");
                for other in (0..4).filter(|other| *other != waiter) {
                    let count = passed.entry((waiter, other)).or_default();
                    if waits && could && before[&waiter] && !entered.contains(&waiter) {
                        *count += entered.iter().filter(|e| **e == other).count();
                        prop_assert!(*count <= 1, "{other} went before {waiter} twice");
                    } else {
                        *count = 0;
                    }
                }
            }
        }
        // Some of these have been given a place that they never saw.
        drop(held);
        drop(waiting);
        let mut all: Vec<_> = (0..places).map(|nth| enter(&gate, nth + 10, LONG)).collect();
        prop_assert!(all.iter_mut().all(|asked| poll(asked).is_ready()));
        prop_assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn a_budget_is_never_overdrawn_but_by_one_or_by_growth(steps in steps()) {
        let runtime = runtime();
        let _entered = runtime.enter();
        let (total, own) = (100, 50);
        let budget = Budget::new(total, own, 1_000, "test");
        let mut waiting: Vec<(usize, Asked<Share>)> = Vec::new();
        let mut held: Vec<(usize, Share)> = Vec::new();
        for step in steps {
            let of = |held: &[(usize, Share)], e: usize| -> usize {
                held.iter().filter(|(env, _)| *env == e).map(|(_, share)| share.bytes()).sum()
            };
            match step {
                Step::Ask { environment, bytes } => waiting.push((environment, take(&budget, environment, bytes))),
                Step::Leave(i) if !waiting.is_empty() => drop(waiting.remove(i.index(waiting.len()))),
                Step::Release(i) if !held.is_empty() => drop(held.remove(i.index(held.len()))),
                Step::Resize(i, bytes) if !held.is_empty() => {
                    let at = i.index(held.len());
                    held[at].1.resize(bytes);
                }
                _ => {}
            }
            let kept = held.len();
            let mut still = Vec::new();
            for (environment, mut asked) in waiting {
                match poll(&mut asked) {
                    Poll::Ready(share) => {
                        let waits_before = still.iter().any(|(e, _)| *e == environment);
                        prop_assert!(!waits_before, "first in, first out within an environment");
                        held.push((environment, share.unwrap()));
                    }
                    Poll::Pending => still.push((environment, asked)),
                }
            }
            waiting = still;
            let used: usize = held.iter().map(|(_, share)| share.bytes()).sum();
            prop_assert_eq!(budget.used(), used);
            if held.len() > kept {
                prop_assert!(used <= total || held.len() == 1);
                for (environment, _) in &held[kept..] {
                    let count = held.iter().filter(|(e, _)| e == environment).count();
                    prop_assert!(of(&held, *environment) <= own || count == 1);
                }
            }
            prop_assert!(!held.is_empty() || waiting.is_empty(), "nothing is out and somebody waits");
        }
        drop(held);
        drop(waiting);
        prop_assert_eq!((budget.used(), budget.waiting()), (0, 0));
    }

    #[test]
    fn a_queue_loses_nothing_and_never_holds_more_than_its_limit(
        limit in 1..8usize,
        steps in prop::collection::vec((0..3usize, any::<bool>()), 1..80),
    ) {
        let mut queue = FairQueue::new(limit);
        let mut inside = Vec::new();
        for (number, (environment, push)) in steps.into_iter().enumerate() {
            if !push {
                let popped = queue.pop().map(|(_, _, item)| item);
                prop_assert_eq!(popped.is_some(), !inside.is_empty());
                inside.retain(|item| Some(*item) != popped);
                continue;
            }
            let lane = |of: usize| inside.iter().filter(|(e, _)| *e == of).count();
            let longest = (0..3).map(lane).max().unwrap();
            let own = lane(environment);
            match queue.push(&name(environment), (environment, number)) {
                Pushed::In(_) => prop_assert!(inside.len() < limit),
                Pushed::InsteadOf(_, other) => {
                    prop_assert!(inside.len() == limit && own < longest && lane(other.0) == longest);
                    let newest = inside.iter().rfind(|(e, _)| *e == other.0).copied();
                    prop_assert_eq!(newest, Some(other));
                    inside.retain(|item| *item != other);
                }
                Pushed::Refused(_) => {
                    prop_assert!(inside.len() == limit && own == longest);
                    continue;
                }
            }
            inside.push((environment, number));
            prop_assert_eq!(queue.len(), inside.len());
        }
    }
}

#[test]
fn a_place_that_was_given_to_somebody_who_just_left_goes_to_the_next() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let gate = Gate::new(1, 10, "test");
    let mut first = enter(&gate, 0, LONG);
    let Poll::Ready(Ok(place)) = poll(&mut first) else { panic!("the gate is empty") };
    let (mut second, mut third) = (enter(&gate, 1, LONG), enter(&gate, 2, LONG));
    assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
    drop(place);
    drop(second);
    assert!(poll(&mut third).is_ready());
}

#[test]
fn whoever_waits_too_long_is_refused_and_takes_no_place() {
    runtime().block_on(async {
        let gate = Gate::new(1, 10, "test");
        let place = gate.enter("a", LONG).await.unwrap();
        assert!(matches!(gate.enter("b", Duration::ZERO).await, Err(Full)));
        assert_eq!(gate.waiting(), 0);
        drop(place);
        assert!(gate.enter("b", Duration::ZERO).await.is_ok());
    });
}

#[test]
fn a_crowd_of_one_environment_gives_way_to_another_at_a_full_gate() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let gate = Gate::new(1, 3, "test");
    let Poll::Ready(Ok(_place)) = poll(&mut enter(&gate, 0, LONG)) else { panic!("it is empty") };
    let mut crowd: Vec<_> = (0..3).map(|_| enter(&gate, 0, LONG)).collect();
    assert!(crowd.iter_mut().all(|asked| poll(asked).is_pending()));
    assert!(matches!(poll(&mut enter(&gate, 0, LONG)), Poll::Ready(Err(Full))));
    let mut other = enter(&gate, 1, LONG);
    assert!(poll(&mut other).is_pending(), "it waits instead of the crowd's newest");
    assert!(matches!(poll(&mut crowd[2]), Poll::Ready(Err(Full))));
    assert!(poll(&mut crowd[1]).is_pending());
}

#[test]
fn a_large_request_is_not_passed_by_for_ever() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let budget = Budget::new(100, 100, 10, "test");
    let Poll::Ready(Ok(small)) = poll(&mut take(&budget, 0, 10)) else { panic!("it is empty") };
    let mut large = take(&budget, 1, 1_000);
    let mut later = take(&budget, 2, 10);
    assert!(poll(&mut large).is_pending());
    assert!(poll(&mut later).is_pending(), "it would fit, and waits behind the large one");
    drop(small);
    let Poll::Ready(Ok(alone)) = poll(&mut large) else { panic!("nothing else is out") };
    assert!(poll(&mut later).is_pending());
    drop(alone);
    assert!(poll(&mut later).is_ready());
}

#[test]
fn growth_lets_those_in_for_whom_the_head_of_the_queue_steps_aside() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let budget = Budget::new(100, 50, 10, "test");
    let held = |environment, bytes| match poll(&mut take(&budget, environment, bytes)) {
        Poll::Ready(Ok(share)) => share,
        _ => panic!("it fits"),
    };
    let (mut own, _other, _third) = (held(0, 8), held(1, 25), held(2, 30));
    let mut head = take(&budget, 0, 40);
    let mut behind = take(&budget, 1, 1);
    assert!(poll(&mut head).is_pending(), "the whole has no room for it");
    assert!(poll(&mut behind).is_pending(), "it is not its turn");
    own.resize(11);
    assert!(poll(&mut head).is_pending(), "now it would be over its own bound");
    assert!(poll(&mut behind).is_ready());
}

#[test]
fn who_does_not_wait_gets_a_place_of_its_environments_share_or_none() {
    let gate = Gate::new(8, 0, "test");
    let of_a: Vec<_> = (0..9).filter_map(|_| gate.try_enter("a")).collect();
    let of_b: Vec<_> = (0..9).filter_map(|_| gate.try_enter("b")).collect();
    assert_eq!((of_a.len(), of_b.len()), (6, 2));
    drop(of_a);
    assert!(gate.try_enter("b").is_some());
}
