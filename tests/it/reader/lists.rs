//! Lists of runs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use runwire::runs::columns::{Column, ColumnSet};
use runwire::runs::list::{List, ListQuery, Which};
use runwire::runs::reader::{Patience, ReaderLimits, Unavailable};
use runwire::runs::store::RunStore;
use runwire::runs::tuple::Cell;
use sqlx::{Connection, PgConnection};

use super::{arc, insert_runs, left_alone, pool, reader};
use crate::support::cluster::{Database, fresh_database};
use crate::support::runs::{insert_run, update};

const SINCE: &str = "2026-01-01 00:00:00";

fn tagged(tags: &[&str]) -> Which {
    let tags = tags.iter().map(|tag| (*tag).into()).collect();
    Which::Tags { tags, created_from: SINCE.to_owned() }
}

fn query(which: Which) -> ListQuery {
    ListQuery {
        environment: arc("env_list"),
        which,
        columns: ColumnSet::EXPOSED,
        max_rows: 10_000,
        max_bytes: 64 << 20,
    }
}

fn ids(list: &List) -> Vec<&str> {
    list.rows.iter().map(|row| row.text(Column::Id).unwrap()).collect()
}

async fn read(database: &Database, query: &ListQuery) -> List {
    RunStore::new(pool(database, 1)).list(query).await.unwrap()
}

#[tokio::test]
async fn five_thousand_runs_come_newest_first_and_truncated_where_asked() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "a", 5_000).await;
    insert_runs(&database.pool, "env_other", "b", 10).await;
    let expected: Vec<String> = sqlx::query_scalar(
        r#"SELECT id FROM "TaskRun" WHERE "runtimeEnvironmentId" = 'env_list' ORDER BY "createdAt" DESC, id DESC"#,
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let all = read(&database, &query(tagged(&[]))).await;
    assert_eq!(ids(&all), expected);
    assert!(!all.truncated);
    assert_eq!(all.rows[0].get(Column::Payload), Cell::Text(r#"{"n":5000}"#));

    for (max_rows, max_bytes, length) in
        [(5_000, usize::MAX, 5_000), (4_999, usize::MAX, 4_999), (1, usize::MAX, 1), (10_000, 1, 1)]
    {
        let list = read(&database, &ListQuery { max_rows, max_bytes, ..query(tagged(&[])) }).await;
        assert_eq!(ids(&list), expected[..length]);
        assert_eq!(list.truncated, length < 5_000, "{max_rows} rows, {max_bytes} bytes");
    }
    let some = read(&database, &ListQuery { max_bytes: 1 << 20, ..query(tagged(&[])) }).await;
    assert!(some.truncated && (500..1_024).contains(&some.rows.len()), "{}", some.rows.len());
    assert_eq!(ids(&some), expected[..some.rows.len()]);

    // n / 3 seconds after SINCE: all from 1,000 seconds on.
    let created_from = "2026-01-01 00:16:40".to_owned();
    let which = Which::Tags { tags: std::sync::Arc::default(), created_from };
    let late = read(&database, &query(which)).await;
    assert_eq!(late.rows.len(), 5_000 - 2_999, "from the second itself on");
    let none = ListQuery { environment: arc("env_none"), ..query(tagged(&[])) };
    let none = read(&database, &none).await;
    assert!(none.rows.is_empty() && !none.truncated);
    assert!(none.seen.snapshot.xmin > 0);
}

#[tokio::test]
async fn a_list_has_the_runs_with_all_of_its_tags_exactly() {
    let database = fresh_database().await;
    let odd = [
        "a,b", "a", "b", "\"", "\\", "\\\"", "'", "''", "{}", "{a,b}", "NULL", "null", " a", "A",
        "ä", "a\u{308}", "☃", "🦀", "%", "_", "a b", "$1", "user:1",
    ];
    for (nth, tag) in odd.iter().enumerate() {
        let run = format!("run_tag_{nth}");
        insert_run(&database.pool, "env_list", &run).await;
        sqlx::query(r#"UPDATE "TaskRun" SET "runTags" = $1 WHERE "friendlyId" = $2"#)
            .bind(vec![*tag, "all", "both\\,\""])
            .bind(&run)
            .execute(&database.pool)
            .await
            .unwrap();
    }
    insert_run(&database.pool, "env_list", "run_untagged").await;
    for (nth, tag) in odd.iter().enumerate() {
        for tags in [vec![*tag], vec!["all", *tag, "both\\,\""], vec![*tag, *tag]] {
            let list = read(&database, &query(tagged(&tags))).await;
            assert_eq!(ids(&list), [format!("tag_{nth}")], "{tags:?}");
        }
        assert!(read(&database, &query(tagged(&[tag, "other"]))).await.rows.is_empty());
    }
    assert_eq!(read(&database, &query(tagged(&["all"]))).await.rows.len(), odd.len());
    assert_eq!(read(&database, &query(tagged(&[]))).await.rows.len(), odd.len() + 1);
}

#[tokio::test]
async fn a_batch_s_list_has_its_runs_only() {
    let database = fresh_database().await;
    let which = Which::Batch { id: arc("cseedbatch000000000000001") };
    let batch = ListQuery { environment: arc("env_prod"), ..query(which) };
    let list = read(&database, &batch).await;
    assert_eq!(ids(&list), ["cseedmember00000000000002", "cseedmember00000000000001"]);
    let elsewhere = ListQuery { environment: arc("env_rival"), ..batch };
    assert!(read(&database, &elsewhere).await.rows.is_empty());
}

/// Blocks of out-of-line storage that were looked at so far. Ends the database's pool.
async fn toast_blocks(database: &Database) -> i64 {
    drop(left_alone(database).await);
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let blocks = sqlx::query_scalar(
        r#"SELECT coalesce(toast_blks_read, 0) + coalesce(toast_blks_hit, 0)
           FROM pg_statio_user_tables WHERE relname = 'TaskRun'"#,
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    blocks
}

#[tokio::test]
async fn columns_that_were_not_asked_for_are_not_read() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "large", 20).await;
    for column in ["payload", "output", "metadata"] {
        let value = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 5000) i)";
        for n in 1..=20 {
            let set = format!("{column} = {value}");
            update(&database.pool, &format!("run_large_{n}"), &set).await;
        }
    }
    let before = toast_blocks(&database).await;
    let columns = ColumnSet::without(["payload", "output", "metadata", "error", "ttl"]);
    let lean = ListQuery { columns, max_bytes: 64 << 10, ..query(tagged(&[])) };
    let own = pool(&database, 1);
    let list = RunStore::new(own.clone()).list(&lean).await.unwrap();
    own.close().await;
    assert_eq!(toast_blocks(&database).await, before, "nothing out of line was looked at");
    assert_eq!(list.rows.len(), 20);
    assert!(!list.truncated, "what is not read does not count");
    for row in &list.rows {
        for column in
            [Column::Payload, Column::Output, Column::Metadata, Column::Error, Column::Ttl]
        {
            assert_eq!(row.get(column), Cell::Unchanged);
        }
        for column in [Column::Id, Column::RuntimeEnvironmentId, Column::CreatedAt, Column::Status]
        {
            assert!(matches!(row.get(column), Cell::Text(_)), "{column:?}");
        }
        assert_eq!(row.get(Column::BatchId), Cell::Null);
        assert_eq!(row.get(Column::CompletedAt), Cell::Null);
    }

    // Of one row's output only, since no more is let in.
    let columns = ColumnSet::without(["payload", "metadata"]);
    let one = ListQuery { columns, max_bytes: 200 << 10, ..query(tagged(&[])) };
    let own = pool(&database, 1);
    let list = RunStore::new(own.clone()).list(&one).await.unwrap();
    own.close().await;
    assert!(list.truncated);
    assert_eq!(list.rows.len(), 1);
    assert_eq!(list.rows[0].text(Column::Output).map(str::len), Some(160_000));
    let read = toast_blocks(&database).await - before;
    assert!((1..100).contains(&read), "{read} blocks for one value of 160,000 bytes");
}

