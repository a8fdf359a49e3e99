//! The publication and the slot: created, or found and adopted.

use runwire::replication::SlotKind;
use runwire::runs::columns::Column;
use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, settings, texts};

/// The transaction that made the publication; a new one has another.
async fn publication(pool: &PgPool) -> Option<String> {
    sqlx::query_scalar("SELECT xmin::text FROM pg_publication WHERE pubname = 'runwire'")
        .fetch_optional(pool)
        .await
        .unwrap()
}

/// The snapshot horizon that the slot was made with; a new one has a later one.
async fn slot(pool: &PgPool, name: &str) -> Option<(String, bool)> {
    sqlx::query_as(
        "SELECT catalog_xmin::text, temporary FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(name)
    .fetch_optional(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn the_publication_comes_before_the_slot_and_both_are_adopted_later() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let mut settings = settings(&database.url, "setup_adopted");
    settings.slot_kind = SlotKind::Permanent;

    // A writer keeps the slot from being made, so that the order shows.
    let mut writer = pool.begin().await.unwrap();
    sqlx::query(r#"UPDATE "Project" SET name = name"#).execute(&mut *writer).await.unwrap();
    let stream = Stream::start_unattached(settings.clone()).await;
    let first = publication(pool).await;
    assert!(first.is_some(), "the publication does not wait for the slot");
    assert!(!stream.status.attached());
    writer.commit().await.unwrap();
    stream.until("the slot", |events| !events.is_empty()).await;
    let tables: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'runwire' AND schemaname = 'public'",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(tables, 7);
    assert!(slot(pool, "setup_adopted").await.is_some_and(|(_, temporary)| !temporary));
    stream.stop().await;

    // What happens while nobody reads is there for the next one, since the slot is the same.
    set_metadata(pool, database.seeded.run, 1).await;
    let stream = Stream::start(settings).await;
    let id = &database.seeded.run["run_".len()..];
    stream
        .until("the change", |events| {
            texts(events, id, Column::Metadata).contains(&r#"{"v":1}"#.to_owned())
        })
        .await;
    assert_eq!(publication(pool).await, first);
    stream.stop().await;
    assert!(slot(pool, "setup_adopted").await.is_some());
}

#[tokio::test]
async fn a_publication_of_all_tables_made_by_the_owner_is_adopted() {
    let database = fresh_database().await;
    sqlx::query("CREATE PUBLICATION runwire FOR ALL TABLES").execute(&database.pool).await.unwrap();
    let before = publication(&database.pool).await;
    let stream = Stream::start(settings(&database.url, "setup_all")).await;
    set_metadata(&database.pool, database.seeded.run, 1).await;
    let id = &database.seeded.run["run_".len()..];
    stream.until("the change", |events| !texts(events, id, Column::Metadata).is_empty()).await;
    assert_eq!(publication(&database.pool).await, before);
    stream.stop().await;
}

#[tokio::test]
async fn a_role_with_replication_and_select_alone_streams_from_a_publication_that_is_there() {
    let database = fresh_database().await;
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let role = format!("reader_of_{name}");
    let sql = format!(
        r#"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"#
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.unwrap();
    let url = database.url.replace("postgres@", &format!("{role}@"));
    let refusal = runwire::replication::Source::new(settings(&url, "setup_role")).await;
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("CREATE PUBLICATION runwire FOR TABLE"), "{refusal}");
    sqlx::query(r#"CREATE PUBLICATION runwire FOR TABLE "TaskRun""#)
        .execute(&database.pool)
        .await
        .unwrap();
    let stream = Stream::start(settings(&url, "setup_role")).await;
    set_metadata(&database.pool, database.seeded.run, 1).await;
    let id = &database.seeded.run["run_".len()..];
    stream.until("the change", |events| !texts(events, id, Column::Metadata).is_empty()).await;
    stream.stop().await;
}
