//! A named slot that somebody else reads.

use runwire::replication::SlotKind;
use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::runs::set_metadata;
use crate::support::stream::{Stream, settings, transactions};

/// How many sessions this database has had, which tells that somebody keeps trying.
pub async fn sessions(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_named_slot_whose_holder_leaves_soon_is_waited_for() {
    let database = fresh_database().await;
    let mut settings = settings(&database.url, "held_briefly");
    settings.slot_kind = SlotKind::Permanent;
    let holder = Stream::start(settings.clone()).await;
    let heir = Stream::start_unattached(settings).await;
    let before = sessions(&database.pool).await;
    eventually("some tries", || async { sessions(&database.pool).await > before + 3 }).await;
    assert!(!heir.status.attached());
    holder.stop().await;
    heir.until("the slot", |events| !events.is_empty()).await;
    eventually("the slot's name", || async { heir.status.attached() }).await;
    assert_eq!(heir.status.slot(), "held_briefly");
    heir.stop().await;
}

#[tokio::test]
async fn a_named_slot_that_stays_busy_is_stood_in_for_by_a_temporary_one() {
    let database = fresh_database().await;
    let mut settings = settings(&database.url, "held_long");
    settings.slot_kind = SlotKind::Permanent;
    let holder = Stream::start(settings.clone()).await;
    let second = Stream::start(settings).await;
    eventually("the slot's name", || async { second.status.attached() }).await;
    assert!(second.status.slot().starts_with("held_long_tmp_"), "{}", second.status.slot());
    set_metadata(&database.pool, database.seeded.run, 1).await;
    for stream in [&holder, &second] {
        stream.until("the change", |events| transactions(events).count() == 1).await;
    }
    assert_eq!(holder.status.slot(), "held_long");
    second.stop().await;
    holder.stop().await;
    eventually("the temporary slot to go", || async {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()",
        )
        .fetch_all(&database.pool)
        .await
        .unwrap();
        left == ["held_long"]
    })
    .await;
}
