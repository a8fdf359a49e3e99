//! The two tables of the contract, row by row through HTTP: which scope opens which feed
//! (`runs-and-auth.md` 14), and how each failure is told (15).

use runwire::dev::seed::SEEDED;
use serde_json::{Value, json};

use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, Shape};
use crate::support::npm::Client;
use crate::support::runs::insert_with;
use crate::support::token;

/// What each column of the truth table asks for: runs x (task T, tag t, in the seeded batch) and y
/// (task U, no tag, no batch), lists of no tag, t, t and u, u, and the seeded batch and another.
fn feeds() -> [String; 8] {
    let batch = format!("batches/{}", SEEDED.batch);
    let lists = ["runs", "runs?tags=t", "runs?tags=t,u", "runs?tags=u"].map(str::to_owned);
    let [none, t, both, u] = lists;
    let (x, y) = ("runs/run_x".to_owned(), "runs/run_y".to_owned());
    [x, y, none, t, both, u, batch, "batches/batch_other".to_owned()]
}

/// Scopes, and whether they open x, y · the lists · the batches.
const OPENS: &[(&str, &str)] = &[
    ("admin", "yy yyyy yy"),
    ("read:all", "yy yyyy yy"),
    ("*:all", "yy yyyy yy"),
    ("read:runs", "yy yyyy yy"),
    ("*:runs", "yy yyyy yy"),
    ("read:runs:run_x", "yn nnnn nn"),
    ("read:tasks", "yy nnnn nn"),
    ("read:tasks:T", "yn nnnn nn"),
    ("read:tags", "yn yyyy nn"),
    ("read:tags:t", "yn nyyn nn"),
    ("read:tags:t:u", "nn nnnn nn"),
    ("read:batch", "yn nnnn yy"),
    ("read:batch:BATCH", "yn nnnn yn"),
    ("write:runs", "nn nnnn nn"),
    ("trigger:tasks:T", "nn nnnn nn"),
    ("write:inputStreams:run_x", "nn nnnn nn"),
    ("read:sessions:run_x", "nn nnnn nn"),
    ("read:inputStreams:run_x", "nn nnnn nn"),
    ("read", "nn nnnn nn"),
    ("admin:runs", "nn nnnn nn"),
    ("all", "nn nnnn nn"),
    ("read:runs:run_x,write:inputStreams:run_x", "yn nnnn nn"),
    ("write:runs,read:tags:u", "nn nnyy nn"),
    ("", "nn nnnn nn"),
];

/// What the SDK makes no token of: ids that are empty, the empty list.
const OPENS_OWN: &[(Option<&[&str]>, &str)] = &[
    (Some(&["read:runs:"]), "yy yyyy yy"),
    (Some(&["read:tags:"]), "yn yyyy nn"),
    (Some(&["read:batch:"]), "yn nnnn yy"),
    (Some(&["read:all:whatever"]), "yy yyyy yy"),
    (Some(&["Read:runs"]), "nn nnnn nn"),
    (Some(&["read:runs "]), "nn nnnn nn"),
    (Some(&[""]), "nn nnnn nn"),
    (Some(&[]), "nn nnnn nn"),
    (None, "nn nnnn nn"),
];

