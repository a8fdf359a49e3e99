//! A throw-away Postgres for one invocation, with Trigger.dev's tables and the runs of the load.

use std::path::PathBuf;

use anyhow::{Context, Result};
use runwire::dev::postgres::{Options, Postgres};
use sqlx::{Connection, PgConnection, Row};

use crate::layout::Layout;
use crate::runs;

/// What a trial asks of the database.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `fsync`.
    pub fsync: bool,
    /// `synchronous_commit`.
    pub synchronous_commit: bool,
}

/// A running database. Stopped and removed when dropped.
pub struct Database {
    /// Where to connect, as superuser.
    pub url: String,
    /// Where its programs are.
    pub programs: PathBuf,
    /// Its first process.
    pub pid: u32,
    _postgres: Postgres,
}

/// Starts a database and loads the schema.
pub async fn start(settings: Settings) -> Result<Database> {
    let on = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let settings = vec![
        ("fsync".to_owned(), on(settings.fsync)),
        ("synchronous_commit".to_owned(), on(settings.synchronous_commit)),
        // So that no checkpoint falls into a trial by the amount of log alone.
        ("max_wal_size".to_owned(), "4GB".to_owned()),
    ];
    let postgres = Postgres::start(Options { settings, ..Options::default() }).await?;
    let url = postgres.create_database("load").await?;
    let mut connection = PgConnection::connect(&url).await?;
    let pid_file = sqlx::query("SELECT pg_read_file('postmaster.pid')").fetch_one(&mut connection);
    let pid_file: String = pid_file.await?.try_get(0)?;
    let pid = pid_file.lines().next().context("postmaster.pid is empty")?.parse()?;
    Ok(Database { url, programs: postgres.bin_dir().to_owned(), pid, _postgres: postgres })
}

/// Makes an environment with its key and the layout's runs, of about 1.8 kB with three tags each.
pub async fn seed(url: &str, layout: Layout) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let statement = format!(
        r#"
        TRUNCATE "TaskRun", "RuntimeEnvironment", "Project", "Organization" CASCADE;
        INSERT INTO "Organization" (id, slug, title, "updatedAt")
            VALUES ('org_load', 'load', 'Load', now());
        INSERT INTO "Project" (id, name, slug, "externalRef", "organizationId", engine, "updatedAt")
            VALUES ('proj_load', 'Load', 'load', 'proj_loadloadloadload', 'org_load', 'V2', now());
        INSERT INTO "RuntimeEnvironment" (id, slug, type, "apiKey", "pkApiKey", shortcode,
                "organizationId", "projectId", "updatedAt")
            VALUES ('{environment}', 'prod', 'PRODUCTION', '{key}', 'pk_prod_load', 'load',
                'org_load', 'proj_load', now());
        INSERT INTO "TaskRun" (id, "friendlyId", engine, status, "taskIdentifier", payload,
                "runtimeEnvironmentId", "environmentType", "projectId", "organizationId", queue,
                "traceId", "spanId", "runTags", "updatedAt", "startedAt", metadata)
            SELECT 'cload' || lpad(n::text, 20, '0'), 'run_cload' || lpad(n::text, 20, '0'), 'V2',
                'EXECUTING', 'load-task', '{{"text":"' || repeat('runwire ', 150) || '"}}',
                '{environment}', 'PRODUCTION', 'proj_load', 'org_load', 'task/load-task',
                md5(n::text), left(md5(n::text), 16),
                {tags},
                now(), now(), '{{"v":{first}}}'
            FROM generate_series(0, {count} - 1) AS n;
        ANALYZE "TaskRun";
        CHECKPOINT;
        "#,
        environment = runs::ENVIRONMENT,
        key = runs::SECRET_KEY,
        tags = layout.tags_sql(),
        count = layout.runs,
        first = runs::FIRST_VERSION,
    );
    // The text is made of constants and numbers.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// What the server itself says its settings are.
pub async fn facts(url: &str) -> Result<Vec<(&'static str, String)>> {
    let mut connection = PgConnection::connect(url).await?;
    let mut facts = Vec::new();
    for name in ["server_version", "fsync", "synchronous_commit", "wal_level"] {
        let query = sqlx::query("SELECT current_setting($1)").bind(name);
        facts.push((name, query.fetch_one(&mut connection).await?.try_get(0)?));
    }
    Ok(facts)
}
