//! Streams v2: written by the real SDKs through S2's append session, read as server-sent events.

mod access;
mod chain;
mod connections;
mod disk;
mod elsewhere;
mod held_up;
mod load;
mod readiness;
mod resumed;
mod revoked;
mod routes;
mod s2;
mod throttle;
mod webapp;

use serde_json::json;

use crate::support::streams::{SOON, Stand, expect_numbers, order, records};

const SDKS: [&str; 2] = ["sdk-4.8.3", "sdk-4.1"];

#[tokio::test]
async fn what_a_task_pipes_is_read_in_order_by_every_sdk() {
    let stand = Stand::start(&[]).await;
    for sdk in SDKS {
        let run = stand.run().await;
        let mut reader = stand.task(sdk, &run).await;
        let read = json!({ "order": "read", "key": "ai", "timeoutInSeconds": 5 });
        reader.tell(&read).await;
        // The older one knows no endpoint but s2.dev's, so it writes to no S2 that is hosted elsewhere.
        let mut writer = stand.task("sdk-4.8.3", &run).await;
        order(&mut writer, json!({ "order": "pipe", "key": "ai", "count": 300 })).await;
        expect_numbers(&mut reader, 0..300).await;
        assert_eq!(stand.keys(&run).await, ["ai"], "{sdk}");
        // Another one, which comes late and starts somewhere.
        let late =
            json!({ "order": "read", "key": "ai", "startIndex": 250, "timeoutInSeconds": 1 });
        reader.next_of("end", SOON).await;
        reader.tell(&late).await;
        expect_numbers(&mut reader, 250..300).await;
        assert_eq!(reader.next_of("end", SOON).await["type"], "end", "{sdk}");
    }
    stand.gateway.stop().await;
}

#[tokio::test]
async fn a_writer_that_stays_open_is_read_as_it_writes() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let mut reader = stand.task("sdk-4.8.3", &run).await;
    reader.tell(&json!({ "order": "read", "key": "ai", "timeoutInSeconds": 30 })).await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    for n in 0..5 {
        order(&mut writer, json!({ "order": "write", "values": [{ "n": n }] })).await;
        expect_numbers(&mut reader, n..n + 1).await;
    }
    order(&mut writer, json!({ "order": "close" })).await;
}

#[tokio::test]
async fn a_writer_may_be_silent_for_longer_than_a_connection_may_be_idle() {
    let stand = Stand::start(&["--idle-timeout=1s"]).await;
    let run = stand.run().await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    for n in 0..3 {
        order(&mut writer, json!({ "order": "write", "values": [{ "n": n }] })).await;
        // What it sees is silence: nothing to wait for.
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    }
    order(&mut writer, json!({ "order": "close" })).await;
    // On the session that it began with: another one would have sent chunks again.
    assert_eq!(records(&stand.read(&run, "ai", None, 0).await).len(), 3);
}

#[tokio::test]
async fn what_a_task_appends_is_read_as_the_text_that_it_was() {
    let stand = Stand::start(&[]).await;
    for sdk in SDKS {
        let run = stand.run().await;
        let mut task = stand.task(sdk, &run).await;
        order(&mut task, json!({ "order": "append", "key": "notes", "value": "plain ☃" })).await;
        task.tell(&json!({ "order": "read", "key": "notes", "timeoutInSeconds": 1 })).await;
        assert_eq!(task.next_of("chunk", SOON).await["chunk"], "plain ☃", "{sdk}");
        task.next_of("end", SOON).await;
    }
}

#[tokio::test]
async fn ten_thousand_chunks_of_one_session_arrive_once_each() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "pipe", "key": "many", "count": 10_000 })).await;
    let read = records(&stand.read(&run, "many", None, 0).await);
    let numbers: Vec<u64> = read.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..10_000).collect::<Vec<_>>());
    for (number, body) in read {
        assert!(body.starts_with(&format!(r#"{{"data":{{"n":{number}}},"#)), "{body}");
    }
}
