//! Readiness says how streams stand, and does not depend on it.

use crate::support::gateway::{Gateway, eventually};
use crate::support::streams::Stand;

#[tokio::test]
async fn a_store_that_is_not_there_is_said_and_found_again_although_nobody_asks_for_streams() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    stand.append(&run, "ai", "x").await;
    assert_eq!(stand.gateway.admin("/readyz").await.text, "ready\nstreams: ready\n");
    let directory = format!("--data-dir={}", stand._data.0.display());
    let second = Gateway::start(&stand.database.url, &[&directory, "--slot=runwire_second"]).await;
    let expected = "ready\nstreams: not ready: another process uses its directory\n";
    eventually("the second to say so", || async {
        let says = second.admin("/readyz").await;
        assert_eq!(says.status, 200);
        says.text == expected
    })
    .await;
    assert_eq!(second.open(&run, stand.key()).await.status, 200);
    stand.gateway.stop().await;
    eventually("the second to take over", || async {
        second.admin("/readyz").await.text == "ready\nstreams: ready\n"
    })
    .await;
    second.stop().await;
}
