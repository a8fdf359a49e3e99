//! The door against a real Postgres: `runs-and-auth.md` 12, with the texts of 15.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use runwire::auth::{Ability, Caller, Door, Refusal, Settings, TokenRules};
use runwire::replication::change::Event;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, postgres::PgPoolOptions};

use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::eventually;
use crate::support::stream::{self, Stream};

const ROWS: &str = r#"
SET TIME ZONE 'UTC';
INSERT INTO "Organization" (id, slug, title, "updatedAt") VALUES ('org', 'org', 'Org', now());
INSERT INTO "Project" (id, name, slug, "externalRef", "organizationId", "updatedAt", "deletedAt") VALUES
  ('alive', 'Alive', 'alive', 'proj_alive', 'org', now(), NULL),
  ('gone', 'Gone', 'gone', 'proj_gone', 'org', now(), now());
INSERT INTO "RuntimeEnvironment" (id, slug, type, "apiKey", "pkApiKey", shortcode, "organizationId", "projectId",
    "parentEnvironmentId", "branchName", "archivedAt", "updatedAt")
SELECT id, id, type::"RuntimeEnvironmentType", key, 'pk_' || key, id, 'org', project, parent, branch, archived, now()
FROM (VALUES
  ('dev',     'DEVELOPMENT', 'tr_dev_root',      'alive', NULL,      NULL,      NULL::timestamp),
  ('devx',    'DEVELOPMENT', 'tr_dev_branch',    'alive', 'dev',     'x',       NULL),
  ('devdef',  'DEVELOPMENT', 'tr_dev_default',   'alive', 'dev',     'default', NULL),
  ('stg',     'STAGING',     'tr_stg_root',      'alive', NULL,      NULL,      NULL),
  ('prod',    'PRODUCTION',  'tr_prod_root',     'alive', NULL,      NULL,      NULL),
  ('other',   'PRODUCTION',  'short',            'alive', NULL,      NULL,      NULL),
  ('dead',    'PRODUCTION',  'tr_prod_dead',     'gone',  NULL,      NULL,      NULL),
  ('preview', 'PREVIEW',     'tr_preview_root',  'alive', NULL,      NULL,      NULL),
  ('feat',    'PREVIEW',     'tr_preview_feat',  'alive', 'preview', 'feat/x',  NULL),
  ('default', 'PREVIEW',     'tr_preview_def',   'alive', 'preview', 'default', NULL),
  ('old',     'PREVIEW',     'tr_preview_old',   'alive', 'preview', 'old',     now()),
  ('empty',   'PREVIEW',     'tr_preview_empty', 'alive', 'preview', '',        NULL),
  ('keyless', 'PRODUCTION',  '',                 'alive', NULL,      NULL,      NULL)
) AS v (id, type, key, project, parent, branch, archived);
INSERT INTO "RevokedApiKey" (id, "apiKey", "runtimeEnvironmentId", "expiresAt") VALUES
  ('r1', 'tr_prod_grace', 'prod', now() + interval '1 hour'),
  ('r2', 'tr_prod_grace', 'prod', now() - interval '1 hour'),
  ('r3', 'tr_prod_ended', 'prod', now() - interval '1 second'),
  ('r4', 'tr_preview_grace', 'preview', now() + interval '1 hour'),
  ('r5', 'tr_prod_deadgrace', 'dead', now() + interval '1 hour'),
  -- an old key that has become another environment's present one
  ('r6', 'short', 'prod', now() + interval '1 hour'),
  ('r7', 'tr_prod_dead', 'prod', now() + interval '1 hour');
INSERT INTO api_keys (id, name, key_hash, last_four, runtime_environment_id, scopes, updated_at, revoked_at, expires_at)
SELECT key, key, encode(sha256(convert_to('tr_prod_sk_' || rpad(key, 24, '0'), 'UTF8')), 'hex'), '0000', env, scopes::text[], now(), revoked, expires
FROM (VALUES
  ('full',    'prod',    '{read:runs,admin}', NULL::timestamp, NULL::timestamp),
  ('read',    'prod',    '{read:runs}',       NULL,  now() + interval '1 hour'),
  ('none',    'prod',    '{admin:x}',         NULL,  NULL),
  ('revoked', 'prod',    '{admin}',           now(), NULL),
  ('expired', 'prod',    '{admin}',           NULL,  now() - interval '1 second'),
  ('dead',    'dead',    '{admin}',           NULL,  NULL),
  ('preview', 'preview', '{read:runs}',       NULL,  NULL)
) AS v (key, env, scopes, revoked, expires);
"#;

