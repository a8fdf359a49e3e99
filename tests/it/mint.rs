//! Tokens that Runwire makes: by the real SDKs, over HTTP row by row, and on the command line
//! (`runs-and-auth.md` 17).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use runwire::dev::seed::SEEDED;
use serde_json::{Value, json};

use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, Shape};
use crate::support::npm::Client;
use crate::support::program;
use crate::support::runs::insert_run;
use crate::support::token;

const SOON: Duration = Duration::from_secs(30);

fn claims_of(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a payload");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON")
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() as i64
}

async fn post(gateway: &Gateway, path: &str, key: &str, body: &str) -> Shape {
    let request = gateway.request("POST", path).body(body.to_owned());
    let request = if key.is_empty() { request } else { request.bearer_auth(key) };
    Shape::read(request.send().await.expect("an answer")).await
}

const PUBLIC_TOKENS: &str = "/api/v1/auth/public-tokens";
const JWT: &str = "/api/v1/auth/jwt";
const CLAIMS: &str = "/api/v1/auth/jwt/claims";

#[tokio::test]
async fn the_sdks_make_tokens_with_every_kind_of_key_against_runwire_alone() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    for (sdk, key) in [
        ("sdk-3.3.17", SEEDED.production.secret_key),
        ("sdk-4.1", SEEDED.production.secret_key),
        ("sdk-4.8.3", SEEDED.production.secret_key),
        ("sdk-4.8.3", SEEDED.admin_key),
        ("sdk-4.8.3", SEEDED.restricted_key),
    ] {
        let scope = format!("read:runs:{}", SEEDED.run);
        let env = [("BASE_URL", &*gateway.url), ("SECRET_KEY", key), ("SCOPES", &scope)];
        let mut maker = Client::start("create-token.mjs", &[sdk], &env).await;
        let said = maker.next_of("token", SOON).await;
        let token = said["token"].as_str().expect("a token");
        assert_eq!(claims_of(token)["scopes"], json!([scope]), "{sdk} {key}");
        assert_eq!(gateway.open(SEEDED.run, token).await.status, 200, "{sdk} {key}");
        assert_eq!(gateway.open(SEEDED.completed_run, token).await.status, 403, "{sdk} {key}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn with_public_token_reads_a_run_of_a_branch() {
    let database = fresh_database().await;
    insert_run(&database.pool, SEEDED.branch.id, "run_branch").await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let env = [
        ("BASE_URL", &*gateway.url),
        ("SECRET_KEY", SEEDED.preview.secret_key),
        ("BRANCH", "checkout"),
        ("SCOPES", "read:runs"),
        ("RUN_ID", "run_branch"),
    ];
    let mut reader = Client::start("create-token.mjs", &[], &env).await;
    assert_eq!(reader.next_of("run", SOON).await["id"], "run_branch");
    gateway.stop().await;
}

#[tokio::test]
async fn a_key_that_reaches_less_far_makes_no_wider_token() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let env = [
        ("BASE_URL", &*gateway.url),
        ("SECRET_KEY", SEEDED.restricted_key),
        ("SCOPES", "read:runs,read:tags"),
    ];
    let mut maker = Client::start("create-token.mjs", &[], &env).await;
    let said = maker.next_of("error", SOON).await;
    assert_eq!(said["status"], 403, "{said}");
    let body = r#"{"scopes":["read:tags","read:runs","write:runs"],"expirationTime":"never"}"#;
    let refused = post(&gateway, PUBLIC_TOKENS, SEEDED.restricted_key, body).await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.text,
        r#"{"error":"Requested scopes exceed the API key's access","code":"scopes_exceed_key_access","deniedScopes":["read:tags","write:runs"]}"#
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_minted_token_says_what_was_asked_for() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let key = SEEDED.production.secret_key;
    let token = async |path, body: &str| {
        let answer = post(&gateway, path, key, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        let answer: Value = serde_json::from_str(&answer.text).expect("JSON");
        answer["token"].as_str().expect("a token").to_owned()
    };
    let begin = now();
    let body = r#"{"scopes":["read:runs"],"oneTimeUse":true,"more":1,
        "realtime":{"skipColumns":["payload"],"throttleMs":200,"more":1}}"#;
    let made = token(PUBLIC_TOKENS, body).await;
    let header = made.split('.').next().expect("a header");
    assert_eq!(URL_SAFE_NO_PAD.decode(header).expect("base64"), br#"{"alg":"HS256"}"#);
    let mut claims = claims_of(&made);
    let (issued, end) =
        (claims["iat"].as_i64().expect("iat"), claims["exp"].as_i64().expect("exp"));
    assert!(issued >= begin && (end - issued - 900).abs() <= 1 && issued <= now());
    for moment in ["iat", "exp"] {
        claims.as_object_mut().expect("claims").remove(moment);
    }
    assert_eq!(
        claims,
        json!({
            "sub": SEEDED.production.id, "pub": true, "scopes": ["read:runs"], "otu": true,
            "realtime": {"skipColumns": ["payload"], "throttleMs": 200},
            "iss": "https://id.trigger.dev", "aud": "https://api.trigger.dev",
        })
    );
    let row = gateway.open(SEEDED.run, &made).await.text;
    assert!(row.contains("taskIdentifier") && !row.contains(r#""payload":"#), "{row}");

    // Absolute seconds, rounded down.
    let at = now() + 100;
    let body = json!({"scopes": ["read:runs"], "expirationTime": at as f64 + 0.5}).to_string();
    assert_eq!(claims_of(&token(PUBLIC_TOKENS, &body).await)["exp"], at);

    let plain = claims_of(&token(JWT, "{}").await);
    assert_eq!((&plain["scopes"], &plain["otu"]), (&Value::Null, &Value::Null));
    assert!((plain["exp"].as_i64().expect("exp") - now() - 3_600).abs() <= 2);
    let long = r#"{"claims":{"scopes":["read:tags:a"]},"expirationTime":"1 year"}"#;
    let long = claims_of(&token(JWT, long).await);
    assert_eq!(long["scopes"], json!(["read:tags:a"]));
    assert!(long["exp"].as_i64().expect("exp") > now() + 360 * 86_400);

    let claims = post(&gateway, CLAIMS, key, "").await;
    assert_eq!((claims.status.as_u16(), &*claims.text), (200, r#"{"sub":"env_prod","pub":true}"#));
    gateway.stop().await;
}

#[tokio::test]
async fn every_refusal_of_the_minting_routes_is_in_the_contracts_words() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let (root, restricted) = (SEEDED.production.secret_key, SEEDED.restricted_key);
    let public = token::public(SEEDED.production, &["admin"]);
    let good = r#"{"scopes":["read:runs"]}"#;
    let ends = |at: i64| json!({"scopes": ["read:runs"], "expirationTime": at}).to_string();
    let (past, far) = (ends(now() - 1), ends(now() + 31 * 86_400));
    let padded = format!(r#"{{"scopes":["read:runs"],"x":"{}"}}"#, "x".repeat(70_000));
    let long = json!({"scopes": ["read:runs:".to_owned() + &"x".repeat(20_000)]}).to_string();
    let (missing, invalid) =
        (r#"{"error":"Invalid or Missing API key"}"#, r#"{"error":"Invalid API key"}"#);
    let body = r#"{"error":"Invalid request body"}"#;
    let required = r#"{"error":"Invalid request body","issues":[{"code":"invalid_type","expected":"array","message":"Required","path":["scopes"],"received":"undefined"}]}"#;
    let cases: [(&str, &str, &str, u16, &str); 20] = [
        (PUBLIC_TOKENS, "", good, 401, missing),
        (PUBLIC_TOKENS, "tr_prod_nobody", good, 401, invalid),
        (PUBLIC_TOKENS, &public, good, 401, invalid),
        (PUBLIC_TOKENS, SEEDED.revoked_key, good, 401, invalid),
        (PUBLIC_TOKENS, SEEDED.expired_key, good, 401, invalid),
        (PUBLIC_TOKENS, "tr_prod_nobody", "{", 401, invalid),
        (PUBLIC_TOKENS, root, "{", 400, body),
        (PUBLIC_TOKENS, root, "", 400, body),
        (PUBLIC_TOKENS, root, "{}", 400, required),
        (PUBLIC_TOKENS, root, &padded, 413, r#"{"error":"Request body too large"}"#),
        (PUBLIC_TOKENS, root, &long, 400, r#"{"error":"The token would be too long"}"#),
        (
            PUBLIC_TOKENS,
            restricted,
            r#"{"scopes":["read:runs"],"expirationTime":"soon"}"#,
            400,
            r#"{"error":"Invalid expiration time"}"#,
        ),
        (PUBLIC_TOKENS, root, &past, 400, r#"{"error":"Expiration time must be in the future"}"#),
        (
            PUBLIC_TOKENS,
            root,
            r#"{"scopes":["a"],"expirationTime":"1s ago"}"#,
            400,
            r#"{"error":"Expiration time must be in the future"}"#,
        ),
        (PUBLIC_TOKENS, root, &far, 400, r#"{"error":"Expiration time cannot exceed 30 days"}"#),
        (JWT, restricted, "{}", 401, missing),
        (
            JWT,
            root,
            "[]",
            400,
            r#"{"error":"Invalid request body","issues":[{"code":"invalid_type","expected":"object","message":"Expected object, received array","path":[],"received":"array"}]}"#,
        ),
        (CLAIMS, restricted, "", 401, missing),
        (CLAIMS, &public, "", 401, missing),
        (CLAIMS, SEEDED.preview.secret_key, "", 401, missing),
    ];
    for (path, key, body, status, text) in cases {
        let answer = post(&gateway, path, key, body).await;
        let case = format!("{path} {key} {}", body.get(..body.len().min(80)).unwrap_or_default());
        assert_eq!((answer.status.as_u16(), &*answer.text), (status, text), "{case}");
        assert_eq!(answer.header("access-control-expose-headers"), "", "{case}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_command_line_makes_a_token_that_opens_what_it_names() {
    let database = fresh_database().await;
    let gateway = Gateway::start(&database.url, &[]).await;
    let make = async |more: &[&str]| {
        let fixed = ["token", "--database-url", &database.url, "--key"];
        program::run(&[&fixed, more].concat()).await
    };
    let scope = format!("--scope=read:runs:{}", SEEDED.run);
    let made = make(&[SEEDED.production.secret_key, &scope, "--expires-in=10m"]).await;
    assert_eq!((made.code, &*made.stderr), (Some(0), ""));
    let made = made.stdout.trim();
    assert_eq!(gateway.open(SEEDED.run, made).await.status, 200);
    assert_eq!(gateway.open(SEEDED.completed_run, made).await.status, 403);
    let life = claims_of(made)["exp"].as_i64().expect("exp") - now();
    assert!((590..=600).contains(&life), "{life}");

    let branch = [SEEDED.preview.secret_key, "--branch=checkout", "--scope=read:runs"];
    let branch = make(&[&branch[..], &["--skip-columns=payload,output"]].concat()).await;
    let claims = claims_of(branch.stdout.trim());
    assert_eq!(claims["sub"], SEEDED.branch.id);
    assert_eq!(claims["realtime"]["skipColumns"], json!(["payload", "output"]));

    for (arguments, code, complaint) in [
        (vec!["tr_prod_nobody", "--scope=read:runs"], 1, "Invalid API key"),
        (vec![SEEDED.restricted_key, "--scope=read:tags"], 1, "the key does not grant read:tags"),
        (
            vec![SEEDED.production.secret_key, "--scope=a", "--expires-in=2 months"],
            2,
            "--expires-in: Invalid expiration time; try 15m, 12 hours or 7d",
        ),
        (
            vec![SEEDED.production.secret_key, "--scope=a", "--expires-in=31d"],
            1,
            "Expiration time cannot exceed 30 days",
        ),
    ] {
        let refused = make(&arguments).await;
        assert_eq!((refused.code, refused.complaint()), (Some(code), complaint));
        assert_eq!(refused.stdout, "");
    }
    gateway.stop().await;
}
