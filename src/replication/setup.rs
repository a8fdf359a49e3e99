//! What must hold before a stream can be read, and the publication (`postgres.md`, 7 and 4.4).

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::Settings;
use crate::runs::columns::Column;

/// Why no stream can be read.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Somebody must change something; the text says what.
    #[error("{0}")]
    Wrong(String),
    /// The server does not answer now.
    #[error("the database does not answer: {0}")]
    Unreachable(#[from] sqlx::Error),
}

/// What matters of a server that can be streamed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerFacts {
    /// Whether the server itself bounds what a slot may retain.
    pub bounds_slots: bool,
    /// Whether the publication has been made just now: a slot from before it is of no use.
    pub published_now: bool,
    /// How often to report to the server, so that it never has to ask.
    pub report_every: Duration,
}

/// How often positions are reported to a server that does not want it sooner.
const REPORT: Duration = Duration::from_secs(1);
/// More often is never done.
const SOONEST_REPORT: Duration = Duration::from_millis(20);

/// The tables of the publication. Whole ones: a column list or a row filter can make the
/// application's own updates fail.
const TABLES: [&str; 7] = [
    "TaskRun",
    "BatchTaskRun",
    "RuntimeEnvironment",
    "RevokedApiKey",
    "api_keys",
    "Project",
    "Organization",
];

/// How long the server may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Connects for a few statements.
pub(super) async fn connect(settings: &Settings) -> Result<PgConnection, sqlx::Error> {
    let options = settings.url.sql_options().disable_statement_logging();
    let connected = tokio::time::timeout(CONNECT_LIMIT, options.connect()).await;
    connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// A server that lets us in never, as opposed to not now.
fn refused(error: sqlx::Error) -> SetupError {
    let code = error.as_database_error().and_then(|error| error.code());
    // A wrong password, a role that may not log in, a database that is not there.
    match code.as_deref() {
        Some("28P01" | "28000" | "3D000") => wrong(format!("the database refuses us: {error}")),
        _ => error.into(),
    }
}

/// Checks the server and finds or creates the publication. It comes before the slot: a slot that is
/// older than its publication is stuck for good.
pub(super) async fn prepare(settings: &Settings) -> Result<ServerFacts, SetupError> {
    for (what, name) in
        [("RUNWIRE_SLOT", &settings.slot), ("RUNWIRE_PUBLICATION", &settings.publication)]
    {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        // The replication protocol takes no name that begins with a digit, unless it is quoted.
        let digit_first = name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || name.len() > 48 || digit_first || !name.chars().all(plain) {
            return Err(wrong(format!(
                "{what}: {name:?} must be 1 to 48 lower-case letters, digits and underscores, the first no digit"
            )));
        }
    }
    let mut connection = connect(settings).await.map_err(refused)?;
    let mut facts = check_server(&mut connection).await?;
    check_role(&mut connection).await?;
    check_runs(&mut connection).await?;
    facts.published_now = publish(&mut connection, &settings.publication).await?;
    let _ = connection.close().await;
    Ok(facts)
}

fn wrong(text: String) -> SetupError {
    SetupError::Wrong(text)
}

async fn check_server(connection: &mut PgConnection) -> Result<ServerFacts, SetupError> {
    let settings: Vec<(String, String)> = sqlx::query_as(
        "SELECT name, setting FROM pg_settings WHERE name IN
         ('server_version_num', 'wal_level', 'max_slot_wal_keep_size', 'idle_replication_slot_timeout',
          'wal_sender_timeout', 'server_encoding')",
    )
    .fetch_all(&mut *connection)
    .await?;
    let get = |name| settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let number = |name| get(name).and_then(|value| value.parse::<i64>().ok());
    if number("server_version_num").is_none_or(|version| version < 140_000) {
        return Err(wrong("Postgres 14 or later is needed".into()));
    }
    if get("wal_level") != Some("logical") {
        return Err(wrong(
            "Postgres' wal_level must be logical: ALTER SYSTEM SET wal_level = 'logical', then restart it".into(),
        ));
    }
    if get("server_encoding") != Some("UTF8") {
        return Err(wrong("the database's encoding must be UTF8".into()));
    }
    let in_recovery: bool =
        sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *connection).await?;
    if in_recovery {
        return Err(wrong("the database is a standby; Runwire needs the primary".into()));
    }
    let bounds_slots = number("max_slot_wal_keep_size").is_some_and(|size| size >= 0)
        || number("idle_replication_slot_timeout").is_some_and(|timeout| timeout > 0);
    // It asks after half of its timeout.
    let patience = number("wal_sender_timeout").and_then(|ms| u64::try_from(ms).ok());
    let report_every = match patience {
        Some(ms @ 1..) => Duration::from_millis(ms / 4).clamp(SOONEST_REPORT, REPORT),
        _ => REPORT,
    };
    Ok(ServerFacts { bounds_slots, published_now: false, report_every })
}

