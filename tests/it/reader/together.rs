//! Many lists by tags that are asked for at about the same time.

use std::sync::Arc;

use futures_util::future::join_all;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use runwire::runs::columns::{Column, ColumnSet};
use runwire::runs::list::{List, ListQuery, Which};
use runwire::runs::reader::{Patience, Reader, ReaderLimits, Unavailable};
use runwire::runs::store::RunStore;

use super::{arc, insert_runs, pool, reader, replace_payload, transactions};
use crate::support::chance::random;
use crate::support::cluster::{Database, fresh_database};

const TAGS: [&str; 9] = ["a", "b", "c", "a,b", "\"", "\\", "NULL", "{a}", "ä 🦀"];

fn list(tags: Vec<String>, created_from: String, max_rows: usize) -> ListQuery {
    let tags = tags.into_iter().map(String::into_boxed_str).collect();
    ListQuery {
        environment: arc("env_list"),
        which: Which::Tags { tags, created_from },
        columns: ColumnSet::EXPOSED,
        max_rows,
        max_bytes: 1 << 20,
    }
}

fn of_tag(tag: impl Into<String>) -> ListQuery {
    list(vec![tag.into()], "2026-01-01 00:00:00".to_owned(), 10_000)
}

fn ids(list: &List) -> Vec<String> {
    list.rows.iter().map(|row| row.text(Column::Id).unwrap().to_owned()).collect()
}

async fn tag(database: &Database, run: usize, tags: &[String]) {
    sqlx::query(r#"UPDATE "TaskRun" SET "runTags" = $1 WHERE "friendlyId" = $2"#)
        .bind(tags)
        .bind(format!("run_x_{run}"))
        .execute(&database.pool)
        .await
        .unwrap();
}

/// All of them at once.
async fn ask(reader: &Arc<Reader>, lists: &[ListQuery]) -> Vec<Result<List, Unavailable>> {
    join_all(lists.iter().map(async |list| {
        let read = reader.list(list.clone(), Patience::Fresh).await?;
        Ok(read.list)
    }))
    .await
}

#[tokio::test]
async fn lists_that_are_asked_for_together_are_what_each_is_alone() {
    let mut random = random();
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "x", 300).await;
    insert_runs(&database.pool, "env_other", "y", 10).await;
    sqlx::raw_sql(
        r#"UPDATE "TaskRun" SET "runTags" = '{a,b}' WHERE "runtimeEnvironmentId" = 'env_other'"#,
    )
    .execute(&database.pool)
    .await
    .unwrap();
    for run in 1..=300 {
        let count = random.random_range(0..4);
        // With repetitions.
        let tags = (0..count).map(|_| TAGS.choose(&mut random).unwrap().to_string());
        tag(&database, run, &tags.collect::<Vec<_>>()).await;
    }
    let store = RunStore::new(pool(&database, 1));
    // Of few rows at most, so that together they are too many and are read in halves, and of all.
    for max_rows in [5, 60, 10_000] {
        let mut lists = Vec::new();
        for _ in 0..100 {
            let mut tags: Vec<String> =
                TAGS.choose_multiple(&mut random, 2).map(|tag| tag.to_string()).collect();
            tags.truncate(random.random_range(1..3));
            let second = random.random_range(0..100);
            let from = format!("2026-01-01 00:{:02}:{:02}", second / 60, second % 60);
            lists.push(list(tags, from, max_rows));
        }
        let reader = reader(&database, ReaderLimits { connections: 4, ..ReaderLimits::default() });
        for (asked, together) in lists.iter().zip(ask(&reader, &lists).await) {
            let (alone, together) = (store.list(asked).await.unwrap(), together.unwrap());
            assert_eq!(ids(&together), ids(&alone), "{asked:?}");
            assert_eq!(together.truncated, alone.truncated, "{asked:?}");
            let whole = |list: &List| {
                list.rows.first().map(|row| row.text(Column::Payload).map(str::to_owned))
            };
            assert_eq!(whole(&together), whole(&alone));
        }
        assert_eq!(reader.budget().used(), 0);
    }
}

#[tokio::test]
async fn ten_thousand_lists_of_a_tag_each_cost_at_most_fifty_statements() {
    const LISTS: usize = 10_000;
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "x", LISTS as i32).await;
    sqlx::raw_sql(
        r#"ALTER TABLE "TaskRun" SET (autovacuum_enabled = off);
           UPDATE "TaskRun" SET "runTags" = ARRAY['common', 'user:' || id]"#,
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let before = transactions(&database).await;
    let own = pool(&database, 8);
    let reader = Reader::new(RunStore::new(own.clone()), ReaderLimits::default());
    let lists: Vec<_> = (1..=LISTS)
        .map(|n| {
            let tags = vec!["common".to_owned(), format!("user:x_{n}")];
            list(tags, "2026-01-01 00:00:00".to_owned(), 10_000)
        })
        .collect();
    for (nth, list) in ask(&reader, &lists).await.into_iter().enumerate() {
        assert_eq!(ids(&list.unwrap()), [format!("x_{}", nth + 1)]);
    }
    own.close().await;
    let statements = transactions(&database).await - before;
    println!("{statements} transactions");
    assert!((10..=50).contains(&statements), "{statements} transactions");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_its_own_lists_alone() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "x", 40).await;
    for run in 1..=40 {
        tag(&database, run, &[format!("tag:{run}")]).await;
    }
    replace_payload(&database.pool, "x_7", "('not a number' || id)::int::text").await;
    let reader = reader(&database, ReaderLimits::default());
    let lists: Vec<_> = (1..=40).map(|run| of_tag(format!("tag:{run}"))).collect();
    for (nth, list) in ask(&reader, &lists).await.into_iter().enumerate() {
        match list {
            Ok(list) => assert_eq!(ids(&list), [format!("x_{}", nth + 1)]),
            Err(error) => assert_eq!((nth, error), (6, Unavailable::Failed)),
        }
    }
}

#[tokio::test]
async fn who_leaves_costs_nothing_and_too_many_are_refused() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "x", 1).await;
    let limits = ReaderLimits { waiting: 8, ..ReaderLimits::default() };
    let reader = reader(&database, limits);
    // Nobody gets bytes meanwhile.
    let kept = reader.budget().take("env_list", 1 << 40, std::time::Duration::ZERO).await.unwrap();
    let lists: Vec<_> = (0..8).map(|n| of_tag(n.to_string())).collect();
    let asked = {
        let (reader, lists) = (Arc::clone(&reader), lists.clone());
        tokio::spawn(async move { ask(&reader, &lists).await })
    };
    while reader.budget().waiting() == 0 {
        tokio::task::yield_now().await;
    }
    // Six of eight places are this environment's, so two were refused at once.
    let refused = reader.list(of_tag("a"), Patience::Fresh).await;
    assert_eq!(refused.err(), Some(Unavailable::Full));
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    drop(kept);
    while reader.budget().used() > 0 || reader.budget().waiting() > 0 {
        tokio::task::yield_now().await;
    }
    let read = reader.list(of_tag("a"), Patience::Fresh).await.unwrap();
    assert!(read.list.rows.is_empty());
}
