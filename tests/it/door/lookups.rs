//! What is asked of the database, and what is not.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::support::token;

/// Nobody reads these tables while this lives.
async fn locked(pool: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut lock = pool.begin().await.unwrap();
    let tables = r#"LOCK TABLE "RuntimeEnvironment", "Project", "RevokedApiKey", api_keys"#;
    sqlx::raw_sql(tables).execute(&mut *lock).await.unwrap();
    lock
}

#[tokio::test]
async fn credentials_that_were_never_seen_are_let_in_without_a_query() {
    let trial = Trial::new(false, &[]).await;
    let seeded = trial.database.seeded;
    let lock = locked(&trial.database.pool).await;
    for who in [
        bearer(seeded.production.secret_key),
        bearer(seeded.rotated_key),
        bearer(seeded.admin_key),
        bearer(&token::public(seeded.production, &["read:all"])),
        Presented { branch: Some("checkout"), ..bearer(seeded.preview.secret_key) },
    ] {
        assert_eq!(trial.admitted(&who).await, Ok(()), "{:?}", who.branch);
    }
    for (who, text) in [
        (bearer(seeded.closed.secret_key), INVALID_KEY),
        (bearer(seeded.revoked_key), INVALID_KEY),
        (bearer(seeded.expired_key), INVALID_KEY),
        (bearer(seeded.expired_rotated_key), INVALID_KEY),
        (bearer(&token::sign(&token::claims(seeded.production.id), "other")), BAD_TOKEN),
        (bearer(&token::sign(&token::claims("env_none"), "other")), UNKNOWN_TOKEN),
        (Presented { branch: Some("none"), ..bearer(seeded.preview.secret_key) }, NO_BRANCH),
    ] {
        assert_eq!(trial.admitted(&who).await, Err(format!("401 {text}")), "{:?}", who.branch);
    }
    lock.rollback().await.unwrap();
    let queries = r#"runwire_credentials_judged_total{from="query"}"#;
    assert_eq!(trial.gateway.metric(queries).await, 0.0);
    trial.gateway.stop().await;
}

#[tokio::test]
async fn a_key_made_a_moment_ago_works_during_a_flood_of_garbage_that_costs_nothing() {
    let trial = Trial::new(false, &[]).await;
    let (pool, production) = (&trial.database.pool, trial.database.seeded.production);
    let open = trial.open(&production, &bearer(production.secret_key)).await;
    let transactions = || async {
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap()
    };
    let before = transactions().await;
    let (began, mut asked) = (Instant::now(), 0);
    let mut made = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let garbage = (asked..asked + 100).map(|n| {
            bearer(&match n % 3 {
                0 => format!("tr_prod_garbage{n}"),
                1 => token::sign(&token::claims(&format!("env_{n}")), "x"),
                _ => token::sign(&token::claims(production.id), &format!("x{n}")),
            })
        });
        let garbage: Vec<_> = garbage.collect();
        asked += 100;
        made += 1;
        let key = format!("tr_prod_made{made}");
        let make = async {
            let sql = format!(
                r#"INSERT INTO "RuntimeEnvironment" (id, type, slug, shortcode, "apiKey", "pkApiKey", "organizationId", "projectId", "updatedAt")
                   VALUES ('made{made}', 'PRODUCTION', 'made{made}', 'made{made}', '{key}', 'pk{made}', 'org_acme', 'project_shop', now())"#
            );
            run_sql(pool, &sql).await;
            trial.admitted(&bearer(&key)).await
        };
        let flood = join_all(garbage.iter().map(|who| trial.admitted(who)));
        let (flood, new) = tokio::join!(flood, make);
        assert_eq!(new, Ok(()), "a key that was made a moment ago");
        assert!(
            flood.iter().all(|told| matches!(told, Err(text) if text.starts_with("401"))),
            "{flood:?}"
        );
    }
    // Ours alone are one for each key that was made; the gateway asks once a second how the server is,
    // and at most fifty times where the log ends.
    let seconds = began.elapsed().as_secs() as i64 + 2;
    let spent = transactions().await - before - made;
    assert!(
        spent < 60 * seconds && spent < i64::from(asked) / 2,
        "{spent} for {asked} in {seconds} s"
    );
    let queries = r#"runwire_credentials_judged_total{from="query"}"#;
    assert_eq!(trial.gateway.metric(queries).await, 0.0);
    open.goes_on(&trial).await;
    trial.gateway.stop().await;
}

#[tokio::test]
async fn over_the_budget_of_lookups_nobody_is_told_that_a_credential_is_bad() {
    let database = fresh_database().await;
    run_sql(&database.pool, r#"CREATE PUBLICATION runwire FOR TABLE "TaskRun""#).await;
    let gateway = Serving::start_ready(&database.url, &["--key-lookups=2"]).await;
    let trial = Trial { database, gateway };
    let known = bearer(trial.database.seeded.production.secret_key);
    assert_eq!(trial.admitted(&known).await, Ok(()));
    let asked: Vec<_> = (0..20).map(|n| bearer(&format!("tr_prod_{n}"))).collect();
    let path = "/realtime/v1/runs?tags=none&offset=-1";
    let answers = join_all(asked.iter().map(|who| trial.ask(path, who))).await;
    let (refused, over): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 401);
    assert!(refused.len() <= 6 && over.len() >= 14, "{} were looked up", refused.len());
    for answer in over {
        assert_eq!(answer.status, 503, "{}", answer.text);
        let seconds: u32 = answer.header("retry-after").parse().unwrap();
        assert!((1..=5).contains(&seconds));
    }
    // Who was good before is looked up again beyond the budget.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        let garbage = bearer(&format!("tr_prod_{:?}", began.elapsed()));
        let _ = trial.admitted(&garbage).await;
        assert_eq!(trial.admitted(&known).await, Ok(()));
    }
    let budget = r#"runwire_credential_lookups_refused_total{why="budget"}"#;
    assert!(trial.gateway.metric(budget).await >= 14.0);
    trial.gateway.stop().await;
}

