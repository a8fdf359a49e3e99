//! What goes wrong while the random test writes.

use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use sqlx::PgPool;

use super::held::Held;
use super::node::Node;
use super::standby::require_standby;

/// Lets those commits hang now and then that wait for a standby.
pub async fn stall(pool: &PgPool, mut rng: StdRng, until: Instant) {
    while Instant::now() < until {
        require_standby(pool, true).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(10..1_000))).await;
        require_standby(pool, false).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..800))).await;
    }
}

/// Ends walsenders and nodes, and lets a node lag behind the other.
pub async fn accidents(pool: &PgPool, nodes: &mut [Node], mut rng: StdRng, until: Instant) {
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..900))).await;
        let at = rng.random_range(0..nodes.len());
        let slot = ["node_a", "node_b"][at];
        match rng.random_range(0..5) {
            0 => {
                let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                           WHERE active_pid IS NOT NULL AND slot_name LIKE $1 || '%'";
                sqlx::query(sql).bind(slot).execute(pool).await.expect("end a walsender");
            }
            1 | 2 => {
                let held = Held::hold(pool, slot).await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_000))).await;
                drop(held);
            }
            3 => {
                nodes[at].stop().await;
                nodes[at].start_again().await;
            }
            _ => {
                nodes[at].kill().await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
                nodes[at].start_again().await;
            }
        }
    }
}