const MISSING: &str = "Invalid or Missing API key";
const INVALID: &str = "Invalid API key";
const NO_BRANCH: &str = "x-trigger-branch header required for preview env";
const BAD_BRANCH: &str = "No matching branch env";
const UNKNOWN_TOKEN: &str = "Invalid Public Access Token";
const BAD_TOKEN: &str = "Public Access Token is invalid";

struct Trial {
    database: Database,
    pool: PgPool,
}

/// A door that holds all keys, kept by a stream of its own.
struct Kept {
    door: Door,
    stream: Stream,
    work: tokio::task::JoinHandle<()>,
}

impl Kept {
    /// Waits until it holds the keys of the database.
    async fn new(trial: &Trial, slot: &str, settings: Settings) -> Kept {
        let kept = Kept::told(trial, slot, settings, |door, event| door.apply(event)).await;
        kept.door.set_current(true);
        eventually("the keys to be loaded", || async { kept.door.is_loaded() }).await;
        kept
    }

    /// One that begins with nothing, and is told of the stream's events in this way.
    async fn told(
        trial: &Trial,
        slot: &str,
        settings: Settings,
        tell: impl Fn(&Door, &Event) + Send + 'static,
    ) -> Kept {
        let door = Door::new(trial.pool.clone(), settings);
        let taking = door.clone();
        let settings = stream::settings(&trial.database.url, slot);
        let stream = Stream::start_with(settings, move |event| tell(&taking, event)).await;
        let working = door.clone();
        let work = tokio::spawn(async move { working.run().await });
        Kept { door, stream, work }
    }

    async fn stop(self) {
        self.work.abort();
        self.stream.stop().await;
    }
}

impl Trial {
    async fn new() -> Self {
        let database = fresh_database().await;
        // Far from UTC, where a comparison with the wrong clock is hours off. The driver itself asks
        // for UTC, so this comes after.
        let pool = PgPoolOptions::new()
            .max_connections(20)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute("SET TIME ZONE 'Asia/Tokyo'").await?;
                    Ok(())
                })
            })
            .connect(&database.url)
            .await
            .unwrap();
        let mut rows = pool.acquire().await.unwrap();
        sqlx::raw_sql(ROWS).execute(&mut *rows).await.unwrap();
        sqlx::raw_sql("SET TIME ZONE 'Asia/Tokyo'").execute(&mut *rows).await.unwrap();
        drop(rows);
        Self { database, pool }
    }

    fn door(&self) -> Door {
        Door::new(self.pool.clone(), Settings::default())
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// Statements of others that wait for a lock now.
    async fn waiting(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }
}

fn headers(bearer: &str, branch: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    if let Some(branch) = branch {
        headers.insert("x-trigger-branch", branch.parse().unwrap());
    }
    headers
}

async fn admit(door: &Door, bearer: &str, branch: Option<&str>) -> Result<Caller, Refusal> {
    door.admit(&headers(bearer, branch)).await
}

