//! Many requests for single runs at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use runwire::runs::columns::Column;
use runwire::runs::reader::{Patience, Reader, ReaderLimits};
use runwire::runs::store::RunStore;

use super::{arc, cell, held_up, hold, insert_runs, pool, reader, replace_payload, transactions};
use crate::support::cluster::fresh_database;
use crate::support::runs::{insert_run, update};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_thousand_cold_runs_cost_at_most_fifty_statements() {
    const RUNS: i32 = 15_000;
    let database = fresh_database().await;
    // Its worker would be counted with us.
    let quiet = r#"ALTER TABLE "TaskRun" SET (autovacuum_enabled = off)"#;
    sqlx::raw_sql(quiet).execute(&database.pool).await.unwrap();
    insert_runs(&database.pool, "env_prod", "cold", RUNS).await;
    let before = transactions(&database).await;

    let own = pool(&database, 8);
    let reader = Reader::new(RunStore::new(own.clone()), ReaderLimits::default());
    let begun = std::time::Instant::now();
    let asked = (1..=RUNS + 100).map(|n| {
        let reader = Arc::clone(&reader);
        tokio::spawn(async move {
            let id = arc(format!("run_cold_{n}"));
            let read = reader.run(&arc("env_prod"), &id, Patience::Fresh).await.unwrap();
            if n > RUNS {
                assert!(read.run.is_none(), "{id} was never inserted");
            } else {
                assert_eq!(cell(&read, Column::FriendlyId), Some(&*id));
                assert_eq!(cell(&read, Column::Payload), Some(&*format!(r#"{{"n":{n}}}"#)));
                assert_eq!(cell(&read, Column::RuntimeEnvironmentId), Some("env_prod"));
            }
        })
    });
    for answer in join_all(asked.collect::<Vec<_>>()).await {
        answer.unwrap();
    }
    println!("all answered after {:?}", begun.elapsed());
    own.close().await;
    let statements = transactions(&database).await - before;
    println!("{statements} transactions");
    assert!((15..=50).contains(&statements), "{statements} transactions");
}

#[tokio::test]
async fn a_run_that_is_inserted_after_a_statement_was_sent_is_seen_by_a_later_request() {
    let database = fresh_database().await;
    insert_run(&database.pool, "env_prod", "run_slow").await;
    replace_payload(&database.pool, "slow", "wait_for(1)").await;
    let holder = hold(&database).await;
    let reader = reader(&database, ReaderLimits::default());
    let ask = |id: &'static str| {
        let reader = Arc::clone(&reader);
        async move { reader.run(&arc("env_prod"), &arc(id), Patience::Fresh).await.unwrap() }
    };
    // One thread: both ask before the task that sends the batch runs.
    let slow = tokio::spawn(ask("run_slow"));
    let early = tokio::spawn(ask("run_new"));
    held_up(&database.pool, 1).await;
    let insert = r#"INSERT INTO "Stored" SELECT * FROM jsonb_populate_record((SELECT s FROM "Stored" s WHERE id = 'slow'),
        '{"id": "new", "friendlyId": "run_new"}')"#;
    sqlx::raw_sql(insert).execute(&database.pool).await.unwrap();
    let later = ask("run_new").await;
    assert_eq!(cell(&later, Column::FriendlyId), Some("run_new"));
    assert!(!early.is_finished(), "its statement is still under way");
    drop(holder);
    let early = early.await.unwrap();
    assert!(early.run.is_none(), "its statement was sent before the insert");
    assert!(later.seen.snapshot.includes(&early.seen.snapshot));
    assert_eq!(cell(&slow.await.unwrap(), Column::Payload), Some("waited"));
}

#[tokio::test]
async fn requests_for_one_run_share_a_statement_and_survive_those_who_leave() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "shared", 10).await;
    insert_run(&database.pool, "env_prod", "run_slow").await;
    replace_payload(&database.pool, "slow", "wait_for(1)").await;
    let holder = hold(&database).await;
    let reader = reader(&database, ReaderLimits::default());
    let ask = |id: String| {
        let reader = Arc::clone(&reader);
        tokio::spawn(async move { reader.run(&arc("env_prod"), &arc(id), Patience::Fresh).await })
    };
    let (first, second) = (ask("run_slow".into()), ask("run_slow".into()));
    let others: Vec<_> = (0..100).map(|n| ask(format!("run_shared_{}", n % 10 + 1))).collect();
    held_up(&database.pool, 1).await;
    // While the statement is under way, and while the others' is, half of them leave.
    first.abort();
    let leaves = |nth: usize| nth.is_multiple_of(2);
    others.iter().enumerate().filter(|(nth, _)| leaves(*nth)).for_each(|(_, other)| other.abort());
    drop(holder);
    let second = second.await.unwrap().unwrap();
    assert_eq!(cell(&second, Column::Payload), Some("waited"));
    for (nth, other) in others.into_iter().enumerate().filter(|(nth, _)| !leaves(*nth)) {
        let read = other.await.unwrap().unwrap();
        let id = format!("run_shared_{}", nth % 10 + 1);
        assert_eq!(cell(&read, Column::FriendlyId), Some(&*id));
    }
    let (one, same) = (ask("run_shared_1".into()), ask("run_shared_1".into()));
    let (one, same) = (one.await.unwrap().unwrap(), same.await.unwrap().unwrap());
    assert!(Arc::ptr_eq(&one, &same), "one answer for both");
}

