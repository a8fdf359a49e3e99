//! The clients themselves, against a server that refuses everything: they install, start, poll and
//! report. What they show of runs is the other tests' matter.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::npm::{Client, Target, public_token};

const SOON: Duration = Duration::from_secs(60);

const REFUSAL: &[u8] =
    b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

async fn refusing_server() -> Target {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let mut read = 0;
            while !head[..read].ends_with(b"\r\n\r\n") {
                read += client.read(&mut head[read..]).await.unwrap();
            }
            client.write_all(REFUSAL).await.unwrap();
        }
    });
    Target { base_url, access_token: "tr_prod_nobody".to_owned() }
}

#[tokio::test]
async fn every_sdk_asks_for_its_run() {
    let target = refusing_server().await;
    for sdk in ["sdk-4.8.3", "sdk-4.1", "sdk-3.3.17"] {
        let mut client = Client::subscribe_run(sdk, &target, "run_missing").await;
        let response = client.next_of("response", SOON).await;
        assert_eq!(response["path"], "/realtime/v1/runs/run_missing", "{sdk}");
        assert_eq!(response["status"], 404, "{sdk}");
    }
}

#[tokio::test]
async fn every_electric_client_asks_for_its_run() {
    let target = refusing_server().await;
    for electric in ["electric-1.0.14", "electric-1.5.28"] {
        let feed = "/realtime/v1/runs/run_missing";
        let mut client = Client::electric(electric, &target, feed, None).await;
        assert_eq!(client.until_refused(SOON).await, 404, "{electric}");
    }
}

#[tokio::test]
async fn every_sdk_asks_for_its_lists() {
    let target = refusing_server().await;
    let feeds =
        json!([{ "feed": "tags", "tags": ["a", "b"] }, { "feed": "batch", "batch": "batch_1" }]);
    for sdk in ["sdk-4.8.3", "sdk-4.1", "sdk-3.3.17"] {
        let mut client = Client::subscribe_lists(sdk, &target, &feeds).await;
        let mut asked = Vec::new();
        for _ in 0..2 {
            let response = client.next_of("response", SOON).await;
            asked.push((response["path"].clone(), response["query"]["tags"].clone()));
        }
        asked.sort_by_key(|asked| asked.0.to_string());
        let expected =
            [("/realtime/v1/batches/batch_1", json!(null)), ("/realtime/v1/runs", json!("a,b"))];
        assert_eq!(asked, expected.map(|(path, tags)| (json!(path), tags)), "{sdk}");
    }
}

#[tokio::test]
async fn the_newest_sdk_signs_tokens_with_the_secret_key() {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
    let token = public_token("env_1", "tr_prod_secret", "read:runs:run_1,read:tags:user:1").await;
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_issuer(&["https://id.trigger.dev"]);
    validation.set_audience(&["https://api.trigger.dev"]);
    let key = DecodingKey::from_secret(b"tr_prod_secret");
    let claims = decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
    assert_eq!(claims["sub"], "env_1");
    assert_eq!(claims["pub"], true);
    assert_eq!(claims["scopes"], json!(["read:runs:run_1", "read:tags:user:1"]));
}
