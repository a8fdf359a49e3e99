//! The door against a real Postgres: `runs-and-auth.md` 12, with the texts of 15.

mod contract;
mod kept;
mod remembered;

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
