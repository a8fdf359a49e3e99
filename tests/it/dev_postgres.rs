//! The throw-away Postgres itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runwire::dev::{Options, Postgres, StopMode, seed};
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::cluster::database_in;
use crate::support::process::alive;
use crate::support::scratch::Scratch;

#[tokio::test]
async fn a_throw_away_cluster_leaves_nothing_behind() {
    let postgres = Postgres::start(Options::default()).await.unwrap();
    let data = postgres.data_dir().to_owned();
    let pid = postmaster(&data);
    assert!(alive(pid));
    tokio::task::spawn_blocking(move || drop(postgres)).await.unwrap();
    assert!(!data.parent().unwrap().exists());
    assert!(!alive(pid));
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

/// Not a test, but what the next one runs and kills.
#[tokio::test]
async fn hold_a_cluster_if_told_to() {
    let Ok(report) = std::env::var("RUNWIRE_TEST_HOLD") else { return };
    let postgres = Postgres::start(Options::default()).await.unwrap();
    let partial = format!("{report}.partial");
    std::fs::write(&partial, postgres.data_dir().to_str().unwrap()).unwrap();
    std::fs::rename(partial, report).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_behind() {
    let report = Scratch::new("held");
    let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dev_postgres::hold_a_cluster_if_told_to"])
        .env("RUNWIRE_TEST_HOLD", &report.0)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let data = until("the cluster is up", || std::fs::read_to_string(&report.0).ok()).await;
    std::fs::remove_file(&report.0).unwrap();
    let data = PathBuf::from(data);
    let pid = postmaster(&data);
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("the server is gone", || (!alive(pid)).then_some(())).await;
    until("the files are gone", || (!data.parent().unwrap().exists()).then_some(())).await;
}

#[tokio::test]
async fn what_an_unguarded_process_left_is_swept_but_not_what_is_new_or_in_use() {
    let postgres = Postgres::start(Options::default()).await.unwrap();
    let used = postgres.data_dir().parent().unwrap().to_owned();
    let beside = |name: &str| {
        let path = used.with_file_name(format!("runwire-pg-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("lock"), "").unwrap();
        path
    };
    let (stale, new) = (beside("stale"), Scratch(beside("new")));
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    for path in [&stale, &used] {
        std::fs::File::open(path).unwrap().set_modified(hour_ago).unwrap();
    }
    drop(Postgres::start(Options::default()).await.unwrap());
    assert!(!stale.exists() && new.0.exists() && used.exists());
}

#[tokio::test]
async fn postgres_14_starts_from_its_package() {
    starts_with_logical_decoding(14).await;
}

/// The version that machines without any get.
#[tokio::test]
async fn postgres_17_starts_from_its_package() {
    starts_with_logical_decoding(17).await;
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

async fn until<T>(what: &str, mut reached: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = reached() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{what}?"))
}

fn postmaster(data: &Path) -> u32 {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}