#[tokio::test]
async fn a_crowd_in_one_environment_delays_another_by_a_few_batches() {
    const CROWD: usize = 10_000;
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "crowd", CROWD as i32).await;
    insert_run(&database.pool, "env_rival", "run_single").await;
    let limits = ReaderLimits { batch: 100, ..ReaderLimits::default() };
    let reader = reader(&database, limits);
    let answered = Arc::new(AtomicUsize::new(0));
    let crowd: Vec<_> = (1..=CROWD)
        .map(|n| {
            let (reader, answered) = (Arc::clone(&reader), Arc::clone(&answered));
            tokio::spawn(async move {
                let id = arc(format!("run_crowd_{n}"));
                reader.run(&arc("env_prod"), &id, Patience::Parked).await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    while answered.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let before = answered.load(Ordering::Relaxed);
    reader.run(&arc("env_rival"), &arc("run_single"), Patience::Fresh).await.unwrap();
    let meanwhile = answered.load(Ordering::Relaxed) - before;
    assert!(meanwhile <= 1_000, "{meanwhile} of the crowd went before");
    for one in crowd {
        one.await.unwrap();
    }
    assert_eq!(answered.load(Ordering::Relaxed), CROWD);
}

#[tokio::test]
async fn a_row_is_found_by_its_internal_id_only_in_its_environment_and_with_its_batch() {
    let database = fresh_database().await;
    let member = arc("cseedmember00000000000001");
    let reader = reader(&database, ReaderLimits::default());
    let read = reader.row(&arc("env_prod"), &member).await.unwrap();
    let run = read.run.as_ref().unwrap();
    assert_eq!(run.batch_friendly_id.as_deref(), Some(database.seeded.batch));
    assert_eq!(cell(&read, Column::Payload), Some(r#"{"i":0}"#));
    assert!(reader.row(&arc("env_rival"), &member).await.unwrap().run.is_none());
    let by_friendly_id = reader.row(&arc("env_prod"), &arc(format!("run_{member}"))).await;
    assert!(by_friendly_id.unwrap().run.is_none());
    // A value out of line comes as well.
    let large = arc(&database.seeded.large_run["run_".len()..]);
    update(&database.pool, database.seeded.large_run, "status = 'PAUSED'").await;
    let read = reader.row(&arc("env_prod"), &large).await.unwrap();
    assert_eq!(cell(&read, Column::Payload).map(str::len), Some(300 * 32 + r#"{"blob":""}"#.len()));
}
