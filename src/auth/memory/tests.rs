use std::sync::atomic::AtomicUsize;

use tokio::sync::oneshot;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const KEY: Fingerprint = [7; 32];

fn memory() -> (Memory<u32>, Generation) {
    let generation = Generation::default();
    (Memory::new(generation.clone(), LONG, 1 << 20, |_| 0), generation)
}

async fn learn(memory: &Memory<u32>, outcome: Result<u32, Refusal>) -> Result<u32, Refusal> {
    memory.learn(KEY, LONG, || async move { outcome }).await.outcome
}

fn recall(memory: &Memory<u32>) -> Option<Result<u32, Refusal>> {
    memory.recall(&KEY, LONG).map(|kept| kept.outcome)
}

#[tokio::test]
async fn an_answer_is_remembered_until_it_is_too_old() {
    let (memory, _) = memory();
    assert_eq!(recall(&memory), None);
    assert_eq!(learn(&memory, Ok(1)).await, Ok(1));
    assert_eq!(learn(&memory, Ok(2)).await, Ok(1), "the remembered one will do");
    assert!(memory.recall(&KEY, Duration::ZERO).is_none(), "not for who wants a fresher one");

    let aged = |value, seconds| Kept {
        outcome: Ok(value),
        read_at: Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap(),
        generation: 0,
    };
    memory.0.store(KEY, aged(3, 11));
    assert_eq!(recall(&memory), Some(Ok(3)));
    assert!(memory.recall(&KEY, Duration::from_secs(11)).is_none());
    memory.0.store(KEY, aged(4, 61));
    assert_eq!(recall(&memory), None);
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let (memory, _) = memory();
    assert_eq!(learn(&memory, Err(Refusal::Unavailable)).await, Err(Refusal::Unavailable));
    assert_eq!(recall(&memory), None);
    assert_eq!(learn(&memory, Ok(1)).await, Ok(1));
}

#[tokio::test]
async fn a_panic_is_a_failure_and_clears_the_way() {
    let (memory, _) = memory();
    let kept = memory.learn(KEY, LONG, || async { panic!("on purpose") }).await;
    assert_eq!(kept.outcome, Err(Refusal::Unavailable));
    assert_eq!(learn(&memory, Ok(1)).await, Ok(1));
}

#[tokio::test]
async fn many_ask_at_once_and_one_query_runs_even_if_the_first_leaves() {
    let (memory, _) = memory();
    let loads = Arc::new(AtomicUsize::new(0));
    let (open, gate) = oneshot::channel::<()>();
    let mut gate = Some(gate);
    let mut askers = Vec::new();
    for _ in 0..50 {
        let (memory, loads, gate) = (memory.clone(), Arc::clone(&loads), gate.take());
        askers.push(tokio::spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                if let Some(gate) = gate {
                    gate.await.unwrap();
                }
                Ok(9)
            };
            memory.learn(KEY, LONG, load).await.outcome
        }));
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    askers.remove(0).abort();
    open.send(()).unwrap();
    for asker in askers {
        assert_eq!(asker.await.unwrap(), Ok(9));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(memory.0.flights.is_empty());
}

#[tokio::test]
async fn who_asks_after_a_change_never_gets_an_answer_from_before_it() {
    let (memory, generation) = memory();
    learn(&memory, Ok(1)).await.unwrap();
    let before = memory.recall(&KEY, LONG).unwrap();
    generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(recall(&memory), None);

    // A query that is under way when the next change comes.
    let (open, gate) = oneshot::channel::<()>();
    let asker = tokio::spawn({
        let memory = memory.clone();
        async move {
            let load = || async move {
                gate.await.unwrap();
                Ok(2)
            };
            memory.learn(KEY, LONG, load).await.outcome
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(learn(&memory, Ok(3)).await, Ok(3), "does not join the older query");
    open.send(()).unwrap();
    assert_eq!(asker.await.unwrap(), Ok(2));
    assert_eq!(recall(&memory), Some(Ok(3)), "nor is it stored over the newer answer");
    memory.0.store(KEY, before);
    assert_eq!(recall(&memory), Some(Ok(3)));
}