#[tokio::test]
async fn every_scope_of_the_truth_table_opens_what_it_says_and_nothing_else() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let batch: String =
        sqlx::query_scalar(r#"SELECT id FROM "BatchTaskRun" WHERE "friendlyId" = $1"#)
            .bind(SEEDED.batch)
            .fetch_one(pool)
            .await
            .unwrap();
    let id = SEEDED.production.id;
    let other = r#"INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", "updatedAt") VALUES ('other', 'batch_other', $1, now())"#;
    sqlx::query(other).bind(id).execute(pool).await.unwrap();
    let of_batch = format!("'{batch}'");
    let x = [("taskIdentifier", "'T'"), ("runTags", "'{t}'"), ("batchId", &*of_batch)];
    crate::support::runs::insert_run(pool, id, "run_x").await;
    crate::support::runs::insert_run(pool, id, "run_y").await;
    let set: Vec<String> = x.iter().map(|(name, value)| format!(r#""{name}" = {value}"#)).collect();
    crate::support::runs::update(pool, "run_x", &set.join(", ")).await;
    crate::support::runs::update(pool, "run_y", r#""taskIdentifier" = 'U'"#).await;

    let gateway = Gateway::start(&database.url, &[]).await;
    let lists: Vec<String> =
        OPENS.iter().map(|(scopes, _)| scopes.replace("BATCH", SEEDED.batch)).collect();
    let made_of = json!(lists).to_string();
    let env = [
        ("BASE_URL", &*gateway.url),
        ("SECRET_KEY", SEEDED.production.secret_key),
        ("SCOPE_LISTS", &made_of),
    ];
    let mut maker = Client::start("create-token.mjs", &[], &env).await;
    let mut table = Vec::new();
    for ((_, opens), list) in OPENS.iter().zip(lists) {
        let made = maker.next_of("token", std::time::Duration::from_secs(30)).await;
        table.push((list, made["token"].as_str().unwrap().to_owned(), *opens));
    }
    for (scopes, opens) in OPENS_OWN {
        let mut claims = token::claims(id);
        if let Some(scopes) = scopes {
            claims["scopes"] = json!(scopes);
        }
        let made = token::sign(&claims, SEEDED.production.secret_key);
        table.push((format!("{scopes:?}"), made, *opens));
    }
    let root = SEEDED.production.secret_key.to_owned();
    table.push(("a root key".into(), root, "yy yyyy yy"));
    table.push(("an additional key, admin".into(), SEEDED.admin_key.into(), "yy yyyy yy"));
    table.push(("an additional key, read:runs".into(), SEEDED.restricted_key.into(), "yy yyyy yy"));
    for (scopes, bearer, opens) in table {
        let opens = opens.chars().filter(|c| *c != ' ').map(|c| c == 'y');
        for (feed, opens) in feeds().iter().zip(opens) {
            let separator = if feed.contains('?') { '&' } else { '?' };
            let path = format!("/realtime/v1/{feed}{separator}offset=-1");
            let answer = gateway.get(&path, &bearer).send().await.unwrap();
            let status = if opens { 200 } else { 403 };
            assert_eq!(answer.status(), status, "{feed} with {scopes}");
        }
    }
    gateway.stop().await;
}

/// A failure: the bearer, the branch, the path below `/realtime/v1`; the status and the body.
struct Row<'a>(&'a str, Option<&'a str>, &'a str, u16, &'a str);

const MISSING: &str = r#"{"error":"Invalid or Missing API key"}"#;
const KEY: &str = r#"{"error":"Invalid API key"}"#;
const NO_BRANCH: &str = r#"{"error":"x-trigger-branch header required for preview env"}"#;
const BRANCH: &str = r#"{"error":"No matching branch env"}"#;
const UNKNOWN: &str = r#"{"error":"Invalid Public Access Token"}"#;
const TOKEN: &str = r#"{"error":"Public Access Token is invalid"}"#;
const NOT_FOUND: &str = r#"{"error":"Not found"}"#;
const FORBIDDEN: &str = r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#;
const TAG: &str = r#"{"error":"Query Error","details":[{"code":"custom","message":"Invalid tag: \"a\\\"b\"","path":["tags"]}]}"#;
const NO_TAG: &str = r#"{"error":"Query Error","details":[{"code":"custom","message":"Invalid tag: \"\"","path":["tags"]}]}"#;

/// A token of production's whose claims are changed, signed with this key.
fn changed(change: impl FnOnce(&mut Value), key: &str) -> String {
    let mut claims = token::claims(SEEDED.production.id);
    claims["scopes"] = json!(["admin"]);
    change(&mut claims);
    token::sign(&claims, key)
}

#[tokio::test]
async fn every_failure_of_the_catalogue_has_its_status_body_and_headers() {
    let database = fresh_database().await;
    insert_with(&database.pool, SEEDED.branch.id, "run_1", &[]).await;
    let gateway = Gateway::start(&database.url, &["--just-created-wait=0s"]).await;
    let own = SEEDED.production.secret_key;
    let of = |environment: &'static str, key: &str| {
        changed(|claims| claims["sub"] = json!(environment), key)
    };
    let number = changed(|claims| claims["sub"] = json!(1), own);
    let nobody = of("env_nobody", own);
    let deleted = of(SEEDED.closed.id, SEEDED.closed.secret_key);
    let private = changed(|claims| claims["pub"] = json!("true"), own);
    let past = changed(|claims| claims["exp"] = json!(1_000), own);
    let endless = changed(|claims| drop(claims.as_object_mut().unwrap().remove("exp")), own);
    let forged = changed(|_| {}, "tr_prod_another");
    let foreign = changed(|claims| claims["iss"] = json!("https://id.example"), own);
    let elsewhere = changed(|claims| claims["aud"] = json!("https://api.example"), own);
    let early = changed(|claims| claims["nbf"] = json!(4_000_000_000u64), own);
    let narrow = token::public(SEEDED.production, &["read:runs:run_other", "write:runs"]);
    let run = format!("runs/{}", SEEDED.run);
    let (run, list, batch) = (run.as_str(), "runs", "batches/batch_nobody");
    let preview = SEEDED.preview.secret_key;
    let mut rows = vec![
        Row(own, None, "runs/run_nobody", 404, NOT_FOUND),
        Row(SEEDED.rival.secret_key, None, run, 404, NOT_FOUND),
        Row(&narrow, None, "runs/run_nobody", 404, NOT_FOUND),
        Row(own, None, batch, 404, NOT_FOUND),
        // What no id can be, as it is no text.
        Row(own, None, "runs/run_%ff", 404, NOT_FOUND),
        Row("", None, "runs/run_%ff", 401, MISSING),
        Row("", None, "batches/batch_%ff", 401, MISSING),
        Row(&narrow, None, batch, 404, NOT_FOUND),
        Row(&narrow, None, run, 403, FORBIDDEN),
        Row(&narrow, None, list, 403, FORBIDDEN),
        Row(own, None, "runs?tags=x,a%22b", 400, TAG),
        Row(own, None, "runs?tags=a,,b", 400, NO_TAG),
    ];
    let keys = [
        "tr_prod_nobody",
        "pk_prod_runwireProduction0000",
        "tr_pat_0123456789012345678901234567890123456789",
        SEEDED.expired_rotated_key,
        SEEDED.closed.secret_key,
        SEEDED.revoked_key,
        SEEDED.expired_key,
        "tr_prod_sk_000000000000000000000000",
        SEEDED.branch.secret_key.trim_end_matches('0'),
        &private,
        "a.b.c",
    ];
    for path in [run, list, batch] {
        rows.push(Row("", None, path, 401, MISSING));
        rows.extend(keys.iter().map(|key| Row(key, None, path, 401, KEY)));
        rows.push(Row(preview, None, path, 401, NO_BRANCH));
        rows.push(Row(preview, Some("refs/notes/x"), path, 401, NO_BRANCH));
        for branch in ["nobody", "old", "Checkout", "refs/heads/"] {
            rows.push(Row(preview, Some(branch), path, 401, BRANCH));
        }
        rows.push(Row(SEEDED.development.secret_key, Some("nobody"), path, 401, BRANCH));
        rows.extend(
            [&number, &nobody, &deleted].map(|bearer| Row(bearer, None, path, 401, UNKNOWN)),
        );
        for bearer in [&past, &endless, &forged, &foreign, &elsewhere, &early] {
            rows.push(Row(bearer, None, path, 401, TOKEN));
        }
    }
    for Row(bearer, branch, path, status, body) in rows {
        for origin in [None, Some("https://app.example")] {
            let mut request = gateway.request("GET", &format!("/realtime/v1/{path}"));
            if !bearer.is_empty() {
                request = request.bearer_auth(bearer);
            }
            for (name, value) in [("x-trigger-branch", branch), ("origin", origin)] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            let refusal = Shape::read(request.send().await.unwrap()).await;
            let case = format!("{path} with {bearer} at {branch:?}");
            assert_eq!((refusal.status.as_u16(), &*refusal.text), (status, body), "{case}");
            let retry = match (status, path == batch) {
                (404, of_batch) => of_batch.to_string(),
                _ => String::new(),
            };
            for (name, value) in [
                ("content-type", "application/json; charset=utf-8"),
                ("access-control-allow-origin", origin.unwrap_or_default()),
                ("vary", origin.map_or("", |_| "Origin")),
                ("access-control-expose-headers", "x-trigger-jwt,x-trigger-jwt-claims"),
                ("access-control-allow-credentials", ""),
                ("x-should-retry", &retry),
            ] {
                assert_eq!(refusal.header(name), value, "{name} of {case}");
            }
        }
    }
    // What works of the same kinds, so that the rows above fail for what they are meant to show.
    for (bearer, branch, path) in [
        (SEEDED.rotated_key, None, run),
        (preview, Some("checkout"), "runs/run_1"),
        (preview, Some("refs/heads/checkout"), "runs/run_1"),
        (SEEDED.production.secret_key, Some("ignored"), run),
        (&changed(|_| {}, own), None, run),
        (&changed(|_| {}, SEEDED.rotated_key), None, run),
        (&of("env_branch_archived", preview), None, "runs"),
        (&changed(|claims| claims["otu"] = json!(true), own), None, run),
    ] {
        let request = gateway.request("GET", &format!("/realtime/v1/{path}")).bearer_auth(bearer);
        let request = match branch {
            Some(branch) => request.header("x-trigger-branch", branch),
            None => request,
        };
        assert_eq!(request.send().await.unwrap().status(), 200, "{bearer} at {branch:?}");
    }
    gateway.stop().await;
}
