//! The hub on a real store.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::store::{Start, Store, StoreSettings, StreamId};
use super::{Frames, Hub, Next, Paced, Reader};

struct Stand {
    hub: Hub,
    stream: StreamId,
    directory: PathBuf,
}

impl Stand {
    fn new(recent: usize) -> Stand {
        let name = format!("runwire-hub-{:016x}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        let flush = Duration::from_millis(1);
        let settings = StoreSettings { directory: directory.join("streams"), flush, min_free: 0 };
        let stream = StreamId { basin: "basin-of-tests".into(), name: "a/b".into() };
        Stand { hub: Hub::new(Store::embedded(settings), recent), stream, directory }
    }

    async fn append(&self, n: u64, size: usize) {
        let body = format!("{n}:{}", "x".repeat(size));
        self.hub.store().append(&self.stream, body.into()).await.unwrap();
    }

    async fn read(&self, start: Start) -> Reader {
        self.hub.read(self.stream.clone(), start).await.unwrap()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The numbers of what is next, until `last` has come.
async fn numbers(reader: &mut Reader, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let next = reader.next(Some(Instant::now() + Duration::from_secs(20)));
        numbers.extend(of_batch(next.await.unwrap()));
    }
    numbers
}

/// The numbers of a batch's records, each of which says its own.
fn of_batch(next: Next) -> Vec<u64> {
    let Next::Batch(batch, from) = next else { panic!("nothing came") };
    let pieces = Frames::default().batch(&batch, from).unwrap();
    let event = pieces.map(|piece| String::from_utf8(piece.to_vec()).unwrap()).concat();
    let data = event.lines().nth(2).unwrap().strip_prefix("data: ").unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    let records = data["records"].as_array().unwrap().iter();
    let numbers = records.map(|record| {
        let body = record["body"].as_str().unwrap().split(':').next().unwrap();
        assert_eq!(record["seq_num"].to_string(), body);
        record["seq_num"].as_u64().unwrap()
    });
    numbers.collect()
}

#[tokio::test]
async fn who_does_not_read_costs_no_memory_and_misses_nothing() {
    for recent in [0, 100_000, 100 << 20] {
        let stand = Stand::new(recent);
        let mut slow = stand.read(Start::At(0)).await;
        let mut fast = stand.read(Start::At(0)).await;
        for n in 0..30 {
            stand.append(n, 100_000).await;
            assert_eq!(numbers(&mut fast, n).await, [n]);
            assert!(stand.hub.recent() <= recent.min(1 << 20) + 110_000, "{}", stand.hub.recent());
        }
        assert_eq!(numbers(&mut slow, 29).await, (0..30).collect::<Vec<_>>());
        let mut late = stand.read(Start::At(13)).await;
        assert_eq!(numbers(&mut late, 29).await, (13..30).collect::<Vec<_>>());
        drop((slow, fast, late));
        assert_eq!(stand.hub.tails(), 0);
        // Gone as soon as the tail's task has been stopped.
        let gone = async {
            while stand.hub.recent() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        stand.hub.store().close().await;
    }
}

#[tokio::test]
async fn readers_that_come_while_it_is_written_join_without_gap_or_double() {
    let stand = Stand::new(20_000);
    let write = async {
        for n in 0..400 {
            stand.append(n, 500).await;
        }
    };
    let read = futures_util::future::join_all((0..20).map(|k| {
        let stand = &stand;
        async move {
            tokio::time::sleep(Duration::from_millis(k * 37)).await;
            let start = rand::random_range(0..=k * 2);
            let mut reader = stand.read(Start::At(start)).await;
            // The beginning is clamped to what there was.
            let read = numbers(&mut reader, 399).await;
            assert!(read[0] <= start, "{start}: {read:?}");
            assert_eq!(read, (read[0]..400).collect::<Vec<_>>());
        }
    }));
    futures_util::join!(write, read);
    stand.hub.store().close().await;
}

/// More than are woken together, who read at their own pace.
#[tokio::test]
async fn a_crowd_that_is_woken_in_slices_is_given_everything_once() {
    const CROWD: u64 = 200;
    const RECORDS: u64 = 300;
    let stand = Stand::new(1 << 20);
    let begun = futures_util::future::join_all((0..CROWD).map(|_| stand.read(Start::At(0)))).await;
    let crowd: Vec<_> = begun
        .into_iter()
        .enumerate()
        .map(|(k, mut reader)| {
            tokio::spawn(async move {
                let (mut read, mut events) = (Vec::new(), 0);
                while read.last() != Some(&(RECORDS - 1)) {
                    let next = reader.next(Some(Instant::now() + Duration::from_secs(20)));
                    read.extend(of_batch(next.await.unwrap()));
                    events += 1;
                    for _ in 0..k % 50 {
                        tokio::task::yield_now().await;
                    }
                }
                (read, events)
            })
        })
        .collect();
    for n in 0..RECORDS {
        stand.append(n, 50).await;
    }
    for member in crowd {
        let (read, events) = member.await.unwrap();
        assert_eq!(read, (0..RECORDS).collect::<Vec<_>>());
        assert!(events <= RECORDS, "{events}");
    }
    stand.hub.store().close().await;
}

#[tokio::test]
async fn who_was_busy_meanwhile_is_given_all_that_came_as_one_event() {
    let stand = Stand::new(1 << 20);
    let mut reader = stand.read(Start::Latest).await;
    let mut other = stand.read(Start::Latest).await;
    for n in 0..50 {
        stand.append(n, 50).await;
        assert_eq!(numbers(&mut other, n).await, [n]);
    }
    assert_eq!(of_batch(reader.next(None).await.unwrap()), (0..50).collect::<Vec<_>>());
    stand.append(50, 50).await;
    assert_eq!(numbers(&mut reader, 50).await, [50]);
    assert_eq!(numbers(&mut other, 50).await, [50]);
    stand.hub.store().close().await;
}

#[tokio::test]
async fn who_waits_has_no_room_for_what_readers_rarely_do() {
    let stand = Stand::new(1 << 20);
    let mut reader = Paced::new(stand.read(Start::Latest).await, Duration::ZERO);
    // Opening a read of the store takes many times as much.
    let size = size_of_val(&reader.next(None));
    assert!(size < 1_000, "{size} bytes");
    stand.hub.store().close().await;
}

#[tokio::test]
async fn a_fault_of_the_store_is_an_error_to_every_reader() {
    let stand = Stand::new(1 << 20);
    stand.append(0, 10).await;
    let mut reader = stand.read(Start::At(0)).await;
    assert_eq!(numbers(&mut reader, 0).await, [0]);
    stand.hub.store().close().await;
    let told = reader.next(Some(Instant::now() + Duration::from_secs(20)));
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    assert!(told.expect("it is told").is_err());
    assert!(stand.hub.read(stand.stream.clone(), Start::Latest).await.is_err());
}

#[tokio::test]
async fn a_store_that_was_closed_under_us_opens_again_with_all_it_took() {
    let stand = Stand::new(1 << 20);
    stand.append(0, 10).await;
    let Store::Embedded(embedded) = stand.hub.store() else { panic!("no store") };
    embedded.break_off().await;
    let heals = async {
        while stand.hub.store().append(&stand.stream, "1:".into()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heals).await.unwrap();
    let mut reader = stand.read(Start::At(0)).await;
    assert_eq!(numbers(&mut reader, 1).await, [0, 1]);
    stand.hub.store().close().await;
}

#[tokio::test]
async fn a_throttled_reader_is_given_everything_in_order_and_once_in_a_while() {
    const EVERY: Duration = Duration::from_millis(300);
    // With and without memory for what it is not given at once.
    for recent in [0, 1 << 20] {
        let stand = Stand::new(recent);
        let mut reader = Paced::new(stand.read(Start::At(0)).await, EVERY);
        let write = async {
            for n in 0..60 {
                stand.append(n, 2_000).await;
                tokio::time::sleep(Duration::from_millis(15)).await;
                assert!(stand.hub.recent() <= recent + 20_000, "{}", stand.hub.recent());
            }
        };
        let read = async {
            let (mut numbers, mut begins) = (Vec::new(), Vec::<Instant>::new());
            while numbers.last() != Some(&59) {
                let next = reader.next(Some(Instant::now() + Duration::from_secs(20))).await;
                numbers.extend(of_batch(next.unwrap()));
                // What comes without a tick in between was given together.
                if begins.last().is_none_or(|begin| begin.elapsed() >= EVERY) {
                    begins.push(Instant::now());
                }
            }
            (numbers, begins)
        };
        let begun = Instant::now();
        let (_, (numbers, begins)) = futures_util::join!(write, read);
        assert_eq!(numbers, (0..60).collect::<Vec<_>>());
        let ticks = begun.elapsed().as_millis() / EVERY.as_millis();
        assert!(begins.len() as u128 <= ticks + 1, "{} times in {ticks} ticks", begins.len());
        assert!(begins.len() > 2, "{}", begins.len());
        stand.hub.store().close().await;
    }
}

#[tokio::test]
async fn what_is_held_back_waits_for_the_tick_and_a_fault_does_not() {
    let stand = Stand::new(1 << 20);
    let mut reader = Paced::new(stand.read(Start::At(0)).await, Duration::from_secs(60));
    let soon = || Some(Instant::now() + Duration::from_secs(20));
    stand.append(0, 10).await;
    assert_eq!(of_batch(reader.next(soon()).await.unwrap()), [0], "the first is given at once");
    // It has everything, so that the tick begins.
    assert!(matches!(reader.next(None).await, Ok(Next::Nothing(_))));
    stand.append(1, 10).await;
    let nothing = reader.next(Some(Instant::now() + Duration::from_millis(300))).await;
    assert!(matches!(nothing, Ok(Next::Nothing(tail)) if tail.seq_num <= 2), "{nothing:?}");
    while reader.held_back().is_none() {
        tokio::task::yield_now().await;
    }
    reader.release();
    assert_eq!(of_batch(reader.next(soon()).await.unwrap()), [1]);
    assert!(reader.held_back().is_none());
    let told = async { tokio::time::timeout(Duration::from_secs(20), reader.next(None)).await };
    assert!(matches!(told.await, Ok(Ok(Next::Nothing(_)))));
    let (told, ()) = futures_util::join!(reader.next(soon()), stand.hub.store().close());
    assert!(told.is_err(), "{told:?}");
}