/// The environment that the door leads to, or the text of its refusal. Asked twice, since the second
/// answer comes from memory.
async fn outcome(door: &Door, bearer: &str, branch: Option<&str>) -> Result<String, &'static str> {
    let ask = || async {
        let caller = admit(door, bearer, branch).await;
        caller.map(|caller| caller.environment_id.to_string()).map_err(|refusal| refusal.message())
    };
    let first = ask().await;
    assert_eq!(first, ask().await, "another answer from memory for {bearer} at {branch:?}");
    first
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn sign(header: Value, claims: &Value, key: &str, algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(claims));
    let key = EncodingKey::from_secret(key.as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

fn claims(environment: &str) -> Value {
    json!({
        "sub": environment, "pub": true, "scopes": ["read:runs:run_x"], "iat": now(), "exp": now() + 600,
        "iss": "https://id.trigger.dev", "aud": "https://api.trigger.dev",
    })
}

fn token(environment: &str, key: &str) -> String {
    sign(json!({"alg": "HS256"}), &claims(environment), key, Algorithm::HS256)
}

/// A token for `prod` with one claim replaced; null removes it.
fn token_with(claim: &str, value: Value) -> String {
    let mut claims = claims("prod");
    claims[claim] = value;
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    sign(json!({"alg": "HS256"}), &claims, "tr_prod_root", Algorithm::HS256)
}

fn additional(name: &str) -> String {
    format!("tr_prod_sk_{name:0<24}")
}

#[tokio::test]
async fn api_keys_open_what_the_contract_says() {
    let trial = Trial::new().await;
    api_keys(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_keys", Settings::default()).await;
    api_keys(&kept.door).await;
    kept.stop().await;
}

/// By the database or from memory, it is the same.
async fn api_keys(door: &Door) {
    let cases: &[(&str, Option<&str>, Result<&str, &str>)] = &[
        ("", None, Err(MISSING)),
        ("tr_prod_root", None, Ok("prod")),
        ("tr_prod_root", Some("feat/x"), Ok("prod")),
        ("tr_prod_root", Some("refs/heads/"), Ok("prod")),
        ("tr_stg_root", Some("feat/x"), Ok("stg")),
        ("short", None, Ok("other")),
        ("tr_prod_grace", None, Ok("prod")),
        ("tr_prod_ended", None, Err(INVALID)),
        ("tr_prod_deadgrace", None, Err(INVALID)),
        ("tr_prod_dead", None, Err(INVALID)),
        ("tr_prod_nobody", None, Err(INVALID)),
        ("tr_prod_roo", None, Err(INVALID)),
        ("tr_prod_ROOT", None, Err(INVALID)),
        ("pk_tr_prod_root", None, Err(INVALID)),
        ("tr_pat_0123456789", None, Err(INVALID)),
        ("tr_uat_0123456789", None, Err(INVALID)),
        ("' OR true --", None, Err(INVALID)),
        ("%", None, Err(INVALID)),
        ("tr_dev_root", None, Ok("dev")),
        ("tr_dev_root", Some("default"), Ok("dev")),
        ("tr_dev_root", Some("refs/heads/default"), Ok("dev")),
        ("tr_dev_root", Some("x"), Ok("devx")),
        ("tr_dev_root", Some("nope"), Err(BAD_BRANCH)),
        ("tr_dev_root", Some("refs/heads/"), Err(BAD_BRANCH)),
        ("tr_preview_root", None, Err(NO_BRANCH)),
        ("tr_preview_root", Some(""), Err(NO_BRANCH)),
        ("tr_preview_root", Some("refs/notes/x"), Err(NO_BRANCH)),
        ("tr_preview_root", Some("feat/x"), Ok("feat")),
        ("tr_preview_root", Some("refs/heads/feat/x"), Ok("feat")),
        ("tr_preview_root", Some("Feat/x"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("default"), Ok("default")),
        ("tr_preview_root", Some("old"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("x"), Err(BAD_BRANCH)),
        ("tr_preview_root", Some("refs/heads/"), Err(BAD_BRANCH)),
        ("tr_preview_grace", Some("feat/x"), Ok("feat")),
        // a branch's own key opens nothing
        ("tr_preview_feat", None, Err(NO_BRANCH)),
        ("tr_preview_feat", Some("feat/x"), Err(BAD_BRANCH)),
    ];
    for (bearer, branch, wanted) in cases {
        let found = outcome(door, bearer, *branch).await;
        assert_eq!(found.as_deref().map_err(|text| *text), *wanted, "{bearer} at {branch:?}");
    }
    assert_eq!(door.admit(&HeaderMap::new()).await.unwrap_err().message(), MISSING);
    let root = admit(door, "tr_prod_root", None).await.unwrap();
    assert_eq!((&*root.ability, root.expires_at), (&Ability::Full, None));
    let grace = admit(door, "tr_prod_grace", None).await.unwrap().expires_at.unwrap();
    let left = grace.duration_since(SystemTime::now()).unwrap();
    assert!((3500..=3600).contains(&left.as_secs()), "grace ends in {left:?}");
}

#[tokio::test]
async fn additional_keys_open_what_their_row_says() {
    let trial = Trial::new().await;
    additional_keys(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_additional", Settings::default()).await;
    additional_keys(&kept.door).await;
    kept.stop().await;

    let off = Settings { additional_keys: false, ..Settings::default() };
    let off = Door::new(trial.pool.clone(), off);
    assert_eq!(outcome(&off, &additional("full"), None).await, Err(INVALID));
    assert_eq!(outcome(&off, "tr_prod_root", None).await.as_deref(), Ok("prod"));
}

async fn additional_keys(door: &Door) {
    for (name, branch, wanted) in [
        ("full", None, Ok("prod")),
        ("read", Some("feat/x"), Ok("prod")),
        ("none", None, Ok("prod")),
        ("revoked", None, Err(INVALID)),
        ("expired", None, Err(INVALID)),
        ("dead", None, Err(INVALID)),
        ("unknown", None, Err(INVALID)),
        ("preview", None, Err(NO_BRANCH)),
        ("preview", Some("feat/x"), Ok("feat")),
        ("preview", Some("old"), Err(BAD_BRANCH)),
    ] {
        let found = outcome(door, &additional(name), branch).await;
        assert_eq!(found.as_deref().map_err(|text| *text), wanted, "{name} at {branch:?}");
    }
    let ability = |name| {
        let door = door.clone();
        async move { (*admit(&door, &additional(name), None).await.unwrap().ability).clone() }
    };
    assert_eq!(ability("full").await, Ability::Full);
    assert_eq!(ability("read").await, Ability::from_scopes(["read:runs"]));
    assert_eq!(ability("none").await, Ability::from_scopes(["admin:x"]));
}

#[tokio::test]
async fn public_tokens_are_verified_as_the_contract_says() {
    let trial = Trial::new().await;
    public_tokens(&trial.door()).await;
    let kept = Kept::new(&trial, "auth_tokens", Settings::default()).await;
    public_tokens(&kept.door).await;
    kept.stop().await;
}

#[tokio::test]
async fn settings_restore_what_upstream_accepts_and_refuse_what_it_should_not() {
    let trial = Trial::new().await;
    let with = |name: &str, algorithm| {
        sign(json!({ "alg": name }), &claims("prod"), "tr_prod_root", algorithm)
    };
    let settings = Settings {
        tokens: TokenRules { lax: true },
        archived_branch_tokens: false,
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings.clone());
    let kept = Kept::new(&trial, "auth_settings", settings).await;
    for door in [&door, &kept.door] {
        for (case, bearer, wanted) in [
            ("HS384", with("HS384", Algorithm::HS384), Ok("prod")),
            ("HS512", with("HS512", Algorithm::HS512), Ok("prod")),
            ("HS512 with another's tag", with("HS512", Algorithm::HS256), Err(BAD_TOKEN)),
            ("exp missing", token_with("exp", Value::Null), Ok("prod")),
            ("exp a text", token_with("exp", json!("never")), Err(BAD_TOKEN)),
            ("expired", token_with("exp", json!(now() - 1)), Err(BAD_TOKEN)),
            ("of an archived branch", token("old", "tr_preview_root"), Err(UNKNOWN_TOKEN)),
            ("of a branch", token("feat", "tr_preview_root"), Ok("feat")),
        ] {
            let found = outcome(door, &bearer, None).await;
            assert_eq!(found.as_deref().map_err(|text| *text), wanted, "{case}");
        }
        let endless = admit(door, &token_with("exp", Value::Null), None).await.unwrap();
        assert_eq!(endless.expires_at, None);
        // Not even then longer than its key's grace.
        let mut claims = claims("prod");
        claims.as_object_mut().unwrap().remove("exp");
        let bearer = sign(json!({"alg": "HS256"}), &claims, "tr_prod_grace", Algorithm::HS256);
        assert!(admit(door, &bearer, None).await.unwrap().expires_at.is_some());
    }
    kept.stop().await;
}

async fn public_tokens(door: &Door) {
    let good = token("prod", "tr_prod_root");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let with = |name, algorithm, key| sign(json!({ "alg": name }), &claims("prod"), key, algorithm);
    let api = "https://api.trigger.dev";
    let cases = [
        ("good", good.clone(), Ok("prod")),
        ("signed by a rotated key", token("prod", "tr_prod_grace"), Ok("prod")),
        ("signed by a key out of grace", token("prod", "tr_prod_ended"), Err(BAD_TOKEN)),
        ("signed by another environment's key", token("prod", "tr_stg_root"), Err(BAD_TOKEN)),
        ("of a branch, signed by the parent's key", token("feat", "tr_preview_root"), Ok("feat")),
        ("the same, rotated", token("feat", "tr_preview_grace"), Ok("feat")),
        ("of a branch, signed by its own key", token("feat", "tr_preview_feat"), Err(BAD_TOKEN)),
        ("of an archived branch", token("old", "tr_preview_root"), Ok("old")),
        ("of a preview root", token("preview", "tr_preview_root"), Ok("preview")),
        ("of a deleted project", token("dead", "tr_prod_dead"), Err(UNKNOWN_TOKEN)),
        ("of no environment", token("nobody", "tr_prod_root"), Err(UNKNOWN_TOKEN)),
        ("of an id with NUL", token("prod\0", "tr_prod_root"), Err(UNKNOWN_TOKEN)),
        ("of an environment without key", token("keyless", ""), Err(BAD_TOKEN)),
        ("sub missing", token_with("sub", Value::Null), Err(UNKNOWN_TOKEN)),
        ("sub no text", token_with("sub", json!(7)), Err(UNKNOWN_TOKEN)),
        ("pub missing", token_with("pub", Value::Null), Err(INVALID)),
        ("pub a text", token_with("pub", json!("true")), Err(INVALID)),
        ("expired", token_with("exp", json!(now() - 1)), Err(BAD_TOKEN)),
        ("exp now", token_with("exp", json!(now())), Err(BAD_TOKEN)),
        ("exp missing", token_with("exp", Value::Null), Err(BAD_TOKEN)),
        ("exp a text", token_with("exp", json!((now() + 60).to_string())), Err(BAD_TOKEN)),
        ("nbf past", token_with("nbf", json!(now() - 1)), Ok("prod")),
        ("nbf ahead", token_with("nbf", json!(now() + 60)), Err(BAD_TOKEN)),
        ("iat ahead", token_with("iat", json!(now() + 60)), Ok("prod")),
        ("aud in a list", token_with("aud", json!(["https://x", api])), Ok("prod")),
        ("aud not in the list", token_with("aud", json!(["https://x"])), Err(BAD_TOKEN)),
        ("aud foreign", token_with("aud", json!("https://x")), Err(BAD_TOKEN)),
        ("aud missing", token_with("aud", Value::Null), Err(BAD_TOKEN)),
        ("iss foreign", token_with("iss", json!("https://x")), Err(BAD_TOKEN)),
        ("iss missing", token_with("iss", Value::Null), Err(BAD_TOKEN)),
        ("HS384", with("HS384", Algorithm::HS384, "tr_prod_root"), Err(BAD_TOKEN)),
        ("HS512", with("HS512", Algorithm::HS512, "tr_prod_root"), Err(BAD_TOKEN)),
        ("alg none", with("none", Algorithm::HS256, "tr_prod_root"), Err(BAD_TOKEN)),
        ("signature cut", format!("{signed}.{}", &signature[..40]), Err(BAD_TOKEN)),
        ("signature missing", format!("{signed}."), Err(BAD_TOKEN)),
        ("signature not base64", format!("{signed}.***"), Err(BAD_TOKEN)),
        ("two parts", signed.to_owned(), Err(INVALID)),
        ("four parts", format!("{good}.{signature}"), Err(INVALID)),
        ("payload not base64", format!("e30.***.{signature}"), Err(INVALID)),
    ];
    for (case, bearer, wanted) in &cases {
        let found = outcome(door, bearer, None).await;
        assert_eq!(found.as_deref().map_err(|text| *text), *wanted, "{case}");
        let branched = outcome(door, bearer, Some("nope")).await;
        assert_eq!(found, branched, "{case}: the branch header must not matter");
    }
}

#[tokio::test]
async fn a_token_carries_its_scopes_columns_and_end() {
    let trial = Trial::new().await;
    let door = trial.door();
    let mut claims = claims("prod");
    claims["realtime"] = json!({"skipColumns": ["payload", "output"]});
    let bearer = sign(json!({"alg": "HS256"}), &claims, "tr_prod_root", Algorithm::HS256);
    let caller = admit(&door, &bearer, None).await.unwrap();
    assert_eq!(*caller.ability, Ability::from_scopes(["read:runs:run_x"]));
    assert_eq!(caller.skip_columns.as_deref().unwrap(), ["payload", "output"]);
    let end = UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64().unwrap());
    assert_eq!(caller.expires_at, Some(end));

    for scopes in [json!([]), json!("admin"), Value::Null] {
        let caller = admit(&door, &token_with("scopes", scopes), None).await.unwrap();
        assert_eq!(*caller.ability, Ability::from_scopes::<&str>([]));
    }
    let odd = token_with("realtime", json!({"skipColumns": "payload"}));
    assert_eq!(admit(&door, &odd, None).await.unwrap().skip_columns, None);

    // Grace ends in an hour, this token in two.
    let mut longer = claims;
    longer["exp"] = json!(now() + 7200);
    let bearer = sign(json!({"alg": "HS256"}), &longer, "tr_prod_grace", Algorithm::HS256);
    let end = admit(&door, &bearer, None).await.unwrap().expires_at.unwrap();
    assert!(end < SystemTime::now() + Duration::from_secs(3601), "outlives its key's grace");
}

#[tokio::test]
async fn what_is_remembered_needs_no_database_and_ends_on_time() {
    let trial = Trial::new().await;
    let settings = Settings { accepted_for: Duration::from_secs(60), ..Settings::default() };
    let door = Door::new(trial.pool.clone(), settings);
    trial
        .run("UPDATE api_keys SET expires_at = now() AT TIME ZONE 'utc' + interval '3 seconds' WHERE id = 'read'")
        .await;
    let (short, key) = (token_with("exp", json!(now() + 3)), additional("read"));
    let known =
        ["tr_prod_root".to_owned(), token("prod", "tr_prod_root"), short.clone(), key.clone()];
    for bearer in &known {
        admit(&door, bearer, None).await.unwrap();
    }
    trial.pool.close().await;
    for bearer in &known {
        admit(&door, bearer, None).await.unwrap();
    }
    // A token that was never seen, of an environment whose keys are known.
    admit(&door, &token_with("otu", json!(true)), None).await.unwrap();
    assert_eq!(admit(&door, "tr_stg_root", None).await.unwrap_err(), Refusal::Unavailable);

    tokio::time::sleep(Duration::from_millis(3100)).await;
    let refused = |bearer: String| {
        let door = door.clone();
        async move { admit(&door, &bearer, None).await.unwrap_err() }
    };
    assert_eq!(refused(short).await, Refusal::PublicAccessTokenIsInvalid);
    assert_eq!(refused(key).await, Refusal::InvalidKey);
    assert!(admit(&door, "tr_prod_root", None).await.is_ok());

    door.forget_all();
    assert_eq!(refused("tr_prod_root".into()).await, Refusal::Unavailable);
    assert_eq!(refused(token("prod", "tr_prod_root")).await, Refusal::Unavailable);
}

#[tokio::test]
async fn rotation_and_revocation_take_effect_when_told() {
    let trial = Trial::new().await;
    let settings = Settings {
        accepted_for: Duration::from_secs(60),
        refused_for: Duration::from_secs(60),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    let (old, new) = (token("prod", "tr_prod_root"), token("prod", "tr_prod_new"));
    let ask = async |bearer: &str| outcome(&door, bearer, None).await;
    assert_eq!(ask("tr_prod_root").await.as_deref(), Ok("prod"));
    assert_eq!(ask(&old).await.as_deref(), Ok("prod"));
    assert_eq!(ask("tr_prod_new").await, Err(INVALID));
    assert_eq!(ask(&new).await, Err(BAD_TOKEN));

    trial
        .run(
            r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_new' WHERE id = 'prod';
               INSERT INTO "RevokedApiKey" (id, "apiKey", "runtimeEnvironmentId", "expiresAt")
               VALUES ('r', 'tr_prod_root', 'prod', now() AT TIME ZONE 'utc' + interval '1 day')"#,
        )
        .await;
    assert_eq!(ask("tr_prod_new").await, Err(INVALID), "remembered");
    door.forget_all();
    for bearer in ["tr_prod_root", "tr_prod_new", &old, &new] {
        assert_eq!(ask(bearer).await.as_deref(), Ok("prod"), "{bearer}");
    }

    trial.run(r#"DELETE FROM "RevokedApiKey" WHERE id = 'r'"#).await;
    door.forget_all();
    assert_eq!(ask("tr_prod_root").await, Err(INVALID));
    assert_eq!(ask(&old).await, Err(BAD_TOKEN));
    assert_eq!(ask(&new).await.as_deref(), Ok("prod"));

    trial.run(r#"UPDATE "Project" SET "deletedAt" = now() WHERE id = 'alive'"#).await;
    door.forget_all();
    assert_eq!(ask("tr_prod_new").await, Err(INVALID));
    assert_eq!(ask(&new).await, Err(UNKNOWN_TOKEN));
}

#[tokio::test]
async fn nothing_is_believed_longer_than_its_time_when_nobody_tells() {
    let trial = Trial::new().await;
    let settings = Settings {
        accepted_for: Duration::from_millis(400),
        refused_for: Duration::from_millis(1),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    admit(&door, "tr_prod_root", None).await.unwrap();
    admit(&door, &token("prod", "tr_prod_root"), None).await.unwrap();
    trial
        .run(r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_new' WHERE id = 'prod'"#)
        .await;
    // A bad signature is believed of fresh facts only, so the new key's tokens need not wait.
    admit(&door, &token("prod", "tr_prod_new"), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(410)).await;
    assert_eq!(outcome(&door, "tr_prod_root", None).await, Err(INVALID));
    assert_eq!(outcome(&door, &token("prod", "tr_prod_root"), None).await, Err(BAD_TOKEN));
}

#[tokio::test]
async fn a_crowd_costs_one_query_per_key_and_one_per_environment() {
    let trial = Trial::new().await;
    let settings = Settings { lookup_deadline: Duration::from_secs(30), ..Settings::default() };
    let door = Door::new(trial.pool.clone(), settings);
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    let mut crowd = Vec::new();
    for i in 0..50 {
        for bearer in ["tr_prod_root".to_owned(), token_with("nonce", json!(i))] {
            let door = door.clone();
            crowd.push(tokio::spawn(async move { admit(&door, &bearer, None).await }));
        }
    }
    // Both queries are under way soon; a third would be one too many at any time.
    let begun = Instant::now();
    let (mut most, mut looks) = (0, 0);
    while looks < 15 && begun.elapsed() < Duration::from_secs(20) {
        most = most.max(trial.waiting().await);
        looks += i32::from(most >= 2);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(most, 2);
    lock.rollback().await.unwrap();
    for asker in crowd {
        assert_eq!(&*asker.await.unwrap().unwrap().environment_id, "prod");
    }
}

#[tokio::test]
async fn a_database_that_does_not_answer_makes_no_credential_look_bad() {
    let trial = Trial::new().await;
    let settings = Settings {
        lookups: 1,
        lookups_waiting: 2,
        lookup_deadline: Duration::from_millis(1500),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    let begun = Instant::now();
    let askers = ["tr_prod_root", "tr_stg_root", "short", "tr_dev_root", "nobody"].map(|bearer| {
        let door = door.clone();
        tokio::spawn(
            async move { (admit(&door, bearer, None).await.unwrap_err(), begun.elapsed()) },
        )
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(trial.waiting().await, 1, "one at a time");
    let mut at_once = 0;
    for asker in askers {
        let (refusal, after) = asker.await.unwrap();
        assert_eq!(refusal, Refusal::Unavailable);
        at_once += usize::from(after < Duration::from_millis(1000));
    }
    assert_eq!(at_once, 2, "one runs, two wait, the others are told at once");
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    lock.rollback().await.unwrap();
    assert!(admit(&door, "tr_prod_root", None).await.is_ok(), "a failure is not remembered");
}

#[tokio::test]
async fn a_database_of_a_version_without_additional_keys_is_asked_for_the_others() {
    let trial = Trial::new().await;
    trial.run("DROP TABLE api_keys").await;
    let door = trial.door();
    let kept = Kept::new(&trial, "auth_older", Settings::default()).await;
    for door in [&door, &kept.door] {
        assert_eq!(outcome(door, "tr_prod_root", None).await.as_deref(), Ok("prod"));
        assert_eq!(outcome(door, "tr_prod_grace", None).await.as_deref(), Ok("prod"));
        let bearer = token("prod", "tr_prod_root");
        assert_eq!(outcome(door, &bearer, None).await.as_deref(), Ok("prod"));
        assert_eq!(outcome(door, &additional("full"), None).await, Err(INVALID));
    }
    kept.stop().await;
}

#[tokio::test]
async fn those_who_come_while_the_keys_are_loaded_wait_for_them_and_need_no_budget() {
    let trial = Trial::new().await;
    let settings = Settings {
        lookups_per_second: 1.try_into().unwrap(),
        lookup_deadline: Duration::from_secs(30),
        ..Settings::default()
    };
    let kept = Kept::told(&trial, "auth_loading", settings, |door, event| door.apply(event)).await;
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    kept.door.set_current(true);
    eventually("the loading to be under way", || async { trial.waiting().await > 0 }).await;
    let askers = (0..20).map(|i| {
        let (door, bearer) = (kept.door.clone(), token_with("nonce", json!(i)));
        tokio::spawn(async move { admit(&door, &bearer, None).await.map(drop) })
    });
    let keys = ["tr_prod_root", "tr_stg_root", "tr_dev_root", "short"].map(|bearer| {
        let door = kept.door.clone();
        tokio::spawn(async move { admit(&door, bearer, None).await.map(drop) })
    });
    let askers: Vec<_> = askers.chain(keys).collect();
    tokio::task::yield_now().await;
    lock.rollback().await.unwrap();
    for asker in askers {
        assert_eq!(asker.await.unwrap(), Ok(()));
    }
    kept.stop().await;
}

#[tokio::test]
async fn a_key_that_the_stream_has_not_brought_yet_is_waited_for() {
    let trial = Trial::new().await;
    let late = |door: &Door, event: &Event| {
        if matches!(event, Event::Tx(_)) {
            std::thread::sleep(Duration::from_millis(300));
        }
        door.apply(event);
    };
    let settings = Settings { lookups_per_second: 1.try_into().unwrap(), ..Settings::default() };
    let kept = Kept::told(&trial, "auth_late", settings, late).await;
    kept.door.set_current(true);
    eventually("the keys to be loaded", || async { kept.door.is_loaded() }).await;
    for round in 0..3 {
        let key = format!("tr_prod_round{round}");
        trial
            .run(&format!(
                r#"UPDATE "RuntimeEnvironment" SET "apiKey" = '{key}' WHERE id = 'prod'"#
            ))
            .await;
        // Before the stream has told of it: neither is refused, nor looked up beyond the budget.
        let public = token("prod", &key);
        let asked = tokio::join!(
            admit(&kept.door, &key, None),
            admit(&kept.door, &public, None),
            admit(&kept.door, "tr_prod_garbage", None),
            admit(&kept.door, "tr_prod_more_garbage", None),
        );
        assert!(asked.0.is_ok() && asked.1.is_ok(), "{:?} {:?}", asked.0, asked.1);
        assert_eq!(
            (asked.2.err(), asked.3.err()),
            (Some(Refusal::InvalidKey), Some(Refusal::InvalidKey))
        );
    }
    kept.stop().await;
}

#[tokio::test]
async fn what_the_stream_never_told_is_found_in_time_and_the_keys_are_loaded_anew() {
    let trial = Trial::new().await;
    let deaf = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&deaf);
    let tell = move |door: &Door, event: &Event| match event {
        Event::Tx(tx) if hears.load(Ordering::Acquire) => door.apply(&Event::Progress(tx.end_lsn)),
        event => door.apply(event),
    };
    let settings = Settings { confirmed_for: Duration::from_secs(4), ..Settings::default() };
    let kept = Kept::told(&trial, "auth_deaf", settings, tell).await;
    kept.door.set_current(true);
    eventually("the keys to be loaded", || async { kept.door.is_loaded() }).await;
    let (key, other) = (additional("full"), additional("read"));
    let caller = admit(&kept.door, &key, None).await.unwrap();
    let others = admit(&kept.door, &other, None).await.unwrap();

    deaf.store(true, Ordering::Release);
    trial.run("UPDATE api_keys SET revoked_at = now() WHERE id = 'full'").await;
    trial.run("UPDATE api_keys SET updated_at = now() WHERE id = 'read'").await;
    assert!(admit(&kept.door, &key, None).await.is_ok(), "nobody has told");
    let since = Instant::now();
    eventually("the lease to end", || async { caller.lease.over().is_some() }).await;
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert_eq!(Refusal::of(&caller.lease), Some(Refusal::InvalidKey));
    let refused = || async { admit(&kept.door, &key, None).await.is_err() };
    eventually("memory to know", || async { refused().await && kept.door.is_loaded() }).await;
    assert!(refused().await);
    assert_eq!(others.lease.over(), None);
    kept.stop().await;
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_and_no_debug_text_shows_a_secret() {
    let trial = Trial::new().await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let door = trial.door();
    let bearer = token("prod", "tr_prod_root");
    let mut shown = String::new();
    for bearer in ["tr_prod_root", &additional("full"), &bearer] {
        shown += &format!("{:?}", admit(&door, bearer, None).await.unwrap());
    }
    trial.run(r#"ALTER TABLE "RuntimeEnvironment" RENAME TO away"#).await;
    door.forget_all();
    for bearer in ["tr_prod_root", &additional("full"), &bearer] {
        shown += &format!("{:?}", admit(&door, bearer, None).await.unwrap_err());
    }
    shown += &format!("{door:?}");
    let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(lines.contains("could not be looked up"), "the failure is logged: {lines}");
    for secret in ["tr_prod_root", "tr_prod_grace", &additional("full"), "eyJ"] {
        assert!(!shown.contains(secret) && !lines.contains(secret), "{secret} in {shown} {lines}");
    }
}
