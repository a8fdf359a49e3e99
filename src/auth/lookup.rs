//! Reading facts from the database: those behind a few credentials in one statement, or all.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, PgPool, Row as _, postgres::PgRow};

use super::facts::Facts;
use crate::{
    postgres::{Lsn, Snapshot},
    replication::keys::{KeyRow, KeyTable, digest},
    runs::tuple::Cell,
};

/// Rows that belong together, and how they join the stream (`postgres.md`, 5).
#[derive(Debug)]
pub(super) struct Reading {
    /// What the query saw.
    pub snapshot: Snapshot,
    /// Everything that it saw commits below.
    pub end: Lsn,
    pub facts: Facts,
}

/// What is to be read.
#[derive(Clone, Default)]
pub(super) struct Subjects {
    /// A root key, present or rotated. Never logged.
    pub root_key: Option<Box<str>>,
    /// An additional key. Never logged.
    pub additional_key: Option<Box<str>>,
    /// Environments by id.
    pub environments: Vec<String>,
    /// Their branches of this name.
    pub branch: Option<Box<str>>,
    /// Additional keys that are known by their hashes, in lower-case hex.
    pub hashes: Vec<String>,
}

const ENVIRONMENT: &str = r#"ARRAY[id, type::text, "apiKey", "projectId", "parentEnvironmentId", "branchName", "archivedAt"::text]"#;
const PROJECT: &str = r#"ARRAY[id, "deletedAt"::text]"#;
const ROTATED: &str = r#"ARRAY[id, "apiKey", "runtimeEnvironmentId", "expiresAt"::text]"#;
const ADDITIONAL: &str =
    "ARRAY[id, key_hash, runtime_environment_id, scopes::text, revoked_at::text, expires_at::text]";

/// One snapshot shows all parts of one statement. The first row is there whatever is found.
///
/// The cells of a row are texts in the order of [`KeyTable::columns`]. Databases of older versions have
/// no additional keys.
fn subjects_sql(additional: bool) -> String {
    let (found, rows) = if additional {
        (
            "UNION SELECT runtime_environment_id FROM api_keys WHERE key_hash = ANY($2)",
            format!("UNION ALL SELECT 'k', {ADDITIONAL} FROM api_keys WHERE key_hash = ANY($2)"),
        )
    } else {
        ("UNION SELECT id FROM \"RuntimeEnvironment\" WHERE $2::text[] IS NULL", String::new())
    };
    format!(
        r#"WITH found AS (
  SELECT id FROM "RuntimeEnvironment" WHERE "apiKey" = $1
  UNION SELECT "runtimeEnvironmentId" FROM "RevokedApiKey" WHERE "apiKey" = $1
  {found}
  UNION SELECT unnest($3::text[])
), near AS (
  SELECT id FROM found
  UNION SELECT e."parentEnvironmentId" FROM "RuntimeEnvironment" e JOIN found USING (id)
  WHERE e."parentEnvironmentId" IS NOT NULL
), branches AS (
  SELECT e.id FROM "RuntimeEnvironment" e JOIN found f ON e."parentEnvironmentId" = f.id
  WHERE e."branchName" = $4 AND e."archivedAt" IS NULL
), environments AS (
  SELECT {ENVIRONMENT} AS cells, "projectId" FROM "RuntimeEnvironment"
  WHERE id IN (SELECT id FROM near UNION SELECT id FROM branches)
)
SELECT NULL AS of, ARRAY[pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text] AS cells
UNION ALL SELECT 'e', cells FROM environments
UNION ALL SELECT 'p', {PROJECT} FROM "Project" WHERE id IN (SELECT "projectId" FROM environments)
UNION ALL SELECT 'r', {ROTATED} FROM "RevokedApiKey"
WHERE "runtimeEnvironmentId" IN (SELECT id FROM near) AND "expiresAt" > now() AT TIME ZONE 'utc'
{rows}"#
    )
}

/// Whether the database has additional keys.
pub(super) async fn has_additional(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let sql = "SELECT to_regclass('api_keys') IS NOT NULL";
    sqlx::query_scalar(sql).fetch_one(pool).await
}

/// Whether a table is missing.
pub(super) fn lacks_table(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42P01")
}

