//! Readers that ask for a tick: chunks come together, none left out, and what ends a stream is not late.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;

use crate::support::npm::Target;
use crate::support::streams::{SOON, Stand, expect_numbers, order, records, run, task};
use crate::support::token;

/// A token that reads everything and asks for this tick.
fn ticking(stand: &Stand, milliseconds: u64) -> String {
    let environment = stand.database.seeded.production;
    let mut claims = token::claims(environment.id);
    claims["scopes"] = json!(["read:all"]);
    claims["realtime"] = json!({ "throttleMs": milliseconds });
    token::sign(&claims, environment.secret_key)
}

/// What a reader was sent, and when since it was told that it has everything.
struct Sent {
    pieces: Vec<(Duration, String)>,
    ended: Duration,
}

impl Sent {
    fn text(&self) -> String {
        self.pieces.iter().map(|(_, piece)| piece.as_str()).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        records(&self.text()).into_iter().map(|(number, _)| number).collect()
    }

    /// When a record's number was sent.
    fn at(&self, number: u64) -> Duration {
        let mut text = String::new();
        let found = self.pieces.iter().find(|(_, piece)| {
            text.push_str(piece);
            let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
            records(whole).iter().any(|(sent, _)| *sent == number)
        });
        found.unwrap_or_else(|| panic!("{number} is missing: {}", self.text())).0
    }
}

/// Reads until the stream is said to end. Says when it has everything.
async fn read(
    stand: &Stand,
    run: &str,
    token: &str,
    query: &str,
    wait: u64,
    ready: tokio::sync::oneshot::Sender<()>,
) -> Sent {
    let path = format!("/realtime/v1/streams/{run}/ai?{query}");
    let request = stand.gateway.request("GET", &path).bearer_auth(token);
    let answer = request.header("timeout-seconds", wait).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let (mut body, mut ready, mut begun) = (answer.bytes_stream(), Some(ready), Instant::now());
    let mut pieces = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = String::from_utf8(piece.expect("a whole body").to_vec()).expect("UTF-8");
        if let (true, Some(ready)) = (piece.contains("event: ping"), ready.take()) {
            begun = Instant::now();
            let _ = ready.send(());
        }
        pieces.push((begun.elapsed(), piece));
    }
    let sent = Sent { pieces, ended: begun.elapsed() };
    assert!(sent.text().ends_with("data: [DONE]\n\n"));
    sent
}

#[tokio::test]
async fn chunks_between_two_ticks_come_together_and_the_first_and_the_end_wait_for_none() {
    let stand = Stand::start(&[]).await;
    let key = stand.key().to_owned();
    let (slow, fast) = (ticking(&stand, 2_000), ticking(&stand, 0));
    let cases = [
        (&key, "throttleMs=2000", true),
        (&slow, "throttleMs=0", true),
        (&fast, "throttleMs=2000", false),
        (&key, "", false),
    ];
    let cases = cases.map(|(token, query, throttled)| case(&stand, token, query, throttled));
    futures_util::future::join_all(cases).await;
}

async fn case(stand: &Stand, token: &str, query: &str, throttled: bool) {
    let run = stand.run().await;
    let (tell, ready) = tokio::sync::oneshot::channel();
    let write = async {
        ready.await.expect("it reads");
        stand.append(&run, "ai", "first").await;
        let first = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
        for n in 0..5 {
            stand.append(&run, "ai", &n.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        first.elapsed()
    };
    let (sent, written) = futures_util::join!(read(stand, &run, token, query, 4, tell), write);
    assert_eq!(sent.numbers(), (0..6).collect::<Vec<_>>());
    let (first, second, last) = (sent.at(0), sent.at(1), sent.at(5));
    // Each event has its own id, merged or not.
    let ids = sent.text().matches("\nid: ").count();
    assert_eq!(ids, sent.text().matches("event: batch").count());
    if throttled {
        assert!(second - first >= Duration::from_millis(1_800), "{first:?}, {second:?}");
        assert!(last - second <= Duration::from_millis(500), "{second:?}, {last:?}");
        assert!(first <= Duration::from_millis(1_500), "{first:?}");
    } else {
        assert!(second - first < Duration::from_millis(1_800), "{first:?}, {second:?}");
    }
    // Four seconds after the last chunk came, however late it was sent.
    let end = first + written + Duration::from_millis(4_000);
    assert!(sent.ended < end + Duration::from_millis(1_500), "{:?}, {end:?}", sent.ended);
}

#[tokio::test]
async fn a_stream_that_ends_before_the_tick_is_whole() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let (tell, ready) = tokio::sync::oneshot::channel();
    let write = async {
        ready.await.expect("it reads");
        for n in 0..3 {
            stand.append(&run, "ai", &n.to_string()).await;
        }
    };
    let read = read(&stand, &run, stand.key(), "throttleMs=10000", 2, tell);
    let (sent, ()) = futures_util::join!(read, write);
    assert_eq!(sent.numbers(), [0, 1, 2]);
    assert!(sent.ended < Duration::from_millis(7_000), "{:?}", sent.ended);
}

#[tokio::test]
async fn the_sdk_reads_all_of_a_throttled_stream() {
    let stand = Stand::start(&[]).await;
    let run = run(&stand.database).await;
    let target = Target { base_url: stand.gateway.url.clone(), access_token: ticking(&stand, 500) };
    let mut reader = task("sdk-4.8.3", &target, &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 3 })).await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    for part in 0..20_u64 {
        let values: Vec<_> = (0..10).map(|n| json!({ "n": part * 10 + n })).collect();
        order(&mut writer, json!({ "order": "write", "values": values })).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    order(&mut writer, json!({ "order": "close" })).await;
    expect_numbers(&mut reader, 0..200).await;
    reader.next_of("end", SOON).await;
}
