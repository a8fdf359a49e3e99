//! What operators and probes are told.

use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, Shape};
use crate::support::program::run;

#[tokio::test]
async fn probes_are_answered_on_both_addresses_and_metrics_on_the_operators_alone() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let key = database.seeded.production.secret_key;
    let open = gateway.open(database.seeded.run, key).await;
    crate::support::runs::set_metadata(&database.pool, database.seeded.run, 1).await;
    gateway.live(database.seeded.run, key, &open).await;
    for (path, public, admin) in
        [("/healthz", 200, 200), ("/readyz", 200, 200), ("/metrics", 404, 200)]
    {
        let asked = Shape::read(gateway.request("GET", path).send().await.unwrap()).await;
        assert_eq!(asked.status, public, "{path}");
        assert_eq!(gateway.admin(path).await.status, admin, "{path}");
    }
    let metrics = gateway.admin("/metrics").await.text;
    for name in [
        "runwire_connections",
        "runwire_holds",
        "runwire_changes_decoded_total",
        "runwire_deliveries_total",
        "runwire_replication_lag_bytes",
        "runwire_replication_lag_seconds",
        "runwire_commit_to_socket_seconds_bucket",
        "runwire_slot_retained_wal_bytes",
        "runwire_replication_attached",
        "runwire_window_bytes",
        "runwire_snapshot_queries_total",
        "runwire_must_refetch_total",
    ] {
        // One that nothing has happened to yet need not be there, but these have all moved.
        let moved = name != "runwire_must_refetch_total";
        let shown = metrics.lines().any(|line| line.starts_with(name));
        assert!(shown || !moved, "{name} is missing:\n{metrics}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_without_its_database_lives_and_is_not_ready_and_says_why() {
    let gateway = Gateway::start_unready("postgresql://nobody@127.0.0.1:1/none", &[]).await;
    assert_eq!(gateway.admin("/healthz").await.status, 200);
    let answer = gateway.admin("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.starts_with("not ready: "), "{}", answer.text);
    // What is temporary is never a 4xx, which would end a client.
    let refused = gateway.open("run_1", "tr_prod_anything").await;
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn what_clients_ask_for_makes_no_series() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    for i in 0..300 {
        for path in [format!("/nowhere/{i}"), format!("/realtime/v1/runs/run_{i}?x={i}")] {
            gateway.request("GET", &path).send().await.unwrap();
        }
    }
    let metrics = gateway.admin("/metrics").await.text;
    assert!(!metrics.contains("nowhere") && !metrics.contains("run_2"), "{metrics}");
    gateway.stop().await;
}

#[tokio::test]
async fn every_setting_that_the_documents_name_is_in_the_help() {
    let help = run(&["serve", "--help"]).await.stdout;
    let documents =
        [include_str!("../../docs/OPERATIONS.md"), include_str!("../../docs/SECURITY.md")];
    for document in documents {
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        for name in document.split(|c| !is_part(c)).filter(|name| name.starts_with("RUNWIRE_")) {
            let named = ["=", "]"].map(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(named.contains(&true), "{name}");
        }
    }
}
