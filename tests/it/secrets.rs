//! What the log never holds: keys, tokens, what was asked for, and rows, at whatever level.

use runwire::dev::seed::SEEDED;
use serde_json::json;

use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::program::Serving;
use crate::support::runs::{insert_run, update};
use crate::support::token;

/// Part of everything that must not be seen.
const CANARY: &str = "canary7f3a";

/// Sends everything that holds a secret or a canary, and gives the secrets.
async fn provoke(url: &str, pool: &sqlx::PgPool) -> Vec<String> {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let payload = format!(r#"payload = '{{"{CANARY}":1}}', metadata = '{{"{CANARY}":2}}'"#);
    insert_run(pool, SEEDED.production.id, "run_1").await;
    update(pool, "run_1", &payload).await;

    let good = token::public(SEEDED.production, &["read:runs", &format!("read:tags:{CANARY}")]);
    let mut ended = token::claims(SEEDED.production.id);
    ended["exp"] = json!(1);
    ended["scopes"] = json!([CANARY]);
    let ended = token::sign(&ended, SEEDED.production.secret_key);
    let forged = token::sign(&token::claims(CANARY), "another secret");
    let unknown = format!("tr_prod_{CANARY}");
    let additional = format!("tr_prod_sk_{CANARY}00000000000000");
    let bearers = [
        &good,
        &ended,
        &forged,
        &unknown,
        &additional,
        SEEDED.production.secret_key,
        SEEDED.admin_key,
        SEEDED.rotated_key,
        SEEDED.revoked_key,
        SEEDED.preview.secret_key,
    ];
    let paths = [
        "/realtime/v1/runs/run_1?offset=-1".to_owned(),
        format!("/realtime/v1/runs/run_{CANARY}?offset=-1"),
        format!("/realtime/v1/runs/run_1?offset=1_0&handle={CANARY}&live=true"),
        format!("/realtime/v1/runs?tags={CANARY}&createdAt={CANARY}&skipColumns={CANARY}"),
        format!("/realtime/v1/runs?tags={CANARY}%22&offset={CANARY}&handle={CANARY}"),
        format!("/realtime/v1/batches/batch_{CANARY}?offset=-1"),
        format!("/{CANARY}?{CANARY}"),
    ];
    for bearer in bearers {
        for path in &paths {
            let request = client.get(format!("{url}{path}")).bearer_auth(bearer);
            let request = request.header("x-trigger-branch", CANARY).header("origin", CANARY);
            request.send().await.expect("an answer").bytes().await.expect("a body");
        }
        for path in ["jwt", "jwt/claims", "public-tokens"] {
            let body =
                format!(r#"{{"scopes":["read:tags:{CANARY}"],"expirationTime":"{CANARY}"}}"#);
            for body in [body, format!("{{{CANARY}")] {
                let request = client.post(format!("{url}/api/v1/auth/{path}")).bearer_auth(bearer);
                request.body(body).send().await.expect("an answer");
            }
        }
    }
    bearers.iter().map(|bearer| bearer.to_string()).collect()
}

/// The log of a gateway that was provoked, and the secrets that it was told. It holds all keys in
/// memory, or looks each up.
async fn log_of(environment: &[(&str, &str)], held: bool) -> (String, Vec<String>) {
    let database = fresh_database().await;
    // Nobody asks for the password here, and it is one all the same.
    let mut url: url::Url = database.url.parse().expect("a URL");
    url.set_password(Some(&format!("pass{CANARY}"))).expect("a password");
    let anywhere = "http://127.0.0.1:0";
    let key_bytes = if held { "--key-bytes=1MiB" } else { "--key-bytes=1KiB" };
    let arguments = ["--hold=50ms", "--just-created-wait=0s", key_bytes];
    let serving = Serving::start_in(environment, anywhere, url.as_str(), &arguments).await;
    serving.ready().await;
    if held {
        let loaded = || async { serving.metric("runwire_key_loads_total").await > 0.0 };
        eventually("the keys to be loaded", loaded).await;
    }
    let secrets = provoke(&serving.url, &database.pool).await;
    // The columns go, so that failures are told of as well.
    let gone = r#"ALTER TABLE "TaskRun" DROP COLUMN payload; ALTER TABLE "RuntimeEnvironment" DROP COLUMN "apiKey""#;
    sqlx::raw_sql(gone).execute(&database.pool).await.expect("drop what is asked for");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let unknown = if held { 401 } else { 503 };
    for (bearer, status) in
        [(format!("tr_dev_{CANARY}"), unknown), (SEEDED.production.secret_key.to_owned(), 503)]
    {
        let path = format!("/realtime/v1/runs/run_{CANARY}?offset=-1&tags={CANARY}");
        let request = client.get(format!("{}{path}", serving.url)).bearer_auth(bearer);
        assert_eq!(request.send().await.expect("an answer").status(), status);
    }
    (serving.stop().await, secrets)
}

#[tokio::test]
async fn no_secret_and_no_row_is_in_the_log_at_any_level() {
    let trace = [("RUNWIRE_LOG", "trace")];
    let (held, mut secrets) = log_of(&trace, true).await;
    let (log, more) = log_of(&trace, false).await;
    assert!(log.contains("could not be looked up"), "it tells of trouble: {log}");
    let log = held + &log;
    secrets.extend(more);
    let line_with = |text: &str| log.lines().find(|line| line.contains(text));
    assert_eq!(line_with(CANARY), None);
    for secret in secrets {
        // A token by each of its parts.
        for part in secret.split('.').filter(|part| part.len() > 20 || !secret.contains('.')) {
            assert_eq!(line_with(part), None, "{part} of {secret}");
        }
    }
    assert_eq!(log.lines().find(is_a_librarys_below_info), None);
}

fn is_a_librarys_below_info(line: &&str) -> bool {
    let below = line.contains(r#""level":"DEBUG""#) || line.contains(r#""level":"TRACE""#);
    below && !line.contains(r#""target":"runwire"#)
}

#[tokio::test]
async fn only_a_setting_that_is_named_unsafe_lets_libraries_be_heard_below_info() {
    let unsafely = ("RUNWIRE_UNSAFE_LOG_DEPENDENCIES", "true");
    let (log, _) = log_of(&[("RUNWIRE_LOG", "trace"), unsafely], true).await;
    assert!(log.contains("libraries log without a cap"), "it warns");
    assert!(log.lines().any(|line| is_a_librarys_below_info(&line)), "and they do");
}
