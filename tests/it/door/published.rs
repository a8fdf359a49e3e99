//! A publication that does not carry the tables of keys.

use std::time::{Duration, Instant};

use super::*;

const REMEDY: &str = r#"ALTER PUBLICATION runwire ADD TABLE public."RuntimeEnvironment", public."RevokedApiKey", public."api_keys""#;

#[tokio::test]
async fn without_the_tables_of_keys_revocation_takes_5_s_and_the_remedy_is_told_and_works() {
    let database = fresh_database().await;
    run_sql(&database.pool, r#"CREATE PUBLICATION runwire FOR TABLE "TaskRun", "Project""#).await;
    let gateway = Serving::start_ready(&database.url, &[]).await;
    let trial = Trial { database, gateway };
    trial.gateway.until_said(&REMEDY.replace('"', "\\\"")).await;
    let ready = trial.gateway.admin("/readyz").await;
    let told = format!(
        "ready\nwarning: revoked keys are noticed after 5 s only, until their tables are published: {REMEDY}\nstreams: "
    );
    assert!(ready.starts_with(&told), "{ready}");
    assert_eq!(trial.gateway.metric("runwire_keys_published").await, 0.0);

    let (production, admin) =
        (trial.database.seeded.production, bearer(trial.database.seeded.admin_key));
    let root = trial.open(&production, &bearer(production.secret_key)).await;
    let open = trial.open(&production, &admin).await;
    let since = Instant::now();
    trial.sql("DELETE FROM api_keys WHERE id = 'apikey_admin'").await;
    open.ends_within(since, Duration::from_secs(5) + AT_ONCE, INVALID_KEY).await;
    assert_eq!(trial.admitted(&admin).await, Err(format!("401 {INVALID_KEY}")));
    root.goes_on(&trial).await;

    trial.sql(REMEDY).await;
    let silent = || async { trial.gateway.admin("/readyz").await.starts_with("ready\nstreams: ") };
    eventually("the remedy to be noticed", silent).await;
    trial.loaded().await;
    let open = trial.open(&production, &bearer(trial.database.seeded.restricted_key)).await;
    let since = Instant::now();
    trial.sql("DELETE FROM api_keys WHERE id = 'apikey_restricted'").await;
    open.ends(since, INVALID_KEY).await;
    trial.gateway.stop().await;
}

#[tokio::test]
async fn a_table_that_is_published_in_parts_counts_as_missing() {
    let database = fresh_database().await;
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    if version < 150_000 {
        return;
    }
    run_sql(
        &database.pool,
        r#"CREATE PUBLICATION runwire FOR TABLE "TaskRun", "RuntimeEnvironment", "RevokedApiKey", api_keys, "Project" (id)"#,
    )
    .await;
    let gateway = Serving::start_ready(&database.url, &[]).await;
    let remedy = r#"ALTER PUBLICATION runwire DROP TABLE public.\"Project\"; ALTER PUBLICATION runwire ADD TABLE public.\"Project\""#;
    gateway.until_said(remedy).await;
    gateway.stop().await;
}
