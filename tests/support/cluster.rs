//! The Postgres that the tests of this binary share.

use std::sync::atomic::{AtomicU32, Ordering};

use runwire::dev::{Options, Postgres, Seeded, seed};
use sqlx::PgPool;
use tokio::sync::OnceCell;

use super::gateway::eventually;

/// The shared cluster, started by the first test that asks. A static is never dropped: the
/// cluster's guardian process stops it and removes its files when this process ends.
pub async fn shared() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            Postgres::start(Options::default()).await.expect("start Postgres")
        })
        .await
}

/// A seeded database that no other test knows.
pub struct Database {
    /// Where it is.
    pub url: String,
    /// What it holds.
    pub seeded: Seeded,
    /// A connection pool of the calling test's runtime.
    pub pool: PgPool,
}

/// A new database in the shared cluster.
pub async fn fresh_database() -> Database {
    database_in(shared().await).await
}

/// A new database in a cluster of the test's own.
pub async fn database_in(postgres: &Postgres) -> Database {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let url = postgres.create_database(&name).await.expect("create a database");
    let pool = PgPool::connect(&url).await.expect("connect to the database");
    let seeded = seed::load(&pool).await.expect("load the seed");
    Database { url, seeded, pool }
}

/// Removes a slot whose gateway was stopped: Postgres lets it go a moment after its reader has gone.
pub async fn drop_slot(pool: &PgPool, name: &str) {
    eventually("the slot to be free", || async {
        let drop_slot = sqlx::query("SELECT pg_drop_replication_slot($1)").bind(name);
        drop_slot.execute(pool).await.is_ok()
    })
    .await;
}
