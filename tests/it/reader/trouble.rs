//! What goes wrong for one must not go wrong for others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use runwire::runs::columns::Column;
use runwire::runs::reader::{Patience, ReaderLimits, Unavailable};

use super::{arc, cell, held_up, hold, insert_runs, reader, replace_payload};
use crate::support::cluster::fresh_database;
use crate::support::runs::insert_run;

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_alone() {
    let database = fresh_database().await;
    insert_runs(&database.pool, "env_prod", "some", 200).await;
    replace_payload(&database.pool, "some_77", "(1 / (number - 77))::text").await;
    let reader = reader(&database, ReaderLimits::default());
    let answers =
        join_all((1..=200).map(|n| {
            let reader = Arc::clone(&reader);
            async move {
                reader.run(&arc("env_prod"), &arc(format!("run_some_{n}")), Patience::Fresh).await
            }
        }));
    for (n, answer) in (1..).zip(answers.await) {
        match answer {
            Err(unavailable) => assert_eq!((n, unavailable), (77, Unavailable::Failed)),
            Ok(read) => assert_eq!(cell(&read, Column::Number), Some(&*n.to_string())),
        }
    }
}

#[tokio::test]
async fn an_id_that_postgres_cannot_hold_is_no_run_and_harms_nobody() {
    let database = fresh_database().await;
    let reader = reader(&database, ReaderLimits::default());
    let environment = arc("env_prod");
    let odd = ["run_\0", "", "run_'; DROP TABLE x; --", "{a,b}", "\u{10ffff}", "NULL"].map(arc);
    let good = arc(database.seeded.run);
    let ask = |id| reader.run(&environment, id, Patience::Fresh);
    let (good, odd) = futures_util::join!(ask(&good), join_all(odd.iter().map(ask)));
    assert_eq!(cell(&good.unwrap(), Column::FriendlyId), Some(database.seeded.run));
    assert!(odd.into_iter().all(|answer| answer.unwrap().run.is_none()));
}

#[tokio::test]
async fn whoever_waits_for_a_database_that_hangs_is_told_and_others_are_served_after_it() {
    let database = fresh_database().await;
    insert_run(&database.pool, "env_prod", "run_slow").await;
    replace_payload(&database.pool, "slow", "wait_for(1)").await;
    let holder = hold(&database).await;
    let limits =
        ReaderLimits { connections: 1, wait: Duration::from_secs(1), ..ReaderLimits::default() };
    let reader = reader(&database, limits);
    let environment = arc("env_prod");
    let slow = reader.run(&environment, &arc("run_slow"), Patience::Fresh).await;
    assert_eq!(slow.unwrap_err(), Unavailable::Late);
    held_up(&database.pool, 1).await;
    // The statement still hangs; the only connection of the pool was given up with it.
    let run = arc(database.seeded.run);
    let read = reader.run(&environment, &run, Patience::Parked).await.unwrap();
    assert_eq!(cell(&read, Column::FriendlyId), Some(&*run));
    drop(holder);
}

#[tokio::test]
async fn a_batch_is_looked_up_in_its_environment_and_remembered() {
    let database = fresh_database().await;
    let reader = reader(&database, ReaderLimits::default());
    let (batch, environment) = (arc(database.seeded.batch), arc("env_prod"));
    assert_eq!(reader.batch_id(&arc("env_rival"), &batch).await, Ok(None));
    assert_eq!(reader.batch_id(&environment, &arc("batch_\0")).await, Ok(None));
    let id = reader.batch_id(&environment, &batch).await.unwrap();
    assert_eq!(id.as_deref(), Some("cseedbatch000000000000001"));
    sqlx::raw_sql(r#"DROP TABLE "BatchTaskRun""#).execute(&database.pool).await.unwrap();
    assert_eq!(reader.batch_id(&environment, &batch).await, Ok(id));
    assert_eq!(reader.batch_id(&arc("env_rival"), &batch).await, Err(Unavailable::Failed));
}

#[tokio::test]
async fn the_server_s_state_is_never_older_than_the_question() {
    let database = fresh_database().await;
    let reader = reader(&database, ReaderLimits::default());
    for n in 0..20 {
        insert_run(&database.pool, "env_prod", &format!("run_state_{n}")).await;
        let sql = "SELECT pg_current_snapshot()::text";
        let now: String = sqlx::query_scalar(sql).fetch_one(&database.pool).await.unwrap();
        let states = join_all((0..10).map(|_| reader.server_state())).await;
        for state in states {
            assert!(state.unwrap().snapshot.includes(&now.parse().unwrap()));
        }
    }
}
