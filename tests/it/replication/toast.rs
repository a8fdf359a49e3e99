//! Values stored out of line: an update that does not touch them does not send them.

use runwire::dev::Postgres;
use runwire::replication::change::{Change, Event};
use runwire::runs::columns::Column;
use runwire::runs::tuple::{Cell, Tuple};

use crate::support::cluster::{database_in, shared};
use crate::support::gateway::Gateway;
use crate::support::runs::update;
use crate::support::stream::{Stream, settings, transactions, versions};

#[tokio::test]
async fn an_unchanged_value_out_of_line_is_never_null_under_either_identity() {
    unchanged_is_never_null(shared().await).await;
}

type Update<'a> = (&'a Tuple, Option<&'a Tuple>);

fn updates(events: &[Event]) -> Vec<Update<'_>> {
    let changes = transactions(events).flat_map(|tx| &tx.changes);
    changes
        .filter_map(|change| match change {
            Change::RunUpdated { new, old } => Some((new, old.as_deref())),
            _ => None,
        })
        .collect()
}

pub async fn unchanged_is_never_null(postgres: &Postgres) {
    let database = database_in(postgres).await;
    let (pool, run) = (&database.pool, database.seeded.large_run);
    let id = &run["run_".len()..];
    let (payload, output): (String, String) =
        sqlx::query_as(r#"SELECT payload, output FROM "TaskRun" WHERE id = $1"#)
            .bind(id)
            .fetch_one(pool)
            .await
            .unwrap();
    let stream = Stream::start(settings(&database.url, "toast")).await;
    update(pool, run, "status = 'PAUSED'").await;
    update(pool, run, "output = output || ''").await;
    sqlx::raw_sql(r#"ALTER TABLE "TaskRun" REPLICA IDENTITY FULL"#).execute(pool).await.unwrap();
    update(pool, run, "status = 'EXECUTING'").await;
    update(pool, run, "output = NULL").await;
    stream.until("four updates", |events| versions(events, id).len() == 4).await;
    stream.look(|events| {
        let updates = updates(events);
        let (new, old) = updates[0];
        assert!(old.is_none());
        assert_eq!(new.get(Column::Payload), Cell::Unchanged);
        assert_eq!(new.get(Column::Output), Cell::Unchanged);
        assert_eq!(new.get(Column::Status), Cell::Text("PAUSED"));
        assert_eq!(new.get(Column::Metadata), Cell::Null, "null stays null");
        let (new, _) = updates[1];
        assert_eq!(new.get(Column::Payload), Cell::Unchanged);
        assert_eq!(new.get(Column::Output), Cell::Text(&output), "a new value, equal to the old");
        let (new, old) = updates[2];
        let old = old.expect("the whole old row under FULL");
        assert_eq!(new.get(Column::Payload), Cell::Unchanged);
        assert_eq!(old.get(Column::Payload), Cell::Text(&payload));
        assert_eq!(old.get(Column::Output), Cell::Text(&output));
        assert_eq!(old.get(Column::Status), Cell::Text("PAUSED"));
        let (new, old) = updates[3];
        assert_eq!(new.get(Column::Output), Cell::Null, "set to null is null");
        assert_eq!(old.unwrap().get(Column::Output), Cell::Text(&output));
    });
    stream.stop().await;
}

#[tokio::test]
async fn clients_get_a_value_that_the_stream_never_sent_whole() {
    for identity in ["DEFAULT", "FULL"] {
        let database = database_in(shared().await).await;
        let (pool, run) = (&database.pool, database.seeded.large_run);
        let key = database.seeded.production.secret_key;
        let alter = format!(r#"ALTER TABLE "TaskRun" REPLICA IDENTITY {identity}"#);
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(pool).await.unwrap();
        let gateway = Gateway::start(&database.url, &[]).await;
        let open = gateway.open(run, key).await;
        let whole = open.row().1;
        assert!(whole["payload"].as_str().unwrap().len() > 8_000);
        // A subscriber sees what changed and never a null in place of what did not.
        update(pool, run, "status = 'PAUSED'").await;
        let live = gateway.live(run, key, &open).await.row().1;
        assert_eq!(live["status"], "PAUSED");
        for column in ["payload", "output"] {
            assert!(live.get(column).is_none_or(|value| *value == whole[column]), "{live}");
        }
        // Whoever comes now gets the whole row, whether from memory or not.
        let mut expected = whole.clone();
        expected["status"] = "PAUSED".into();
        assert_eq!(gateway.open(run, key).await.row().1, expected, "{identity}");
        gateway.stop().await;
    }
}
