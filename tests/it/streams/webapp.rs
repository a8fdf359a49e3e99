//! A webapp that keeps its streams here by the service token, and what its runners can do.

use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::npm::Client;
use crate::support::s2::SERVICE;
use crate::support::streams::{SECRET, SOON, Stand};

const ANOTHER: &str = "another-service-token-of-the-tests-long";

#[tokio::test]
async fn a_webapp_makes_basins_mints_tokens_appends_and_reads_and_its_runners_stay_in_their_prefix()
{
    let stand = Stand::start(&[&format!("--s2-service-token={SERVICE}")]).await;
    let run = stand.run().await;
    let endpoint = format!("{}/s2/v1", stand.gateway.url);
    let env = [
        ("ENDPOINT", &*endpoint),
        ("SERVICE", SERVICE),
        ("BASIN", "triggerdotdev-dev-org-acme"),
        ("PREFIX", "env/prod/env_prod"),
        ("RUN_ID", &run),
    ];
    let mut client = Client::start("s2-webapp.mjs", &[], &env).await;
    assert_eq!(client.next_of("basin", SOON).await["name"], "triggerdotdev-dev-org-acme");
    client.next_of("written", SOON).await;
    let appended = client.next_of("appended", SOON).await;
    assert_eq!(
        (&appended["status"], &appended["ack"]["start"]["seq_num"]),
        (&json!(200), &json!(12))
    );
    let mut bodies = vec!["control".to_owned()];
    bodies.extend((0..10).map(|n| n.to_string()));
    bodies.push("server".to_owned());
    assert_eq!(client.next_of("read", SOON).await["bodies"], json!(bodies));
    let events = client.next_of("events", SOON).await;
    assert_eq!((&events["form"], &events["ends"]), (&json!("text/event-stream"), &json!(true)));
    assert_eq!(client.next_of("tail", SOON).await["next"], 13);
    let refused = client.next_of("refused", SOON).await;
    let denied = "403 permission_denied";
    for what in ["sibling", "full", "read", "mint", "basin", "drop"] {
        assert_eq!(refused[what], denied, "{what}: {refused}");
    }
    assert_eq!(refused["wide"], "422 invalid");
    assert_eq!(refused["unknown"], "401 authn");

    // What the runner wrote is what readers of a run in that basin are sent, and the basin's settings
    // are the webapp's.
    let sql = r#"UPDATE "TaskRun" SET "streamBasinName" = $1 WHERE "friendlyId" = $2"#;
    let query = sqlx::query(sql).bind("triggerdotdev-dev-org-acme").bind(&run);
    query.execute(&stand.database.pool).await.unwrap();
    let read = crate::support::streams::records(&stand.read(&run, "ai", None, 0).await);
    let read: Vec<_> = read.into_iter().filter(|(n, _)| *n != 11).map(|(_, body)| body).collect();
    assert_eq!(read, bodies);
    let path = "/s2/v1/basins/triggerdotdev-dev-org-acme";
    let config = async |gateway: &Gateway| {
        let answer = gateway.request("GET", path).bearer_auth(SERVICE).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let before = config(&stand.gateway).await;
    assert!(before.contains("86400"), "{before}");
    // Also after a restart, and when the basin is used again.
    stand.gateway.stop().await;
    let directory = format!("--data-dir={}", stand._data.0.display());
    let arguments = [&*directory, "--secret", SECRET, "--s2-service-token", SERVICE];
    let stand = Stand { gateway: Gateway::start(&stand.database.url, &arguments).await, ..stand };
    stand.append(&run, "ai", "x").await;
    assert_eq!(config(&stand.gateway).await, before);
}

#[tokio::test]
async fn without_a_service_token_nobody_is_the_webapp_and_what_it_minted_ends_with_it() {
    let stand = Stand::start(&[&format!("--s2-service-token={SERVICE}")]).await;
    let body = json!({
        "id": "1", "auto_prefix_streams": true,
        "scope": { "basins": { "exact": "trigger-realtime" }, "ops": ["append"],
            "streams": { "prefix": "org/o/env/prod/env_1" } },
    });
    let mint = async |stand: &Stand, token: &str| {
        let request = stand.gateway.request("POST", "/s2/v1/access-tokens").bearer_auth(token);
        request.body(body.to_string()).send().await.unwrap()
    };
    let answer = mint(&stand, SERVICE).await;
    assert_eq!(answer.status(), 201);
    let text = answer.text().await.unwrap();
    let token: serde_json::Value = serde_json::from_str(&text).unwrap();
    let token = token["access_token"].as_str().unwrap().to_owned();
    let append = async |stand: &Stand, token: &str| {
        let request = stand.gateway.request("POST", "/s2/v1/streams/%2Fruns%2Frun_1%2Fai/records");
        let request = request.bearer_auth(token).header("content-type", "application/json");
        let body = json!({ "records": [{ "body": "x" }] }).to_string();
        request.header("s2-basin", "trigger-realtime").body(body).send().await.unwrap().status()
    };
    assert_eq!(append(&stand, &token).await, 200);
    let too_long = stand.gateway.request("POST", "/s2/v1/access-tokens").bearer_auth(SERVICE);
    let answer = too_long.body("x".repeat(17 << 10)).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    for other in [
        Stand::start(&[]).await,
        Stand::start(&["--s2-service-token=,"]).await,
        Stand::start(&[&format!("--s2-service-token={ANOTHER}")]).await,
    ] {
        for refused in [SERVICE, "", ",", &token] {
            assert_eq!(mint(&other, refused).await.status(), 401, "{refused}");
            assert_eq!(append(&other, refused).await, 401, "{refused}");
        }
    }
    // Both are accepted while it changes.
    let both = Stand::start(&[&format!("--s2-service-token={ANOTHER},{SERVICE}")]).await;
    assert_eq!(append(&both, &token).await, 200);
}
