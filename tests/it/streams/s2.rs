//! S2's own client, of the version that the SDK loads, against our S2 routes.

use runwire::streams::access::Operation;
use serde_json::json;

use crate::support::npm::Client;
use crate::support::streams::{SOON, Stand, grant, issuer, records};

#[tokio::test]
async fn the_client_of_s2_writes_in_its_three_ways_and_reads() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let headers = stand.create(&run, "ai").await;
    let header = |name: &str| headers[name].to_str().unwrap();
    let prefix = format!("org/org_acme/env/prod/env_prod/runs/{run}/");
    let reads = issuer().issue(&grant(&prefix, &[Operation::Read])).unwrap();
    let env = [
        ("ENDPOINT", header("x-s2-endpoint")),
        ("TOKEN", header("x-s2-access-token")),
        ("BASIN", header("x-s2-basin")),
        ("STREAM", header("x-s2-stream-name")),
        ("READ_TOKEN", &reads),
    ];
    let mut client = Client::start("s2.mjs", &[], &env).await;
    let control = client.next_of("control", SOON).await;
    assert_eq!((&control["start"], &control["end"]), (&json!(0), &json!(1)));
    client.next_of("session", SOON).await;
    assert_eq!(client.next_of("trim", SOON).await["start"], 51);
    let read = client.next_of("read", SOON).await;
    assert_eq!(read["numbers"], json!([45, 46, 47, 48, 49, 50, 51]));

    // What our readers are sent of it.
    let events = stand.read(&run, "ai", None, 0).await;
    let shown = records(&events);
    assert_eq!(shown.last(), Some(&(51, "\0\0\0\0\0\0\0\u{3}".to_owned())));
    assert!(events.contains(r#""headers":[["","trim"]]"#), "{events}");
    let control = r#""headers":[["trigger-control","turn-complete"],["public-access-token","x"]]}"#;
    assert!(shown[0].0 > 0 || events.contains(control), "{events}");
    let numbers: Vec<u64> = shown.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (numbers[0]..52).collect::<Vec<_>>());
    // And the SDK hides what is no chunk.
    let mut task = stand.task("sdk-4.8.3", &run).await;
    task.tell(&json!({ "order": "read", "key": "ai", "startIndex": 48, "timeoutInSeconds": 1 }))
        .await;
    let mut chunks = 0;
    while task.next(SOON).await.expect("a word")["type"] == "chunk" {
        chunks += 1;
    }
    assert_eq!(chunks, 3, "48 to 50, and not the trim");
}