#[tokio::test]
async fn a_list_counts_against_the_budget_until_it_is_dropped() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "some", 1_000).await;
    let limits =
        ReaderLimits { bytes: 2 << 20, bytes_per_environment: 1 << 20, ..Default::default() };
    let reader = reader(&database, limits);
    let some = ListQuery { max_bytes: 1 << 20, ..query(tagged(&[])) };
    let first = reader.list(some.clone(), Patience::Fresh).await.unwrap();
    assert_eq!(first.list.rows.len(), 1_000);
    assert_eq!(first.share.bytes(), first.list.rows.iter().map(|row| row.size()).sum::<usize>());
    assert_eq!(reader.budget().used(), first.share.bytes());
    let second = {
        let (reader, some) = (Arc::clone(&reader), some.clone());
        tokio::spawn(async move { reader.list(some, Patience::Parked).await })
    };
    while reader.budget().waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let elsewhere = ListQuery { environment: arc("env_prod"), ..some.clone() };
    reader.list(elsewhere, Patience::Fresh).await.unwrap();
    // One that leaves while it waits takes nothing along.
    let third = {
        let reader = Arc::clone(&reader);
        tokio::spawn(async move { reader.list(some, Patience::Fresh).await })
    };
    while reader.budget().waiting() < 2 {
        tokio::task::yield_now().await;
    }
    third.abort();
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.await.unwrap().unwrap().list.rows.len(), 1_000);
    assert!(third.await.unwrap_err().is_cancelled());
    assert_eq!(reader.budget().used(), 0);

    sqlx::raw_sql(r#"DROP TABLE "TaskRun""#).execute(&database.pool).await.unwrap();
    let failed = reader.list(query(tagged(&[])), Patience::Fresh).await;
    assert_eq!(failed.err(), Some(Unavailable::Failed));
    assert_eq!(reader.budget().used(), 0);
}

#[tokio::test]
async fn a_wave_of_parked_lists_comes_through_where_a_fresh_one_is_refused() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_list", "some", 100).await;
    let limits = ReaderLimits {
        connections: 1,
        bytes: 1 << 20,
        bytes_per_environment: 1 << 20,
        wait: Duration::from_secs(5),
        ..ReaderLimits::default()
    };
    let hasty = ReaderLimits { wait: Duration::ZERO, ..limits.clone() };
    let (patient, hasty) = (reader(&database, limits), reader(&database, hasty));
    let some = ListQuery { max_bytes: 1 << 20, ..query(tagged(&[])) };
    let kept = hasty.budget().take("env_list", 1, Duration::ZERO).await.unwrap();
    let refused = hasty.list(some.clone(), Patience::Fresh).await;
    assert_eq!(refused.err(), Some(Unavailable::Full));
    drop(kept);
    // Only one fits into the budget at a time, and each is dropped as soon as it is answered.
    join_all((0..200).map(async |_| {
        let read = patient.list(some.clone(), Patience::Parked).await.unwrap();
        assert_eq!(read.list.rows.len(), 100);
    }))
    .await;
}
