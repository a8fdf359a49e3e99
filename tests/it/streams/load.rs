//! Much at once: the store's memory is bounded however much is written to however many streams.

use futures_util::StreamExt as _;

use crate::support::cluster::fresh_database;
use crate::support::program::Serving;
use crate::support::streams::{run, scratch};

const STREAMS: usize = 40;
const CHUNK: usize = 500_000;
/// 200 MB in all.
const CHUNKS: usize = 400;
const AT_ONCE: usize = 48;
/// What the limits add up to: appends that are not durable, what is not in tables yet, tables that are read,
/// recent chunks, what goes through for each reader, and what the allocator makes of it.
const PEAK: u64 = 600 << 20;

#[tokio::test]
async fn much_that_is_written_at_once_takes_bounded_memory_and_is_kept() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let key = database.seeded.production.secret_key;
    let of = run(&database).await;
    let arguments = [&*directory, "--stream-recent-bytes=4MiB"];
    let gateway = Serving::start_ready(&database.url, &arguments).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/realtime/v1/streams/{of}", gateway.url);
    // They take nothing of what they are sent.
    let readers = (0..STREAMS).map(|n| client.get(format!("{url}/s{n}")).bearer_auth(key).send());
    let readers = futures_util::future::join_all(readers).await;
    assert!(
        readers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == 200))
    );
    let before = gateway.peak();
    let chunk = "x".repeat(CHUNK);
    let appends = futures_util::stream::iter(0..CHUNKS).map(async |n| {
        let path = format!("{url}/self/s{}/append", n % STREAMS);
        loop {
            let sent = client.post(&path).bearer_auth(key).body(chunk.clone()).send().await;
            match sent.expect("an answer").status().as_u16() {
                200 => break,
                // Writers wait, and some for too long.
                503 => {}
                status => panic!("{n}: {status}"),
            }
        }
        gateway.metric("runwire_stream_recent_bytes").await
    });
    let recent: Vec<f64> = appends.buffer_unordered(AT_ONCE).collect().await;
    let recent = recent.into_iter().fold(0.0, f64::max);
    // The newest batch of each stream stays.
    let most = (4 << 20) + STREAMS * 2 * (CHUNK + 1_000);
    assert!(recent > 0.0 && recent < most as f64, "{recent} of {most}");
    let peak = gateway.peak();
    println!("peak {} MiB, and {} before; recent {recent}", peak >> 20, before >> 20);
    assert!(peak < PEAK, "{} MiB, and {} before", peak >> 20, before >> 20);
    drop(readers);
    for n in 0..STREAMS {
        let request = client.get(format!("{url}/s{n}")).bearer_auth(key);
        let answer = request.header("timeout-seconds", "0").send().await.unwrap();
        let length = answer.bytes().await.expect("a whole body").len();
        assert!(length > CHUNKS / STREAMS * CHUNK, "{n}: {length}");
    }
    gateway.stop().await;
}
