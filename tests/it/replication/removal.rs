//! What is left behind, and `runwire slot drop`.

use sqlx::PgPool;

use crate::support::cluster::fresh_database;
use crate::support::gateway::eventually;
use crate::support::program::{Serving, run};

/// The slots and publications of this database, and how many tables it has.
async fn left(pool: &PgPool) -> (Vec<String>, Vec<String>, i64) {
    sqlx::query_as(
        "SELECT ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()),
                ARRAY(SELECT pubname::text FROM pg_publication), (SELECT count(*) FROM pg_class)",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_trial_leaves_the_publication_alone_and_slot_drop_removes_that_too() {
    let database = fresh_database().await;
    let pool = &database.pool;
    let (_, _, relations) = left(pool).await;
    Serving::start_ready(&database.url, &[]).await.stop().await;
    let publication = (vec![], names(&["runwire"]), relations);
    eventually("the slot to go", || async { left(pool).await == publication }).await;
    let dropped = run(&["slot", "drop", "--database-url", &database.url]).await;
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    assert_eq!(dropped.stdout, "slot: was not there; publication: removed\n");
    assert_eq!(left(pool).await, (vec![], vec![], relations));
    let again = run(&["slot", "drop", "--database-url", &database.url]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(again.stdout, "slot: was not there; publication: was not there\n");
}

#[tokio::test]
async fn slot_drop_refuses_while_a_gateway_reads_and_removes_all_once_it_does_not() {
    let database = fresh_database().await;
    let pool = &database.pool;
    for (kind, kept) in [("permanent", "removed"), ("temporary", "was not there")] {
        let arguments =
            ["--slot=removal_used", "--publication=removal", "--database-url", &database.url];
        let drop = [&["slot", "drop"], &arguments[..]].concat();
        let serving = Serving::start_ready(
            &database.url,
            &["--slot=removal_used", "--publication=removal", "--slot-kind", kind],
        )
        .await;
        let before = left(pool).await;
        let refused = run(&drop).await;
        assert_eq!(refused.code, Some(1), "{kind}: {} {}", refused.stdout, refused.stderr);
        assert!(refused.complaint().contains("is being read; stop the gateway"));
        assert_eq!(left(pool).await, before, "nothing was removed");
        assert!(serving.is_ready().await);
        serving.stop().await;
        eventually("the reader to go", || async {
            let active = "SELECT count(*) FROM pg_replication_slots
                          WHERE active AND database = current_database()";
            sqlx::query_scalar::<_, i64>(active).fetch_one(pool).await.unwrap() == 0
        })
        .await;
        let dropped = run(&drop).await;
        assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
        assert_eq!(dropped.stdout, format!("slot: {kept}; publication: removed\n"));
        let (slots, publications, _) = left(pool).await;
        assert_eq!((slots, publications), (vec![], vec![]));
    }
}
