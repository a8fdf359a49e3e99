//! A throw-away Postgres for one invocation, with Trigger.dev's tables and the runs of the load.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use sqlx::{Connection, PgConnection, Row};

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
    // Last, so that the process is gone before its files are.
    _cluster: Cluster,
}

struct Cluster {
    child: Option<Child>,
    directory: PathBuf,
    programs: PathBuf,
    user: Option<User>,
}

const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts a database under `scratch` and loads the schema.
pub async fn start(scratch: &Path, settings: Settings) -> Result<Database> {
    let programs = find_programs()?;
    // Postgres refuses to run as root; Debian's package brings this user.
    let user = match Uid::effective().is_root() {
        true => {
            Some(User::from_name("postgres")?.context("root, and no user postgres to drop to")?)
        }
        false => None,
    };
    let directory = scratch.join("postgres");
    std::fs::create_dir_all(&directory)?;
    if let Some(user) = &user {
        std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o755))?;
        chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    let mut cluster = Cluster { child: None, directory, programs: programs.clone(), user };
    let data = cluster.directory.join("data");
    let made = cluster
        .command("initdb")
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&data)
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(made.success(), "initdb failed");

    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let on = |flag: bool| if flag { "on" } else { "off" };
    let mut command = cluster.command("postgres");
    command.arg("-D").arg(&data);
    for setting in [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        "unix_socket_directories=".to_owned(),
        "wal_level=logical".to_owned(),
        "max_wal_size=4GB".to_owned(),
        format!("fsync={}", on(settings.fsync)),
        format!("synchronous_commit={}", on(settings.synchronous_commit)),
    ] {
        command.arg("-c").arg(setting);
    }
    let log = std::fs::File::create(scratch.join("postgres.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    cluster.child = Some(command.spawn().context("starting postgres")?);

    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let began = Instant::now();
    let mut connection = loop {
        match PgConnection::connect(&url).await {
            Ok(connection) => break connection,
            Err(error) if began.elapsed() > START_LIMIT => {
                return Err(error).context("postgres does not come up");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    sqlx::raw_sql(include_str!("../schema.sql")).execute(&mut connection).await?;
    let pid_file = sqlx::query("SELECT pg_read_file('postmaster.pid')").fetch_one(&mut connection);
    let pid_file: String = pid_file.await?.try_get(0)?;
    let pid = pid_file.lines().next().context("postmaster.pid is empty")?.parse()?;
    Ok(Database { url, programs, pid, _cluster: cluster })
}

impl Cluster {
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command;
        match &self.user {
            Some(user) => {
                command = Command::new("runuser");
                command.args(["-u", &user.name, "--"]).arg(program);
            }
            None => command = Command::new(program),
        }
        command.current_dir(&self.directory);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let data = self.directory.join("data");
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-t", "10", "-D"]).arg(data).stdout(Stdio::null());
        // Nothing can be done about a failure here but to go on and end the process by force.
        let _ = stop.status();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn find_programs() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("RUNWIRE_PG_BIN") {
        return Ok(given.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|entry| entry.path().join("bin"));
    match found.filter(|bin| bin.join("postgres").exists()).max() {
        Some(bin) => Ok(bin),
        None => bail!("no Postgres found; name its programs' directory in RUNWIRE_PG_BIN"),
    }
}

/// Makes an environment with its key and `count` runs of about 1.8 kB with three tags each.
pub async fn seed(url: &str, count: usize) -> Result<()> {
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
            VALUES ('env_load', 'prod', 'PRODUCTION', '{key}', 'pk_prod_load', 'load',
                'org_load', 'proj_load', now());
        INSERT INTO "TaskRun" (id, "friendlyId", engine, status, "taskIdentifier", payload,
                "runtimeEnvironmentId", "environmentType", "projectId", "organizationId", queue,
                "traceId", "spanId", "runTags", "updatedAt", "startedAt", metadata)
            SELECT 'cload' || lpad(n::text, 20, '0'), 'run_cload' || lpad(n::text, 20, '0'), 'V2',
                'EXECUTING', 'load-task', '{{"text":"' || repeat('runwire ', 150) || '"}}',
                'env_load', 'PRODUCTION', 'proj_load', 'org_load', 'task/load-task',
                md5(n::text), left(md5(n::text), 16),
                ARRAY['user:' || n % 1000, 'kind:load', 'shard:' || n % 16],
                now(), now(), '{{"v":{first}}}'
            FROM generate_series(0, {count} - 1) AS n;
        ANALYZE "TaskRun";
        CHECKPOINT;
        "#,
        key = runs::SECRET_KEY,
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
