//! The look-ups behind keys and tokens, each one statement (`runs-and-auth.md` 12.2 to 12.5).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};
use sqlx::{PgPool, Row as _};

/// A root key as the secret that signs tokens. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct SigningKey(Arc<str>);

impl SigningKey {
    /// Takes the whole text of a root key, prefix included.
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        Self(key.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// `RuntimeEnvironment.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvironmentType {
    /// One per developer; has branches.
    Development,
    /// Ignores branches.
    Staging,
    /// Only its branches have runs.
    Preview,
    /// Ignores branches.
    Production,
    /// A type that this gateway does not know.
    Unknown,
}

impl EnvironmentType {
    fn parse(text: &str) -> Self {
        match text {
            "DEVELOPMENT" => Self::Development,
            "STAGING" => Self::Staging,
            "PREVIEW" => Self::Preview,
            "PRODUCTION" => Self::Production,
            _ => Self::Unknown,
        }
    }
}

/// An environment and the keys that its public tokens may be signed with.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The environment that the token names; a branch has its own id.
    pub environment_id: Arc<str>,
    /// Its root key, or its parent's if it is a branch.
    pub key: SigningKey,
    /// Rotated keys in their grace time, and when that ends; the one that lasts longest is first.
    pub rotated: Vec<(SigningKey, SystemTime)>,
}

/// What an API key opens.
#[derive(Clone, Debug)]
pub struct KeyHolder {
    /// The environment that the key belongs to.
    pub environment_id: Arc<str>,
    /// Its type, which decides about branches.
    pub environment_type: EnvironmentType,
    /// Its branch of the name that was asked for, if it has one that is not archived.
    pub branch_id: Option<Arc<str>>,
    /// An additional key's scopes; none for a root key.
    pub scopes: Option<Vec<String>>,
    /// When the key stops working, if that is known.
    pub expires_at: Option<SystemTime>,
}

/// A rotated key counts only if the text is no environment's present key, so the present one decides
/// even when its project is deleted. Only one row can come back: `apiKey` is not unique in
/// `RevokedApiKey`.
const ROOT_KEY: &str = r#"
WITH holder AS (
  SELECT id, 0 AS rank, NULL::timestamp AS ends FROM "RuntimeEnvironment" WHERE "apiKey" = $1
  UNION ALL
  SELECT "runtimeEnvironmentId", 1, "expiresAt" FROM "RevokedApiKey"
  WHERE "apiKey" = $1 AND "expiresAt" > now() AT TIME ZONE 'utc'
  ORDER BY rank, ends DESC LIMIT 1)
SELECT e.id, e.type::text AS type, b.id AS branch_id, NULL::text[] AS scopes,
       (extract(epoch FROM holder.ends) * 1000)::bigint AS ends_ms
FROM holder
JOIN "RuntimeEnvironment" e ON e.id = holder.id
JOIN "Project" p ON p.id = e."projectId" AND p."deletedAt" IS NULL
LEFT JOIN "RuntimeEnvironment" b
  ON b."parentEnvironmentId" = e.id AND b."branchName" = $2 AND b."archivedAt" IS NULL
LIMIT 1"#;

const ADDITIONAL_KEY: &str = r#"
SELECT e.id, e.type::text AS type, b.id AS branch_id, k.scopes,
       (extract(epoch FROM k.expires_at) * 1000)::bigint AS ends_ms
FROM api_keys k
JOIN "RuntimeEnvironment" e ON e.id = k.runtime_environment_id
JOIN "Project" p ON p.id = e."projectId" AND p."deletedAt" IS NULL
LEFT JOIN "RuntimeEnvironment" b
  ON b."parentEnvironmentId" = e.id AND b."branchName" = $2 AND b."archivedAt" IS NULL
WHERE k.key_hash = $1 AND k.revoked_at IS NULL
  AND (k.expires_at IS NULL OR k.expires_at > now() AT TIME ZONE 'utc')
LIMIT 1"#;

