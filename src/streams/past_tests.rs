//! Those who are behind, on a store that does what the test says.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::scripted::Scripted;
use super::store::{Start, Store, StreamId};
use super::{Hub, Next, Reader};

fn stand(store: &Arc<Scripted>, recent: usize) -> (Hub, StreamId) {
    let stream = StreamId { basin: "basin-of-tests".into(), name: "a/runs/b".into() };
    (Hub::new(Store::Scripted(Arc::clone(store)), recent), stream)
}

/// The numbers that are given next; none if nothing comes.
async fn given(reader: &mut Reader, until: Option<Instant>) -> Vec<u64> {
    match reader.next(until).await.expect("no fault") {
        Next::Batch(batch, from) => batch.numbers().filter(|number| *number >= from).collect(),
        Next::Nothing(_) => Vec::new(),
    }
}

/// Everything that there is.
async fn all(reader: &mut Reader) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let given = given(reader, None).await;
        if given.is_empty() {
            return all;
        }
        all.extend(given);
    }
}

#[tokio::test]
async fn many_who_catch_up_together_cost_the_store_one_read() {
    let store = Scripted::new(50, 100);
    store.append(10_000);
    let (hub, stream) = stand(&store, 128 << 20);
    let read = futures_util::future::join_all((0..100).map(|k| {
        let (hub, stream) = (&hub, stream.clone());
        async move {
            let mut reader = hub.read(stream, Start::At(k % 7)).await.unwrap();
            assert_eq!(all(&mut reader).await, (k % 7..10_000).collect::<Vec<_>>());
        }
    }));
    read.await;
    let asked = store.asked();
    assert!(asked.reads <= 7 && asked.pages < 300, "{asked:?}");
    assert_eq!(hub.recent(), 0, "pages are kept for nobody");
}

#[tokio::test]
async fn who_comes_later_is_given_the_pages_that_are_kept() {
    let store = Scripted::new(50, 100);
    store.append(1_000);
    let (hub, stream) = stand(&store, 128 << 20);
    let mut first = hub.read(stream.clone(), Start::At(0)).await.unwrap();
    let mut second = hub.read(stream, Start::At(0)).await.unwrap();
    assert_eq!(given(&mut second, None).await.len(), 50);
    let mut leading = 0;
    while leading < 900 {
        leading += given(&mut first, None).await.len();
    }
    let before = store.asked();
    let mut following = 50;
    while following < 900 {
        following += given(&mut second, None).await.len();
    }
    assert_eq!(store.asked().reads, before.reads);
    assert_eq!(all(&mut second).await.last(), Some(&999));
}

#[tokio::test]
async fn pages_leave_room_for_what_is_recent() {
    let store = Scripted::new(50, 1_000);
    store.append(2_000);
    for recent in [0, 100_000, 1_000_000] {
        let (hub, stream) = stand(&store, recent);
        let mut readers = Vec::new();
        for k in 0..10 {
            readers.push(hub.read(stream.clone(), Start::At(k * 100)).await.unwrap());
        }
        for (k, reader) in readers.iter_mut().enumerate() {
            for n in 0..10 {
                assert_eq!(given(reader, None).await[0], k as u64 * 100 + n * 50);
                assert!(hub.recent() <= recent / 2, "{}", hub.recent());
            }
        }
    }
}

#[tokio::test]
async fn a_read_that_breaks_off_is_not_the_end_of_what_there_is() {
    let store = Scripted::new(50, 100);
    store.append(1_000);
    let (hub, stream) = stand(&store, 1 << 20);
    let mut reader = hub.read(stream, Start::At(0)).await.unwrap();
    store.cut();
    assert!(reader.next(None).await.is_err());
}

