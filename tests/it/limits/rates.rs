//! How often an address, and a credential, may ask.

use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::RequestBuilder;
use reqwest::header::HeaderMap;

use super::{assert_refused, refused, wait};
use crate::consistency::node::{Kind, Node, client};
use crate::network::series;
use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{Shape, eventually};
use crate::support::token;

async fn started(database: &Database, arguments: &[&str]) -> Node {
    Node::start(Kind::Binary, &database.url, arguments).await
}

fn ask(node: &Node, path: &str, key: &str) -> RequestBuilder {
    client().get(format!("{}{path}", node.url)).bearer_auth(key)
}

async fn answer(request: RequestBuilder) -> Shape {
    Shape::read(request.send().await.expect("an answer")).await
}

const RUNS: &str = "/realtime/v1/runs?offset=-1";

#[tokio::test]
async fn an_address_gets_its_rate_on_all_routes_together_and_proxies_speak_for_their_clients() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let arguments = ["--address-rate=5/1h", "--trusted-proxies=127.0.0.1,10.0.0.0/8"];
    let node = started(&database, &arguments).await;
    let via = |forwarded: &str, path: &str| {
        let request = ask(&node, path, key).header("x-forwarded-for", forwarded);
        request.header("origin", "https://app.example")
    };
    // By the shortcut, by the router, by a route that is not there, without a good credential.
    let paths = [RUNS, "/realtime/v1/runs/run%5F1?offset=-1", "/api/nothing", RUNS, RUNS];
    for path in paths {
        let status = answer(via("198.51.100.7", path)).await.status;
        assert!(status == 200 || status == 404, "{path}: {status}");
    }
    for path in paths {
        let over = answer(via("198.51.100.7", path)).await;
        assert_refused(&over, 429, "Too many requests");
        assert_eq!(over.header("access-control-allow-origin"), "https://app.example");
        let reset: u128 = over.header("x-ratelimit-reset").parse().expect("a time in ms");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis();
        assert!(reset > now + 690_000 && reset < now + 910_000, "{reset} from {now}");
        // The fifth part of an hour, and a quarter of that to spread by.
        assert!((700..=720 + 180).contains(&wait(&over)), "{}", wait(&over));
    }
    let bad = answer(via("198.51.100.7", RUNS).header("authorization", "Bearer no")).await;
    assert_eq!(bad.status, 429, "before it is known who asks");
    assert_eq!(refused(&node, "address").await, 6.0);

    // What a client makes up stands further left, or comes from no proxy.
    for forged in ["198.51.100.9, 198.51.100.7", "198.51.100.7, 10.3.2.1", "198.51.100.7:4711"] {
        assert_eq!(answer(via(forged, RUNS)).await.status, 429, "{forged}");
    }
    let other = ask(&node, RUNS, key).header("forwarded", "for=198.51.100.7");
    assert_eq!(answer(other).await.status, 200, "the header that is not believed");
    for free in ["198.51.100.8", "198.51.100.7, 198.51.100.8", "2001:db8::7"] {
        assert_eq!(answer(via(free, RUNS)).await.status, 200, "{free}");
    }
    for i in 0..4 {
        assert_eq!(answer(via(&format!("2001:db8::{i:x}:7"), RUNS)).await.status, 200);
    }
    assert_eq!(answer(via("2001:db8::ffff", RUNS)).await.status, 429, "one /64 is one client");

    // Preflights and probes are not counted.
    for _ in 0..20 {
        let url = format!("{}{RUNS}", node.url);
        let preflight = client().request(reqwest::Method::OPTIONS, url);
        let preflight = preflight.header("x-forwarded-for", "198.51.100.7");
        assert_eq!(answer(preflight).await.status, 200);
        assert_eq!(answer(via("198.51.100.7", "/readyz")).await.status, 200);
    }
    let keys = || series(&node, "runwire_rate_keys", r#"by="address""#);
    eventually("four addresses to be known", || async { keys().await == 4.0 }).await;
}

#[tokio::test]
async fn headers_of_those_who_are_no_proxies_are_not_read() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    for (trusted, distinct) in [("10.0.0.0/8", false), ("127.0.0.0/8", true)] {
        let trusted = format!("--trusted-proxies={trusted}");
        let arguments = ["--address-rate=2/1h", "--proxy-header=forwarded", &trusted];
        let node = started(&database, &arguments).await;
        let mut statuses = Vec::new();
        for i in 1..=3 {
            let forwarded = format!(r#"for=1.1.1.1, For="198.51.100.{i}:80";proto=https"#);
            let mut headers = HeaderMap::new();
            headers.insert("forwarded", forwarded.parse().expect("a value"));
            headers.insert("x-forwarded-for", format!("192.0.2.{i}").parse().expect("a value"));
            statuses.push(answer(ask(&node, RUNS, key).headers(headers)).await.status.as_u16());
        }
        let expected = if distinct { [200, 200, 200] } else { [200, 200, 429] };
        assert_eq!(statuses, expected, "{trusted}");
    }
}

#[tokio::test]
async fn a_credential_gets_its_rate_once_it_is_known_to_be_good() {
    let database = fresh_database().await;
    let production = database.seeded.production;
    let key = production.secret_key;
    let node = started(&database, &["--credential-rate=4/1h"]).await;
    // However it is written, and on whatever route, it is one.
    let bare = ask(&node, RUNS, key).header("x", "y");
    assert_eq!(answer(bare).await.status, 200);
    let claims = format!("{}/api/v1/auth/jwt/claims", node.url);
    let claims = |bearer: &str| client().post(&claims).header("authorization", bearer);
    for written in [format!("Bearer   {key} "), key.to_owned(), format!("Bearer {key}")] {
        assert_eq!(answer(claims(&written)).await.status, 200, "{written}");
    }
    assert_refused(&answer(ask(&node, RUNS, key)).await, 429, "Too many requests");
    assert_eq!(answer(claims(&format!("Bearer  {key}"))).await.status, 429);
    let spaced = client().get(format!("{}{RUNS}", node.url));
    let spaced = spaced.header("authorization", format!("Bearer  {key}"));
    assert_eq!(answer(spaced).await.status, 429);

    // Another one of the same environment has its own, and a bad one is told that it is bad.
    let token = token::public(production, &["read:runs"]);
    for _ in 0..4 {
        assert_eq!(answer(ask(&node, RUNS, &token)).await.status, 200);
    }
    assert_eq!(answer(ask(&node, RUNS, &token)).await.status, 429);
    for _ in 0..10 {
        assert_eq!(answer(ask(&node, RUNS, "tr_prod_unknown")).await.status, 401);
    }
    let url = format!("{}{RUNS}", node.url);
    let preflight = client().request(reqwest::Method::OPTIONS, url).bearer_auth(key);
    assert_eq!(answer(preflight).await.status, 200);
    let keys = || series(&node, "runwire_rate_keys", r#"by="credential""#);
    eventually("two credentials to be known", || async { keys().await == 2.0 }).await;
}

#[tokio::test]
async fn a_rate_that_is_used_up_comes_back_evenly() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let node = started(&database, &["--credential-rate=3/600ms"]).await;
    for _ in 0..20 {
        if answer(ask(&node, RUNS, key)).await.status == 429 {
            eventually("the next to be let in", || async {
                answer(ask(&node, RUNS, key)).await.status == 200
            })
            .await;
        }
    }
    // Once it has all come back, nothing is remembered.
    let keys = || series(&node, "runwire_rate_keys", r#"by="credential""#);
    eventually("it to be forgotten", || async { keys().await == 0.0 }).await;
}