/// `archivedAt` is left alone on purpose: a token for an archived branch works until it expires.
/// More than 100 rotations within the grace time of 24 h are not honoured.
const SIGNER: &str = r#"
SELECT e.id, coalesce(parent."apiKey", e."apiKey") AS signing_key,
       rotated.keys AS rotated_keys, rotated.ends_ms AS rotated_ends_ms
FROM "RuntimeEnvironment" e
JOIN "Project" p ON p.id = e."projectId" AND p."deletedAt" IS NULL
LEFT JOIN "RuntimeEnvironment" parent ON parent.id = e."parentEnvironmentId"
CROSS JOIN LATERAL (
  SELECT coalesce(array_agg(r.key ORDER BY r.ends DESC), '{}') AS keys,
         coalesce(array_agg((extract(epoch FROM r.ends) * 1000)::bigint ORDER BY r.ends DESC), '{}')
           AS ends_ms
  FROM (SELECT "apiKey" AS key, "expiresAt" AS ends FROM "RevokedApiKey"
        WHERE "runtimeEnvironmentId" = coalesce(parent.id, e.id)
          AND "expiresAt" > now() AT TIME ZONE 'utc'
        ORDER BY "expiresAt" DESC LIMIT 100) r) rotated
WHERE e.id = $1"#;

/// Finds what a root key, or a rotated one in its grace time, opens (`runs-and-auth.md` 12.2).
/// `None`: no such key, or its project is deleted.
pub async fn by_root_key(
    pool: &PgPool,
    key: &str,
    branch: Option<&str>,
) -> Result<Option<KeyHolder>, sqlx::Error> {
    key_holder(pool, ROOT_KEY, key, branch).await
}

/// Finds what an additional key opens (`runs-and-auth.md` 12.3). `None`: unknown, revoked or expired,
/// or its project is deleted.
pub async fn by_additional_key(
    pool: &PgPool,
    key: &str,
    branch: Option<&str>,
) -> Result<Option<KeyHolder>, sqlx::Error> {
    let hash = format!("{:x}", Sha256::digest(key.as_bytes()));
    key_holder(pool, ADDITIONAL_KEY, &hash, branch).await
}

async fn key_holder(
    pool: &PgPool,
    statement: &'static str,
    key: &str,
    branch: Option<&str>,
) -> Result<Option<KeyHolder>, sqlx::Error> {
    // Postgres cannot hold NUL in a text, and would fail instead of finding nothing.
    if key.contains('\0') {
        return Ok(None);
    }
    let branch = branch.filter(|branch| !branch.contains('\0'));
    let row = sqlx::query(statement).bind(key).bind(branch).fetch_optional(pool).await?;
    row.map(|row| {
        Ok(KeyHolder {
            environment_id: row.try_get::<String, _>("id")?.into(),
            environment_type: EnvironmentType::parse(row.try_get("type")?),
            branch_id: row.try_get::<Option<String>, _>("branch_id")?.map(Arc::from),
            scopes: row.try_get("scopes")?,
            expires_at: row.try_get::<Option<i64>, _>("ends_ms")?.map(instant),
        })
    })
    .transpose()
}

/// Finds an environment and the keys that sign its public tokens (`runs-and-auth.md` 12.4, steps 2, 3
/// and 5). `None`: no such environment, or its project is deleted.
pub async fn signer(pool: &PgPool, id: &str) -> Result<Option<Signer>, sqlx::Error> {
    if id.contains('\0') {
        return Ok(None);
    }
    let row = sqlx::query(SIGNER).bind(id).fetch_optional(pool).await?;
    row.map(|row| {
        let keys: Vec<String> = row.try_get("rotated_keys")?;
        let ends: Vec<i64> = row.try_get("rotated_ends_ms")?;
        let rotated = keys.into_iter().map(SigningKey::new).zip(ends.into_iter().map(instant));
        Ok(Signer {
            environment_id: row.try_get::<String, _>("id")?.into(),
            key: SigningKey::new(row.try_get::<String, _>("signing_key")?),
            rotated: rotated.collect(),
        })
    })
    .transpose()
}

/// Milliseconds since 1970 as a time. What lies before 1970 has ended, and so does 1970.
fn instant(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.max(0).unsigned_abs())
}
