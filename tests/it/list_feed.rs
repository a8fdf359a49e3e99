//! Lists of runs, at the outside: requests, headers and bodies.

mod changes;
mod columns;
mod leaving;
pub mod long;
mod members;
mod resumed;
mod scopes;
mod untold;
mod window;

use sqlx::PgPool;

use crate::support::runs::insert_with;

const RUNS: &str = "/realtime/v1/runs";

/// Inserts a run with these tags.
async fn tagged(pool: &PgPool, environment: &str, run: &str, tags: &[&str]) {
    let tags: Vec<String> =
        tags.iter().map(|tag| format!("'{}'", tag.replace('\'', "''"))).collect();
    let tags = format!("ARRAY[{}]::text[]", tags.join(","));
    insert_with(pool, environment, run, &[("runTags", &tags)]).await;
}
