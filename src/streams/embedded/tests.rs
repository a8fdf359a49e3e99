//! What becomes of it when its disk hangs or is full, and when another takes it over.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures_util::StreamExt as _;
use slatedb::object_store::local::LocalFileSystem;

use super::threads::Threads;
use super::{Embedded, FILES};
use crate::streams::store::{Event, Start, StoreError, StoreSettings, StreamId};

struct Hanging(Arc<AtomicBool>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Stand {
    store: Embedded,
    directory: PathBuf,
    stream: StreamId,
}

impl Stand {
    fn new(min_free: u64) -> Stand {
        let name = format!("runwire-store-{:016x}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        let flush = Duration::from_millis(1);
        let settings = StoreSettings { directory: directory.join("streams"), flush, min_free };
        let stream = StreamId { basin: "basin-of-tests".into(), name: "a/b".into() };
        Stand { store: Embedded::new(settings), directory, stream }
    }

    /// Keeps all work on files waiting for as long as what is returned lives, as a disk does that hangs.
    fn hang(&self) -> Hanging {
        let hangs = Arc::new(AtomicBool::new(true));
        let handle = self.store.handle().unwrap();
        for _ in 0..FILES {
            let hangs = Arc::clone(&hangs);
            handle.spawn_blocking(move || {
                while hangs.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        Hanging(hangs)
    }

    async fn append(&self, n: usize) -> Result<(), StoreError> {
        self.store.append(&self.stream, n.to_string().into()).await
    }

    /// Appends until it is taken.
    async fn heals(&self, n: usize) {
        let heals = async {
            while self.append(n).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heals).await.expect("it heals");
    }

    async fn records(&self) -> u64 {
        let mut reading = self.store.read(&self.stream, Start::At(0), false).await.unwrap();
        let mut records = 0;
        while let Some(event) = reading.recv().await {
            if let Event::Batch(batch) = event.unwrap() {
                records = batch.last() + 1;
            }
        }
        records
    }

    /// A session that is sent this much, and its answer.
    async fn session(&self, inputs: &[u8]) -> Result<axum::body::BodyDataStream, StoreError> {
        // It stays open: clients end theirs when they have all acknowledgements.
        let open = futures_util::stream::pending();
        let sent =
            futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(inputs))]);
        let request = Request::post("/streams/a%2Fb/records").header("s2-basin", "basin-of-tests");
        let request = request.header("content-type", "s2s/proto");
        let request = request.body(Body::from_stream(sent.chain(open))).unwrap();
        let response = self.store.serve("basin-of-tests", request).await?;
        assert_eq!(response.status(), 200);
        Ok(response.into_body().into_data_stream())
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An `AppendInput` of one record, whose body is one byte, as a frame.
const INPUT: [u8; 9] = [0, 0, 6, 0, 0x0a, 3, 0x1a, 1, b'x'];

#[tokio::test]
async fn a_disk_that_hangs_is_an_error_to_appends_in_time_and_none_afterwards() {
    let stand = Stand::new(0);
    stand.append(0).await.unwrap();
    let hanging = stand.hang();
    let error = stand.append(1).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("in time")), "{error}");
    drop(hanging);
    stand.heals(2).await;
    // What was not acknowledged may have been taken.
    assert!((2..=3).contains(&stand.records().await));
    stand.store.close().await;
}

#[tokio::test]
async fn a_session_that_is_not_acknowledged_is_cut_and_one_that_owes_nothing_goes_on() {
    let stand = Stand::new(0);
    let mut quiet = stand.session(&INPUT).await.unwrap();
    assert!(quiet.next().await.unwrap().is_ok(), "an acknowledgement");
    let mut partly = stand.session(&INPUT[..5]).await.unwrap();
    let hanging = stand.hang();
    let mut stuck = stand.session(&INPUT).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(15), stuck.next()).await;
    assert!(told.expect("it is told").unwrap().is_err());
    for session in [&mut quiet, &mut partly] {
        let silent = tokio::time::timeout(Duration::from_secs(1), session.next()).await;
        assert!(silent.is_err(), "{silent:?}");
    }
    drop(hanging);
    stand.store.close().await;
}

#[tokio::test]
async fn a_store_that_another_took_over_is_taken_back_with_all_it_acknowledged() {
    let stand = Stand::new(0);
    for n in 0..20 {
        stand.append(n).await.unwrap();
    }
    // Past the lock, as on a disk that knows none.
    let files = LocalFileSystem::new_with_prefix(stand.directory.join("streams")).unwrap();
    let other = slatedb::Db::builder("", Arc::new(files)).build().await.unwrap();
    let refused = async {
        let mut n = 20;
        while stand.append(n).await.is_ok() {
            n += 1;
        }
        n
    };
    let n = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("it is fenced");
    stand.heals(n).await;
    assert!(stand.records().await > n as u64);
    let _ = other.close().await;
    stand.append(n + 1).await.unwrap();
    stand.store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_appends_and_sessions_and_is_read() {
    let stand = Stand::new(u64::MAX);
    assert!(matches!(stand.append(0).await, Err(StoreError::Full)));
    assert!(matches!(stand.session(&INPUT).await, Err(StoreError::Full)));
    assert_eq!(stand.records().await, 0);
    stand.store.close().await;
}

#[tokio::test]
async fn what_was_closed_leaves_nothing_running() {
    let stand = Stand::new(0);
    stand.append(0).await.unwrap();
    let alive = || {
        let tasks = |threads: &Threads| threads.present().metrics().num_alive_tasks();
        stand.store.on_threads(tasks).unwrap()
    };
    let once = alive();
    for n in 1..5 {
        stand.store.break_off().await;
        stand.heals(n).await;
    }
    // Of each there would be three or more.
    let gone = async {
        while alive() > once + 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(5), gone).await;
    assert!(gone.is_ok(), "{} tasks, and {once} at first", alive());
    stand.store.close().await;
}
