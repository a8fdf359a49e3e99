//! A cluster with a synchronous standby that never answers: a transaction that commits meanwhile is
//! in the log and in the stream, and no query shows it.

use std::time::Duration;

use runwire::dev::{Options, Postgres, Seeded};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::task::JoinHandle;

use crate::support::cluster::database_in;
use crate::support::gateway::eventually;

/// A cluster whose sessions wait for no standby unless they say so.
pub struct Cluster {
    pub url: String,
    pub seeded: Seeded,
    pub pool: PgPool,
    // Last, so that the pool's sessions end before their server.
    _postgres: Postgres,
}

impl Cluster {
    pub async fn start() -> Cluster {
        Cluster::with(&[("synchronous_commit", "local")]).await
    }

    /// A cluster with these settings.
    pub async fn with(settings: &[(&str, &str)]) -> Cluster {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let settings = settings.iter().map(owned).collect();
        let postgres = Postgres::start(Options { settings, ..Options::default() }).await;
        let postgres = postgres.expect("start Postgres");
        let database = database_in(&postgres).await;
        let (url, seeded, pool) = (database.url, database.seeded, database.pool);
        Cluster { url, seeded, pool, _postgres: postgres }
    }

    /// From now on, commits that wait for a standby wait in vain.
    pub async fn require_standby(&self) {
        require_standby(&self.pool, true).await;
    }

    /// All who wait in vain go on.
    pub async fn lift(&self, hung: JoinHandle<()>) {
        require_standby(&self.pool, false).await;
        let ended = tokio::time::timeout(Duration::from_secs(20), hung).await;
        ended.expect("the commit returns").expect("the writer succeeds");
    }

    /// Runs a statement whose commit hangs between its record in the log and its being seen. Returns
    /// once it hangs.
    pub async fn hang(&self, statement: &str) -> JoinHandle<()> {
        self.require_standby().await;
        let mut writer = PgConnection::connect(&self.url).await.expect("connect");
        sqlx::raw_sql("SET synchronous_commit = on").execute(&mut writer).await.expect("set");
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut writer)
            .await
            .expect("pid");
        let statement = statement.to_owned();
        let hung = tokio::spawn(async move {
            let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut writer).await;
            done.expect("the hung statement");
        });
        eventually("the commit to hang", || async {
            assert!(!hung.is_finished(), "the commit did not wait for the standby");
            let event: Option<String> =
                sqlx::query_scalar("SELECT wait_event FROM pg_stat_activity WHERE pid = $1")
                    .bind(pid)
                    .fetch_optional(&self.pool)
                    .await
                    .expect("look at the writer")
                    .flatten();
            event.as_deref() == Some("SyncRep")
        })
        .await;
        hung
    }

    /// The id of one of the server's own processes.
    pub async fn process(&self, kind: &str) -> u32 {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = $1";
        let pid: i32 =
            sqlx::query_scalar(sql).bind(kind).fetch_one(&self.pool).await.expect("a process");
        pid.unsigned_abs()
    }

    /// What a query shows of the run's version.
    pub async fn shown(&self, run: &str) -> i64 {
        version_in(&self.pool, run).await
    }
}

/// Demands a standby that never answers, or no longer. Returns once the server knows.
pub async fn require_standby(pool: &PgPool, required: bool) {
    let sql = if required {
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'"
    } else {
        "ALTER SYSTEM RESET synchronous_standby_names"
    };
    sqlx::raw_sql(sql).execute(pool).await.expect("alter system");
    sqlx::raw_sql("SELECT pg_reload_conf()").execute(pool).await.expect("reload");
    eventually("the setting to arrive", || async {
        let names: String = sqlx::query_scalar("SHOW synchronous_standby_names")
            .fetch_one(pool)
            .await
            .expect("show");
        names.is_empty() != required
    })
    .await;
    // The checkpointer tells the others, a moment later than a session sees the setting.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The version in a run's metadata, by a query.
pub async fn version_in(pool: &PgPool, run: &str) -> i64 {
    let sql = r#"SELECT coalesce((metadata::jsonb ->> 'v')::bigint, 0) FROM "TaskRun" WHERE "friendlyId" = $1"#;
    sqlx::query_scalar(sql).bind(run).fetch_one(pool).await.expect("read the version")
}

/// A statement that makes the run's version the next.
pub fn bump(run: &str) -> String {
    format!(
        r#"UPDATE "TaskRun" SET metadata = jsonb_build_object('v', coalesce((metadata::jsonb ->> 'v')::bigint, 0) + 1)::text
           WHERE "friendlyId" = '{run}'"#
    )
}

/// Gives a run an output that lies out of line, so that the stream does not send it with other changes.
pub async fn enlarge(pool: &PgPool, run: &str) {
    let large = r#"output = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) i)"#;
    crate::support::runs::update(pool, run, large).await;
}