/// Reads what is known of the subjects.
pub(super) async fn read(
    pool: &PgPool,
    subjects: Subjects,
    additional: bool,
) -> Result<Reading, sqlx::Error> {
    let mut hashes = subjects.hashes;
    hashes.extend(subjects.additional_key.as_deref().map(hash));
    // Postgres cannot hold NUL in a text, and would fail instead of finding nothing.
    let plain = |text: &str| !text.contains('\0');
    let environments = subjects.environments.into_iter().filter(|id| plain(id));
    let rows = sqlx::query(AssertSqlSafe(subjects_sql(additional)))
        .bind(subjects.root_key.as_deref().filter(|key| plain(key)))
        .bind(hashes)
        .bind(environments.collect::<Vec<_>>())
        .bind(subjects.branch.as_deref().filter(|branch| plain(branch)))
        .fetch_all(pool)
        .await?;
    let mut facts = Facts::default();
    let mut read_at = None;
    for row in &rows {
        let table = match row.try_get::<Option<&str>, _>(0)? {
            None => {
                read_at = Some(place(row)?);
                continue;
            }
            Some("e") => KeyTable::Environments,
            Some("p") => KeyTable::Projects,
            Some("r") => KeyTable::Rotated,
            Some(_) => KeyTable::Additional,
        };
        facts.put(key_row(table, row, 1)?);
    }
    let (snapshot, end) = read_at.ok_or(sqlx::Error::RowNotFound)?;
    Ok(Reading { snapshot, end, facts })
}

/// Reads all facts as of one snapshot, unless they take more than `max_bytes`: then `None`.
pub(super) async fn read_all(
    pool: &PgPool,
    max_bytes: usize,
    additional: bool,
) -> Result<Option<Reading>, sqlx::Error> {
    let begin =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '5min'";
    let mut transaction = pool.begin_with(begin).await?;
    let place_of = sqlx::query(
        "SELECT NULL, ARRAY[pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text]",
    );
    let (snapshot, end) = place(&place_of.fetch_one(&mut *transaction).await?)?;
    let mut facts = Facts::default();
    for table in KeyTable::ALL {
        let sql = match table {
            KeyTable::Environments => format!(r#"SELECT {ENVIRONMENT} FROM "RuntimeEnvironment""#),
            KeyTable::Projects => format!(r#"SELECT {PROJECT} FROM "Project""#),
            KeyTable::Rotated => format!(
                r#"SELECT {ROTATED} FROM "RevokedApiKey" WHERE "expiresAt" > now() AT TIME ZONE 'utc'"#
            ),
            KeyTable::Additional if !additional => continue,
            KeyTable::Additional => {
                format!("SELECT {ADDITIONAL} FROM api_keys WHERE revoked_at IS NULL")
            }
        };
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await? {
            facts.put(key_row(table, &row, 0)?);
            if facts.bytes() > max_bytes {
                return Ok(None);
            }
        }
    }
    transaction.rollback().await?;
    Ok(Some(Reading { snapshot, end, facts }))
}

/// Where the server's log ends now, whatever of it is flushed.
pub(super) async fn log_end(pool: &PgPool) -> Result<Lsn, sqlx::Error> {
    position(pool, "SELECT pg_current_wal_insert_lsn()::text").await
}

/// Where the flushed part of the server's log ends now.
pub(super) async fn flushed_end(pool: &PgPool) -> Result<Lsn, sqlx::Error> {
    position(pool, "SELECT pg_current_wal_flush_lsn()::text").await
}

/// How long a commit may be visible before it is flushed, with `synchronous_commit=off`: three times
/// the writer's delay, as Postgres promises.
pub(super) async fn flush_delay(pool: &PgPool) -> Result<Duration, sqlx::Error> {
    let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_writer_delay'";
    let millis: i64 = sqlx::query_scalar(sql).fetch_one(pool).await?;
    Ok(Duration::from_millis(3 * millis.unsigned_abs()))
}

async fn position(pool: &PgPool, sql: &'static str) -> Result<Lsn, sqlx::Error> {
    let end: String = sqlx::query_scalar(sql).fetch_one(pool).await?;
    end.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// `key_hash` of a key.
pub(super) fn hash(key: &str) -> String {
    hex(&digest(key))
}

/// Bytes as `key_hash` has them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn place(row: &PgRow) -> Result<(Snapshot, Lsn), sqlx::Error> {
    let cells: Vec<String> = row.try_get(1)?;
    let [snapshot, end] = &cells[..] else { return Err(sqlx::Error::RowNotFound) };
    let decode = |error| sqlx::Error::Decode(error);
    let snapshot = snapshot.parse().map_err(|error| decode(Box::new(error)))?;
    Ok((snapshot, end.parse().map_err(|_| decode("no position".into()))?))
}

fn key_row(table: KeyTable, row: &PgRow, at: usize) -> Result<KeyRow, sqlx::Error> {
    let texts: Vec<Option<String>> = row.try_get(at)?;
    let cells: Vec<Cell<'_>> =
        texts.iter().map(|text| text.as_deref().map_or(Cell::Null, Cell::Text)).collect();
    table.row(&cells).ok_or_else(|| sqlx::Error::Decode("a row lacks what it must have".into()))
}