async fn check_role(connection: &mut PgConnection) -> Result<(), SetupError> {
    // Managed servers grant a role of theirs instead of the attribute.
    let may_replicate: bool = sqlx::query_scalar(
        "SELECT rolsuper OR rolreplication OR EXISTS (
           SELECT FROM pg_roles granted WHERE granted.rolname IN ('rds_replication', 'azure_pg_admin', 'cloudsqlsuperuser')
             AND pg_has_role(current_user, granted.oid, 'member'))
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *connection)
    .await?;
    if may_replicate {
        return Ok(());
    }
    let role: String =
        sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *connection).await?;
    Err(wrong(format!(r#"the role {role} may not replicate: ALTER ROLE "{role}" REPLICATION"#)))
}

async fn check_runs(connection: &mut PgConnection) -> Result<(), SetupError> {
    let identity: Option<String> = sqlx::query_scalar(
        r#"SELECT relreplident::text FROM pg_class WHERE oid = to_regclass('public."TaskRun"')"#,
    )
    .fetch_optional(&mut *connection)
    .await?;
    match identity.as_deref() {
        None => {
            return Err(wrong(
                r#"there is no table public."TaskRun": is this Trigger.dev's database?"#.into(),
            ));
        }
        Some("n") => {
            return Err(wrong(
                r#"public."TaskRun" has REPLICA IDENTITY NOTHING: ALTER TABLE public."TaskRun" REPLICA IDENTITY DEFAULT"#.into(),
            ));
        }
        Some(_) => {}
    }
    let present: Vec<String> = sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute
           WHERE attrelid = to_regclass('public."TaskRun"') AND attnum > 0 AND NOT attisdropped"#,
    )
    .fetch_all(&mut *connection)
    .await?;
    let missing: Vec<&str> = Column::ALL
        .iter()
        .map(|column| column.name())
        .filter(|name| !present.iter().any(|column| column == name))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(wrong(format!(r#"public."TaskRun" lacks the columns {}"#, missing.join(", "))))
    }
}

/// Adopts the publication if it fits, creates it if it is missing; tells whether it did.
async fn publish(connection: &mut PgConnection, name: &str) -> Result<bool, SetupError> {
    let actions: Option<(bool, bool, bool)> = sqlx::query_as(
        "SELECT pubinsert, pubupdate, pubdelete FROM pg_publication WHERE pubname = $1",
    )
    .bind(name)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(actions) = actions else {
        create(connection, name).await?;
        return Ok(true);
    };
    if actions != (true, true, true) {
        return Err(wrong(format!(
            "the publication {name} leaves out some actions: ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    let has_runs: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_publication_tables
         WHERE pubname = $1 AND schemaname = 'public' AND tablename = 'TaskRun')",
    )
    .bind(name)
    .fetch_one(&mut *connection)
    .await?;
    if !has_runs {
        return Err(wrong(format!(
            r#"the publication {name} lacks the runs: ALTER PUBLICATION {name} ADD TABLE public."TaskRun""#
        )));
    }
    // Before version 15 there are neither lists nor filters; the row as JSON lets one statement ask all versions.
    let narrowed: bool = sqlx::query_scalar(
        r#"SELECT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
           WHERE p.pubname = $1 AND r.prrelid = to_regclass('public."TaskRun"')
             AND (to_jsonb(r) ->> 'prattrs' IS NOT NULL OR to_jsonb(r) ->> 'prqual' IS NOT NULL))"#,
    )
    .bind(name)
    .fetch_one(&mut *connection)
    .await?;
    if narrowed {
        return Err(wrong(format!(
            r#"the publication {name} has a column list or row filter, which can make Trigger.dev's own updates fail: ALTER PUBLICATION {name} SET TABLE public."TaskRun""#
        )));
    }
    Ok(false)
}

async fn create(connection: &mut PgConnection, name: &str) -> Result<(), SetupError> {
    let mut tables = Vec::new();
    for table in TABLES {
        let table = format!(r#"public."{table}""#);
        let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(&table)
            .fetch_one(&mut *connection)
            .await?;
        tables.extend(exists.then_some(table));
    }
    let sql = format!(
        "CREATE PUBLICATION {name} FOR TABLE {} WITH (publish = 'insert, update, delete, truncate')",
        tables.join(", ")
    );
    match sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(&mut *connection).await {
        Ok(_) => {
            tracing::info!(publication = name, "created the publication");
            Ok(())
        }
        Err(error) => match error.as_database_error().and_then(|e| e.code()).as_deref() {
            // Another gateway was faster.
            Some("42710" | "23505") => Ok(()),
            Some("42501") => Err(wrong(format!(
                "the publication is missing and this role may not create it; have the tables' owner run: {sql}"
            ))),
            _ => Err(error.into()),
        },
    }
}
