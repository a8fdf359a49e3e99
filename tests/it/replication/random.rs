//! The decoder against the database itself: random rows, compared cell by cell with a query.

use rand::Rng;
use runwire::dev::Postgres;
use runwire::replication::change::Change;
use runwire::runs::columns::Column;
use runwire::runs::text::normalize;
use runwire::runs::tuple::{Cell, Tuple};
use sqlx::AssertSqlSafe;

use super::rows::{Cells, Writer};
use crate::support::chance::random;
use crate::support::cluster::{Database, database_in, shared};
use crate::support::gateway::Gateway;
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, settings, transactions};

#[tokio::test]
async fn random_rows_are_streamed_as_a_query_shows_them() {
    streamed_as_queried(shared().await).await;
}

pub async fn streamed_as_queried(postgres: &Postgres) {
    let mut random = random();
    for identity in ["DEFAULT", "FULL"] {
        let database = database_in(postgres).await;
        disturb(&database, identity).await;
        let stream = Stream::start(settings(&database.url, "random")).await;
        let mut writer = Writer::connect(&database).await;
        let mut expected: Vec<(Option<Cells>, Cells)> = Vec::new();
        for _ in 0..12 {
            let inserted = writer.insert(&mut random).await;
            expected.push((None, inserted.clone()));
            let mut before = inserted;
            for _ in 0..random.random_range(0..8) {
                let after = writer.update(&mut random, &before).await;
                expected.push((Some(before), after.clone()));
                before = after;
            }
        }
        let ours =
            |change: &&Change| matches!(change, Change::RunInserted(_) | Change::RunUpdated { .. });
        stream
            .until("all rows", |events| {
                let changes = transactions(events).flat_map(|tx| &tx.changes);
                changes.filter(ours).count() == expected.len()
            })
            .await;
        let mut unchanged = 0;
        stream.look(|events| {
            let changes = transactions(events).flat_map(|tx| &tx.changes).filter(ours);
            for (change, (before, after)) in changes.zip(&expected) {
                unchanged += compare(change, before.as_ref(), after, identity == "FULL");
            }
        });
        assert!(unchanged > 0, "no value was large enough to be left out");
        stream.stop().await;
    }
}

/// Settings that would change the texts of values if they were not pinned.
async fn disturb(database: &Database, identity: &str) {
    let sql = format!(
        r#"ALTER TABLE "TaskRun" REPLICA IDENTITY {identity};
           DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET datestyle = ''German''', current_database());
             EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -5', current_database());
             EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kathmandu''', current_database());
           END $$"#
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.pool).await.unwrap();
}

/// Fails where the stream and the query differ; gives how many cells were left out as unchanged.
fn compare(change: &Change, before: Option<&Cells>, after: &Cells, full: bool) -> usize {
    let (new, old) = match change {
        Change::RunInserted(new) => (new, None),
        Change::RunUpdated { new, old } => (new, old.as_deref()),
        other => panic!("{other:?}"),
    };
    assert_eq!(before.is_none(), matches!(change, Change::RunInserted(_)));
    assert_eq!(old.is_some(), full && before.is_some());
    if let (Some(old), Some(before)) = (old, before) {
        for column in Column::ALL {
            same(column, old, &before[column as usize]);
        }
    }
    let mut unchanged = 0;
    for column in Column::ALL {
        let wanted = &after[column as usize];
        if new.get(column) == Cell::Unchanged {
            unchanged += 1;
            let before = before.expect("an inserted row is sent whole");
            assert!(wanted.is_some(), "{column:?} is null, not unchanged");
            assert_eq!(&before[column as usize], wanted, "{column:?} has changed");
        } else {
            same(column, new, wanted);
        }
    }
    unchanged
}

fn same(column: Column, tuple: &Tuple, wanted: &Option<String>) {
    let text = |text| normalize(column.kind(), text).into_owned();
    let found = match tuple.get(column) {
        Cell::Null => None,
        Cell::Text(found) => Some(text(found)),
        Cell::Unchanged => panic!("{column:?} was left out"),
    };
    assert_eq!(found, wanted.as_deref().map(text), "{column:?}");
}

#[tokio::test]
async fn a_row_from_the_stream_and_the_same_row_from_a_query_are_the_same_bytes_on_the_wire() {
    let mut random = random();
    for identity in ["DEFAULT", "FULL"] {
        let database = database_in(shared().await).await;
        disturb(&database, identity).await;
        let (key, marker) = (database.seeded.production.secret_key, database.seeded.run);
        let witness = Gateway::start(&database.url, &[]).await;
        let from = witness.open(marker, key).await;
        let mut writer = Writer::connect(&database).await;
        let mut runs = Vec::new();
        for _ in 0..10 {
            let mut row = writer.insert(&mut random).await;
            for _ in 0..random.random_range(0..4) {
                row = writer.update(&mut random, &row).await;
            }
            runs.push(format!("run_{}", row[0].as_deref().unwrap()));
        }
        // Whoever has been told of the marker has taken in what was committed before it.
        set_metadata(&database.pool, marker, 1).await;
        witness.live(marker, key, &from).await;
        let latecomer = Gateway::start(&database.url, &[]).await;
        let mut queried = Vec::new();
        for run in &runs {
            queried.push(latecomer.open(run, key).await);
        }
        // Queries of runs cannot end now, so that an answer comes from memory.
        let mut lock = database.pool.begin().await.unwrap();
        let sql = r#"LOCK TABLE "TaskRun" IN ACCESS EXCLUSIVE MODE"#;
        sqlx::query(sql).execute(&mut *lock).await.unwrap();
        for (run, queried) in runs.iter().zip(queried) {
            assert_eq!(queried.status, 200, "{}", queried.text);
            let streamed = witness.open(run, key).await;
            assert_eq!(streamed.text, queried.text);
        }
        lock.rollback().await.unwrap();
        witness.stop().await;
        latecomer.stop().await;
    }
}