#[tokio::test]
async fn a_kept_read_that_fails_is_nothing_to_who_goes_on_from_it() {
    let store = Scripted::new(50, 100);
    store.append(1_000);
    let (hub, stream) = stand(&store, 1 << 20);
    let mut reader = hub.read(stream, Start::At(0)).await.unwrap();
    assert_eq!(given(&mut reader, None).await.len(), 50);
    store.fail_open_reads();
    assert_eq!(all(&mut reader).await, (50..1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_stops_taking_keeps_nobody_else_waiting() {
    let store = Scripted::new(50, 100);
    store.append(1_000);
    let (hub, stream) = stand(&store, 1 << 20);
    let mut stopped = hub.read(stream.clone(), Start::At(0)).await.unwrap();
    assert_eq!(given(&mut stopped, None).await.len(), 50);
    // Another one is given up while it waits, for a page or its turn.
    let mut waiting = hub.read(stream.clone(), Start::At(0)).await.unwrap();
    let mut next = Box::pin(waiting.next(None));
    assert!(futures_util::poll!(&mut next).is_pending());
    let mut other = hub.read(stream, Start::At(0)).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), all(&mut other));
    assert_eq!(read.await.expect("it has its turns").len(), 1_000);
    drop(next);
    assert_eq!(all(&mut waiting).await.len(), 1_000);
    assert_eq!(all(&mut stopped).await.len(), 950);
}

#[tokio::test]
async fn a_fault_is_told_to_all_who_wait_for_a_page() {
    let store = Scripted::new(50, 100);
    store.append(1_000);
    let (hub, stream) = stand(&store, 0);
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(hub.read(stream.clone(), Start::At(0)).await.unwrap());
    }
    store.fail();
    for reader in &mut readers {
        let told = tokio::time::timeout(Duration::from_secs(20), reader.next(None)).await;
        assert!(told.expect("it is told").is_err());
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    /// Up to this share of what there is.
    Trim(f64),
    /// From this share of what there is.
    Come(f64),
    /// One of the readers takes so much.
    Take(usize, usize),
    Go(usize),
    /// Others have their turn.
    Wait(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..40_u64).prop_map(Step::Append),
        1 => (0.0..1.0).prop_map(Step::Trim),
        2 => (0.0..1.0).prop_map(Step::Come),
        8 => (0..8_usize, 1..20_usize).prop_map(|(who, much)| Step::Take(who, much)),
        1 => (0..8_usize).prop_map(Step::Go),
        2 => (1..20_usize).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..80)
}

struct Taken {
    reader: Reader,
    numbers: Vec<u64>,
    start: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn pages_and_tail_give_every_record_once_and_in_order(
        steps in steps(),
        page in 1..12_usize,
        size in prop_oneof![Just(10_usize), Just(3_000)],
        recent in prop_oneof![Just(0_usize), Just(60_000), Just(16 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Scripted::new(page, size);
            store.append(100);
            let (hub, stream) = stand(&store, recent);
            let mut readers: Vec<Taken> = Vec::new();
            let share = |of: u64, share: f64| (of as f64 * share) as u64;
            for step in steps {
                let next = store.written().next;
                match step {
                    Step::Append(records) => store.append(records),
                    Step::Trim(to) => store.trim(share(next, to)),
                    Step::Come(from) => {
                        let at = share(next, from);
                        let reader = hub.read(stream.clone(), Start::At(at)).await.unwrap();
                        // The tail may not have come as far.
                        let start = reader.at();
                        assert!(start <= at);
                        readers.push(Taken { reader, numbers: Vec::new(), start });
                    }
                    Step::Take(who, much) => {
                        let count = readers.len().max(1);
                        let Some(taken) = readers.get_mut(who % count) else { continue };
                        for _ in 0..much {
                            let given = given(&mut taken.reader, None).await;
                            taken.numbers.extend(given);
                        }
                    }
                    Step::Go(who) => if who < readers.len() { drop(readers.remove(who)) },
                    Step::Wait(times) => for _ in 0..times { tokio::task::yield_now().await },
                }
            }
            let end = store.written();
            for Taken { reader, numbers, start } in &mut readers {
                while reader.at() < end.next {
                    let soon = Instant::now() + Duration::from_secs(20);
                    numbers.extend(given(reader, Some(soon)).await);
                }
                assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
                let mut missing = (*start..end.next).filter(|n| numbers.binary_search(n).is_err());
                assert!(missing.all(|n| n < end.trimmed), "from {start}: {numbers:?}, {end:?}");
                assert!(numbers.first().is_none_or(|first| first >= start));
            }
        });
    }
}
