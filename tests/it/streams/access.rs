//! Nobody writes or reads S2's routes without a token of ours that says so.

use std::time::{Duration, SystemTime};

use runwire::streams::Secret;
use runwire::streams::access::{Authority, Grant, Issuer, Operation};
use serde_json::json;

use crate::support::streams::{SOON, Stand, basis, grant, issuer, order, records, records_of};

struct Asked<'a> {
    stand: &'a Stand,
    method: &'static str,
    basin: &'static str,
}

impl Asked<'_> {
    async fn status(&self, token: &str, path: &str) -> u16 {
        let path = format!("/s2/v1{path}");
        let request = self.stand.gateway.request(self.method, &path).header("s2-basin", self.basin);
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        let body = json!({ "records": [{ "body": "x" }] });
        let request = match self.method {
            "GET" => request,
            _ => request.header("content-type", "application/json").body(body.to_string()),
        };
        request.send().await.expect("an answer").status().as_u16()
    }
}

#[tokio::test]
async fn a_token_opens_its_own_run_and_nothing_else() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let headers = stand.create(&run, "ai").await;
    let (token, name) = (&headers["x-s2-access-token"], &headers["x-s2-stream-name"]);
    let (token, name) = (token.to_str().unwrap(), name.to_str().unwrap());
    let post = Asked { stand: &stand, method: "POST", basin: "trigger-realtime" };
    let own = records_of(name);
    assert_eq!(post.status(token, &own).await, 200);
    let prefix = name.strip_suffix("/ai").unwrap();
    let elsewhere = [
        format!("{prefix}0/ai"),
        prefix.to_owned(),
        format!("{prefix}/"),
        format!("{prefix}/../run_other/ai").replace(&run, "run_else"),
        "org/org_rival/env/prod/env_rival/runs/run_1/ai".to_owned(),
        "x".to_owned(),
    ];
    for name in &elsewhere {
        assert_eq!(post.status(token, &records_of(name)).await, 403, "{name}");
    }
    // Encoded otherwise, or twice, it is what it decodes to, once.
    assert_eq!(post.status(token, &own.replace("%2F", "%2f")).await, 200);
    assert_eq!(post.status(token, &own.replace('%', "%25")).await, 403);
    let other_basin = Asked { stand: &stand, method: "POST", basin: "another-basin" };
    assert_eq!(other_basin.status(token, &own).await, 403);
    // A writer's token does not read.
    let get = Asked { stand: &stand, method: "GET", basin: "trigger-realtime" };
    assert_eq!(get.status(token, &format!("{own}?seq_num=0")).await, 403);
    assert_eq!(get.status(token, &format!("{own}/tail")).await, 403);
    for path in ["/basins", "/streams", "/streams?prefix=", "/access-tokens", "/metrics", "/x"] {
        assert_eq!(get.status(token, path).await, 403, "{path}");
        assert_eq!(post.status(token, path).await, 403, "{path}");
    }
    for (method, path) in [
        ("DELETE", own.trim_end_matches("/records").to_owned()),
        ("PATCH", own.trim_end_matches("/records").to_owned()),
        ("DELETE", "/basins/trigger-realtime".to_owned()),
        ("PUT", "/basins/trigger-realtime".to_owned()),
    ] {
        let asked = Asked { stand: &stand, method, basin: "trigger-realtime" };
        assert_eq!(asked.status(token, &path).await, 403, "{method} {path}");
    }
    assert_eq!(records(&stand.read(&run, "ai", None, 0).await).len(), 2);
}

#[tokio::test]
async fn what_is_no_good_token_opens_nothing() {
    let stand = Stand::start(&[]).await;
    let run = stand.run().await;
    let prefix = format!("org/org_acme/env/prod/env_prod/runs/{run}/");
    let path = records_of(&format!("{prefix}ai"));
    let post = Asked { stand: &stand, method: "POST", basin: "trigger-realtime" };
    let good = grant(&prefix, &[Operation::Append]);
    assert_eq!(post.status(&issuer().issue(&good).unwrap(), &path).await, 200);
    let past = SystemTime::now() - Duration::from_secs(2);
    let expired = Grant { expires_at: past, ..good.clone() };
    let resting_on = |basis: &str, environment: &str| Grant {
        authority: Authority::Key(basis.to_owned()),
        environment: environment.to_owned(),
        ..good.clone()
    };
    let service = Grant { authority: Authority::Service("0".repeat(64)), ..good.clone() };
    let forged = Issuer::new(Secret::of("another secret, as long as it"), vec![], SOON);
    for (token, status) in [
        (String::new(), 401),
        ("s2-skip-access-tokens".to_owned(), 401),
        (stand.key().to_owned(), 401),
        (issuer().issue(&expired).unwrap(), 401),
        (forged.issue(&good).unwrap(), 401),
        (issuer().issue(&resting_on(&basis("tr_prod_unknown"), "env_prod")).unwrap(), 401),
        (issuer().issue(&resting_on(&basis(stand.key()), "env_rival")).unwrap(), 401),
        (issuer().issue(&resting_on("root", "env_prod")).unwrap(), 401),
        (issuer().issue(&service).unwrap(), 401),
        (issuer().issue(&grant(&prefix, &[Operation::Read])).unwrap(), 403),
        (issuer().issue(&grant(&prefix, &[])).unwrap(), 403),
        (issuer().issue(&grant("", &[Operation::Append])).unwrap(), 403),
        (
            issuer().issue(&grant("org/org_acme/env/prod/env_pro", &[Operation::Append])).unwrap(),
            403,
        ),
    ] {
        assert_eq!(post.status(&token, &path).await, status, "{token}");
    }
    // `env1` does not open `env10`.
    let env = |id: &str| format!("org/org_acme/env/prod/{id}/runs/{run}/");
    let token = issuer().issue(&grant(&env("env1"), &[Operation::Append])).unwrap();
    assert_eq!(post.status(&token, &records_of(&format!("{}ai", env("env1")))).await, 200);
    assert_eq!(post.status(&token, &records_of(&format!("{}ai", env("env10")))).await, 403);
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let stand = Stand::start(&["--s2-access-token-expiration-in-ms=3000"]).await;
    let run = stand.run().await;
    let mut writer = stand.task("sdk-4.8.3", &run).await;
    order(&mut writer, json!({ "order": "open", "key": "ai" })).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 0 }] })).await;
    // The client tries again with the same token, and is told that it is none.
    tokio::time::sleep(Duration::from_secs(5)).await;
    order(&mut writer, json!({ "order": "write", "values": [{ "n": 1 }] })).await;
    writer.tell(&json!({ "order": "close" })).await;
    let said = writer.next(SOON).await.expect("a word");
    assert_eq!(said["type"], "error", "{said}");
    assert_eq!(records(&stand.read(&run, "ai", None, 0).await).len(), 1);
}
