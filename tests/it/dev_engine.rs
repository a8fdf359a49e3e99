//! The simulated engine.

use std::time::Duration;

use runwire::dev::engine::Settings;
use runwire::dev::run::{add_tag, built_in_error, complete, fail, set_metadata, set_status};
use runwire::dev::{Engine, RunSpec, StepError, complete_batch, seed, trigger_batch, trigger_run};
use sqlx::PgPool;

use crate::support::cluster::{Database, fresh_database};

async fn text(pool: &PgPool, run: &str, expression: &str) -> Option<String> {
    let sql = format!(r#"SELECT ({expression})::text FROM "TaskRun" WHERE "friendlyId" = $1"#);
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(run).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn the_steps_of_a_run_write_what_the_engine_would() {
    let Database { pool, seeded, .. } = fresh_database().await;
    let env = &seeded.production;
    let spec = RunSpec { tags: Some(vec!["user:7".into()]), ..RunSpec::new("hello") };
    let run = trigger_run(&pool, env, spec).await.unwrap().friendly_id;
    assert_eq!(run.len(), "run_".len() + 25);
    assert_eq!(text(&pool, &run, "status").await.unwrap(), "PENDING");
    assert!(text(&pool, &run, r#""queuedAt""#).await.is_some());

    set_status(&pool, &run, "EXECUTING").await.unwrap();
    let started = text(&pool, &run, r#""startedAt""#).await;
    set_status(&pool, &run, "EXECUTING").await.unwrap();
    assert!(started.is_some() && started == text(&pool, &run, r#""startedAt""#).await);

    set_metadata(&pool, &run, r#"{"progress":0.1}"#).await.unwrap();
    assert_eq!(text(&pool, &run, r#""metadataVersion""#).await.unwrap(), "2");
    add_tag(&pool, &run, "late").await.unwrap();
    assert_eq!(text(&pool, &run, r#""runTags""#).await.unwrap(), "{user:7,late}");

    complete(&pool, &run, r#"{"ok":true}"#).await.unwrap();
    assert_eq!(text(&pool, &run, "status").await.unwrap(), "COMPLETED_SUCCESSFULLY");
    assert_eq!(
        text(&pool, &run, r#""completedAt" = "updatedAt" AND "usageDurationMs" >= 0"#)
            .await
            .unwrap(),
        "true"
    );

    let failed = trigger_run(&pool, env, RunSpec::new("hello")).await.unwrap().friendly_id;
    assert_eq!(text(&pool, &failed, r#""runTags""#).await, None);
    add_tag(&pool, &failed, "first").await.unwrap();
    assert_eq!(text(&pool, &failed, r#""runTags""#).await.unwrap(), "{first}");
    fail(&pool, &failed, &built_in_error("TypeError", "no")).await.unwrap();
    assert_eq!(text(&pool, &failed, "error ->> 'type'").await.unwrap(), "BUILT_IN_ERROR");

    let delayed = RunSpec { delay_seconds: Some(60), ..RunSpec::new("hello") };
    let delayed = trigger_run(&pool, env, delayed).await.unwrap().friendly_id;
    assert_eq!(text(&pool, &delayed, "status").await.unwrap(), "DELAYED");
    assert_eq!(text(&pool, &delayed, r#""delayUntil" - "createdAt""#).await.unwrap(), "00:01:00");
    assert!(text(&pool, &delayed, r#""queuedAt""#).await.is_none());
    set_status(&pool, &delayed, "EXPIRED").await.unwrap();
    assert!(text(&pool, &delayed, r#""expiredAt" = "completedAt""#).await.is_some());

    let batch =
        trigger_batch(&pool, env, vec![RunSpec::new("a"), RunSpec::new("b")]).await.unwrap();
    assert_eq!(text(&pool, &batch.runs[1].friendly_id, r#""batchId""#).await.unwrap(), batch.id);
    complete_batch(&pool, &batch.friendly_id).await.unwrap();

    let missing = set_metadata(&pool, "run_missing", "{}").await;
    assert!(matches!(missing, Err(StepError::Unknown(_))));
}

#[tokio::test]
async fn steps_take_part_in_a_transaction() {
    let Database { pool, seeded, .. } = fresh_database().await;
    let mut transaction = pool.begin().await.unwrap();
    set_status(&mut *transaction, seeded.run, "PAUSED").await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(text(&pool, seeded.run, "status").await.unwrap(), "EXECUTING");
}

#[tokio::test]
async fn the_engine_brings_runs_to_every_kind_of_end_and_stops() {
    let Database { pool, seeded, .. } = fresh_database().await;
    let settings = Settings {
        trigger_every: Duration::from_millis(2),
        step: Duration::from_millis(4),
        max_live: 20,
        ticking: Some(seeded.run.to_owned()),
        seed: Some(1),
        ..Settings::default()
    };
    let engine = Engine::start(pool.clone(), seeded.development, settings.clone());
    let wanted = ["CANCELED", "COMPLETED_SUCCESSFULLY", "COMPLETED_WITH_ERRORS", "EXPIRED"];
    let reached = async {
        loop {
            let ends: Vec<String> = sqlx::query_scalar(
                r#"SELECT DISTINCT status::text FROM "TaskRun"
                   WHERE "runtimeEnvironmentId" = $1 AND "completedAt" IS NOT NULL ORDER BY 1"#,
            )
            .bind(seed::SEEDED.development.id)
            .fetch_all(&pool)
            .await
            .unwrap();
            if ends == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("every kind of end");
    engine.stop().await;
    assert_ne!(text(&pool, seeded.run, r#""metadataVersion""#).await.unwrap(), "1");

    let under_way = r#"SELECT count(*) FROM "TaskRun" WHERE starts_with(queue, 'runwire-dev/')
                       AND "completedAt" IS NULL"#;
    let before: i64 = sqlx::query_scalar(under_way).fetch_one(&pool).await.unwrap();
    assert!(before > 0 && before <= 20 * 5);
    let quiet = Settings { trigger_every: Duration::from_secs(3600), ..settings };
    let next = Engine::start(pool.clone(), seeded.development, quiet);
    let cancelled = async {
        while sqlx::query_scalar::<_, i64>(under_way).fetch_one(&pool).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cancelled).await.expect("left-overs cancelled");
    next.stop().await;
}
