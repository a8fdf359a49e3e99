//! The throw-away Postgres itself.

use std::path::{Path, PathBuf};

use runwire::dev::{Options, Postgres, StopMode, seed};
use runwire::runs::columns::{Column, Kind};
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::cluster::{database_in, fresh_database};

#[tokio::test]
async fn a_seeded_database_has_every_column_that_clients_receive() {
    let database = fresh_database().await;
    let types: Vec<(String, String)> = sqlx::query_as(
        r#"SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
           WHERE attrelid = '"TaskRun"'::regclass AND attnum > 0 AND NOT attisdropped"#,
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for column in Column::ALL {
        let (_, found) = types.iter().find(|(name, _)| name == column.name()).unwrap();
        let wanted = match column.kind() {
            Kind::Text if column == Column::Status => "\"TaskRunStatus\"",
            Kind::Text => "text",
            Kind::Timestamp => "timestamp(3) without time zone",
            Kind::Int4 => "integer",
            Kind::Float8 => "double precision",
            Kind::Bool => "boolean",
            Kind::Jsonb => "jsonb",
            Kind::TextArray => "text[]",
        };
        assert_eq!(found, wanted, "{}", column.name());
    }
}

#[tokio::test]
async fn the_schema_keeps_its_traps_for_positional_code() {
    let database = fresh_database().await;
    let (dropped, identity, publications): (i64, String, i64) = sqlx::query_as(
        r#"SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = '"TaskRun"'::regclass AND attisdropped),
                  (SELECT relreplident::text FROM pg_class WHERE oid = '"TaskRun"'::regclass),
                  (SELECT count(*) FROM pg_publication)"#,
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!((dropped, identity.as_str(), publications), (1, "d", 0));
    let live: Vec<String> = sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute WHERE attrelid = '"TaskRun"'::regclass
           AND attnum > 0 AND NOT attisdropped ORDER BY attnum"#,
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let read: Vec<_> = live.iter().filter_map(|name| Column::named(name)).collect();
    assert_ne!(read, Column::ALL);
}

#[tokio::test]
async fn the_seed_holds_what_it_names() {
    let database = fresh_database().await;
    let seeded = database.seeded;
    for environment in [seeded.production, seeded.development, seeded.preview, seeded.branch] {
        let found: (String, String, String, String) = sqlx::query_as(
            r#"SELECT "apiKey", type::text, "projectId", "organizationId"
               FROM "RuntimeEnvironment" WHERE id = $1"#,
        )
        .bind(environment.id)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        assert_eq!(found.0, environment.secret_key);
        assert_eq!(found.1, environment.kind);
        assert_eq!(
            (found.2, found.3),
            (environment.project.into(), environment.organization.into())
        );
    }
    let runs = [seeded.run, seeded.completed_run, seeded.failed_run, seeded.large_run];
    let found: i64 = sqlx::query_scalar(
        r#"SELECT count(*) FROM "TaskRun" WHERE "friendlyId" = ANY($1) AND "runtimeEnvironmentId" = $2"#,
    )
    .bind(&runs[..])
    .bind(seeded.production.id)
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(found, 4);
    let keys = [seeded.admin_key, seeded.restricted_key, seeded.revoked_key, seeded.expired_key];
    let found: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM api_keys, unnest($1::text[]) key
         WHERE key_hash = encode(sha256(key::bytea), 'hex')",
    )
    .bind(&keys[..])
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(found, 4);
}

#[tokio::test]
async fn a_throw_away_cluster_leaves_nothing_behind() {
    let postgres = Postgres::start(Options::default()).await.unwrap();
    let data = postgres.data_dir().to_owned();
    let pid = postmaster(&data);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    tokio::task::spawn_blocking(move || drop(postgres)).await.unwrap();
    assert!(!data.parent().unwrap().exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_stopped_cluster_starts_again_on_its_port_with_its_data() {
    let mut postgres = Postgres::start(Options::default()).await.unwrap();
    let database = database_in(&postgres).await;
    database.pool.close().await;
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Smart] {
        let port = postgres.port();
        postgres.stop(mode).await.unwrap();
        assert!(!postgres.is_running());
        assert!(PgConnection::connect(&database.url).await.is_err());
        postgres.start_again().await.unwrap();
        assert_eq!(postgres.port(), port);
        assert!(count_runs(&database.url).await > 0);
    }
}

#[tokio::test]
async fn a_kept_cluster_comes_back_and_is_seeded_once() {
    let kept = Scratch::new("kept");
    let options = || Options { data_dir: Some(kept.0.clone()), ..Options::default() };
    let mut counts = Vec::new();
    for _ in 0..2 {
        let postgres = Postgres::start(options()).await.unwrap();
        let url = postgres.create_database("runwire").await.unwrap();
        let pool = PgPool::connect(&url).await.unwrap();
        seed::load(&pool).await.unwrap();
        pool.close().await;
        counts.push(count_runs(&url).await);
        assert!(Postgres::start(options()).await.is_err(), "two servers on one directory");
        tokio::task::spawn_blocking(move || drop(postgres)).await.unwrap();
        assert!(kept.0.join("PG_VERSION").exists() && !kept.0.join("postmaster.pid").exists());
    }
    assert_eq!(counts[0], counts[1]);
}

#[tokio::test]
async fn a_directory_with_other_files_is_refused() {
    let other = Scratch::new("other");
    std::fs::create_dir(&other.0).unwrap();
    std::fs::write(other.0.join("thesis.txt"), "precious").unwrap();
    let options = Options { data_dir: Some(other.0.clone()), ..Options::default() };
    assert!(Postgres::start(options).await.is_err());
    assert_eq!(std::fs::read_to_string(other.0.join("thesis.txt")).unwrap(), "precious");
}

#[tokio::test]
async fn postgres_14_starts_from_its_package() {
    starts_with_logical_decoding(14).await;
}

#[tokio::test]
async fn postgres_18_starts_from_its_package() {
    starts_with_logical_decoding(18).await;
}

async fn starts_with_logical_decoding(major: u32) {
    let options = Options { major: Some(major), ..Options::default() };
    let postgres = Postgres::start(options).await.unwrap();
    assert_eq!(postgres.major(), major);
    let database = database_in(&postgres).await;
    let (version, level): (i32, String) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level')",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!((version, level.as_str()), (major as i32, "logical"));
    assert!(count_runs(&database.url).await > 0);
    sqlx::query("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')")
        .execute(&database.pool)
        .await
        .unwrap();
}

async fn count_runs(url: &str) -> i64 {
    let pool = PgPool::connect(url).await.unwrap();
    let count = sqlx::query_scalar(r#"SELECT count(*) FROM "TaskRun""#).fetch_one(&pool).await;
    pool.close().await;
    count.unwrap()
}

fn postmaster(data: &Path) -> u32 {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

/// A path under the temporary directory, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let unique = format!("runwire-test-{name}-{}", std::process::id());
        Scratch(std::env::temp_dir().join(unique))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
