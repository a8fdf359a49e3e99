//! Large rows, and what they may take.

use std::sync::Arc;

use futures_util::future::join_all;
use runwire::runs::columns::Column;
use runwire::runs::reader::{Patience, ReaderLimits};

use super::{arc, cell, insert_runs, reader};
use crate::support::cluster::fresh_database;
use crate::support::runs::update;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn rows_too_large_for_a_batch_arrive_whole() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "large", 30).await;
    for n in 1..=30 {
        // Some compress to next to nothing, and are as large when they are read.
        let value = match n % 3 {
            0 => format!("repeat('x', {})", n * 100_000),
            1 => format!(
                "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, {}) i)",
                n * 2_000
            ),
            _ => "'small'".to_owned(),
        };
        update(&database.pool, &format!("run_large_{n}"), &format!("output = {value}")).await;
    }
    let error = r#"error = jsonb_build_object('stack', repeat('y', 2000000))"#;
    update(&database.pool, "run_large_2", error).await;
    let limits =
        ReaderLimits { bytes: 4 * MIB, bytes_per_environment: 4 * MIB, ..Default::default() };
    let reader = reader(&database, limits);
    let read = join_all((1..=30).map(|n| {
        let reader = Arc::clone(&reader);
        async move {
            let id = arc(format!("run_large_{n}"));
            let read = reader.run(&arc("env_prod"), &id, Patience::Fresh).await.unwrap();
            let length = match n % 3 {
                0 => n * 100_000,
                1 => (1..=n * 2_000).count() * 32,
                _ => "small".len(),
            };
            assert_eq!(cell(&read, Column::FriendlyId), Some(&*id));
            assert_eq!(cell(&read, Column::Output).map(str::len), Some(length), "{id}");
            if n == 2 {
                assert!(cell(&read, Column::Error).is_some_and(|error| error.len() > 2_000_000));
            }
        }
    }));
    read.await;
    assert_eq!(reader.budget().used(), 0, "all is given back");
}

#[tokio::test]
async fn large_rows_wait_for_those_that_are_still_kept() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "large", 5).await;
    insert_runs(&database.pool, "env_rival", "other", 1).await;
    update(&database.pool, "run_other_1", "output = repeat('x', 1000000)").await;
    for n in 1..=5 {
        let run = format!("run_large_{n}");
        update(&database.pool, &run, "output = repeat('x', 1000000)").await;
    }
    let limits =
        ReaderLimits { bytes: 8 * MIB, bytes_per_environment: 4 * MIB, ..Default::default() };
    let reader = reader(&database, limits);
    let ask = |environment: &'static str, run: String| {
        let reader = Arc::clone(&reader);
        tokio::spawn(async move {
            reader.run(&arc(environment), &arc(run), Patience::Fresh).await.unwrap()
        })
    };
    let mut kept = Vec::new();
    for n in 1..=3 {
        kept.push(ask("env_prod", format!("run_large_{n}")).await.unwrap());
    }
    assert!((3_000_000..4_000_000).contains(&reader.budget().used()));
    let waits = ask("env_prod", "run_large_4".into());
    while reader.budget().waiting() == 0 {
        tokio::task::yield_now().await;
    }
    // Another environment has its own share, and small rows need none.
    ask("env_rival", "run_other_1".into()).await.unwrap();
    ask("env_prod", "run_cseedpending0000000000001".into()).await.unwrap();
    assert!(!waits.is_finished());
    drop(kept);
    assert_eq!(cell(&waits.await.unwrap(), Column::Output).map(str::len), Some(1_000_000));
}

#[tokio::test]
async fn rows_beyond_what_a_batch_carries_go_round_again() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "middle", 60).await;
    let middle = r#"UPDATE "TaskRun" SET metadata = repeat('m', 100000) WHERE id LIKE 'middle%'"#;
    sqlx::raw_sql(middle).execute(&database.pool).await.unwrap();
    let limits = ReaderLimits { batch_bytes: MIB, ..ReaderLimits::default() };
    let reader = reader(&database, limits);
    let read = join_all((1..=60).map(|n| {
        let reader = Arc::clone(&reader);
        async move {
            let id = arc(format!("run_middle_{n}"));
            let read = reader.run(&arc("env_prod"), &id, Patience::Fresh).await.unwrap();
            assert_eq!(cell(&read, Column::FriendlyId), Some(&*id));
            assert_eq!(cell(&read, Column::Metadata).map(str::len), Some(100_000));
            read
        }
    }));
    let mut statements: Vec<_> = read.await.iter().map(|read| Arc::as_ptr(&read.seen)).collect();
    statements.sort();
    statements.dedup();
    assert!((6..=12).contains(&statements.len()), "{} statements carried", statements.len());
}