/// Rotated keys are read through a gate that a test holds: after the query's snapshot was taken.
const GATE: &str = r#"
ALTER TABLE "RevokedApiKey" RENAME TO revoked_rows;
CREATE VIEW "RevokedApiKey" AS
  WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(42)::text AS passed)
  SELECT r.* FROM revoked_rows r WHERE (SELECT count(passed) FROM gate) > 0;"#;

#[tokio::test]
async fn a_rotation_that_commits_while_a_lookup_is_under_way_leaves_no_stale_verdict() {
    let database = fresh_database().await;
    // Too many to be held, so each credential is looked up, while the stream tells of changes.
    let gateway = Serving::start_ready(&database.url, &["--key-bytes=1B"]).await;
    let trial = Trial { database, gateway };
    trial.gateway.until_said("each credential is looked up").await;
    let (production, rival) = (trial.database.seeded.production, trial.database.seeded.rival);
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(trial.open(&rival, &bearer(rival.secret_key)).await);
    }
    trial.sql(GATE).await;
    let old = [bearer(production.secret_key), bearer(&token::public(production, &["read:all"]))];
    for (round, old) in old.iter().enumerate() {
        let others = &mut others;
        let mut gate = trial.database.pool.begin().await.unwrap();
        sqlx::raw_sql("SELECT pg_advisory_xact_lock(42)").execute(&mut *gate).await.unwrap();
        let asked = trial.admitted(old);
        let rotate = async {
            let waits = || async {
                let sql =
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
                sqlx::query_scalar::<_, i64>(sql).fetch_one(&trial.database.pool).await.unwrap() > 0
            };
            eventually("the look-up to be under way", waits).await;
            let sql = format!(
                r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_other{round}' WHERE id = 'env_prod'"#
            );
            trial.sql(&sql).await;
            // The stream has told of it: a change that committed later has arrived.
            others.remove(0).goes_on(&trial).await;
            gate.commit().await.unwrap();
        };
        let (asked, ()) = tokio::join!(asked, rotate);
        let text = if round == 0 { INVALID_KEY } else { BAD_TOKEN };
        assert_eq!(asked, Err(format!("401 {text}")), "what it had read was void");
        assert_eq!(trial.admitted(old).await, Err(format!("401 {text}")));
        let back = format!(
            r#"UPDATE "RuntimeEnvironment" SET "apiKey" = '{}' WHERE id = 'env_prod'"#,
            production.secret_key
        );
        trial.sql(&back).await;
        eventually("the old key to be back", || async {
            trial.admitted(&old.clone()).await.is_ok()
        })
        .await;
    }
    trial.gateway.stop().await;
}

#[tokio::test]
async fn what_is_looked_up_ends_at_once_too_when_the_stream_tells() {
    let database = fresh_database().await;
    let gateway = Serving::start_ready(&database.url, &["--key-bytes=1B"]).await;
    let trial = Trial { database, gateway };
    trial.gateway.until_said("each credential is looked up").await;
    let production = trial.database.seeded.production;
    let root = trial.open(&production, &bearer(production.secret_key)).await;
    let admin = trial.open(&production, &bearer(trial.database.seeded.admin_key)).await;
    let public = trial.open(&production, &bearer(&token::public(production, &["read:all"]))).await;
    let since = Instant::now();
    trial.sql("DELETE FROM api_keys WHERE id = 'apikey_admin'").await;
    admin.ends(since, INVALID_KEY).await;
    root.goes_on(&trial).await;
    let root = trial.open(&production, &bearer(production.secret_key)).await;
    let since = Instant::now();
    trial
        .sql(r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_x' WHERE id = 'env_prod'"#)
        .await;
    root.ends(since, INVALID_KEY).await;
    public.ends(since, BAD_TOKEN).await;
    trial.gateway.stop().await;
}

#[tokio::test]
async fn who_leaves_while_waiting_for_the_stream_is_not_counted_any_more() {
    let trial = Trial::new(false, &[]).await;
    let to = trial.gateway.url.trim_start_matches("http://").to_owned();
    for n in 0..100 {
        let mut stream = TcpStream::connect(&to).await.unwrap();
        let ask = format!(
            "GET /realtime/v1/runs?offset=-1 HTTP/1.1\r\nhost: x\r\nauthorization: tr_prod_{n}\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        // Long enough to be read, and less than an answer takes.
        tokio::time::sleep(Duration::from_millis(n % 4)).await;
    }
    let nobody =
        || async { trial.gateway.metric("runwire_credential_lookups_waiting").await == 0.0 };
    eventually("nobody to wait", nobody).await;
    trial.gateway.stop().await;
}
