//! What ends, and what goes on, when a row changes that a credential rests on.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::support::token;

/// Under either replica identity: under DEFAULT a change brings nothing of the row before.
const IDENTITIES: [bool; 2] = [false, true];

#[tokio::test]
async fn an_additional_key_that_is_revoked_or_deleted_ends_at_once_what_it_opened() {
    for full in IDENTITIES {
        let trial = Trial::new(full, &[]).await;
        let (seeded, production) = (trial.database.seeded, trial.database.seeded.production);
        let (admin, restricted) = (bearer(seeded.admin_key), bearer(seeded.restricted_key));
        let root = trial.open(&production, &bearer(production.secret_key)).await;
        let (first, second) =
            (trial.open(&production, &admin).await, trial.open(&production, &restricted).await);
        // Touched every few minutes, which means nothing.
        trial.sql("UPDATE api_keys SET last_used_at = now(), updated_at = now()").await;
        let since = Instant::now();
        trial.sql("UPDATE api_keys SET revoked_at = now() AT TIME ZONE 'utc' WHERE id = 'apikey_admin'").await;
        first.ends(since, INVALID_KEY).await;
        assert_eq!(trial.admitted(&admin).await, Err(format!("401 {INVALID_KEY}")));
        let since = Instant::now();
        trial.sql("DELETE FROM api_keys WHERE id = 'apikey_restricted'").await;
        second.ends(since, INVALID_KEY).await;
        assert_eq!(trial.admitted(&restricted).await, Err(format!("401 {INVALID_KEY}")));
        root.goes_on(&trial).await;
        trial.gateway.stop().await;
    }
}

#[tokio::test]
async fn a_rotated_key_goes_on_in_its_grace_and_ends_with_it() {
    for full in IDENTITIES {
        let trial = Trial::new(full, &[]).await;
        let production = trial.database.seeded.production;
        let key = bearer(production.secret_key);
        let public = bearer(&token::public(production, &["read:all"]));
        let rival = trial.database.seeded.rival;
        let others = trial.open(&rival, &bearer(rival.secret_key)).await;
        let (by_key, by_token) =
            (trial.open(&production, &key).await, trial.open(&production, &public).await);
        // As upstream does it, in one transaction.
        let rotate = |from: &str, to: &str, row: &str, grace: &str| {
            format!(
                r#"BEGIN;
                   UPDATE "RuntimeEnvironment" SET "apiKey" = '{to}' WHERE id = 'env_prod';
                   INSERT INTO "RevokedApiKey" (id, "apiKey", "runtimeEnvironmentId", "expiresAt")
                   VALUES ('{row}', '{from}', 'env_prod', now() AT TIME ZONE 'utc' + interval '{grace}');
                   COMMIT"#
            )
        };
        trial.sql(&rotate(production.secret_key, "tr_prod_new", "rotated", "1 day")).await;
        by_key.goes_on(&trial).await;
        by_token.goes_on(&trial).await;
        assert_eq!(trial.admitted(&bearer("tr_prod_new")).await, Ok(()), "the new key");
        assert_eq!(trial.admitted(&key).await, Ok(()), "the old key in its grace");

        let (by_key, by_token) =
            (trial.open(&production, &key).await, trial.open(&production, &public).await);
        let since = Instant::now();
        trial.sql(r#"DELETE FROM "RevokedApiKey" WHERE id = 'rotated'"#).await;
        by_key.ends(since, INVALID_KEY).await;
        by_token.ends(since, BAD_TOKEN).await;
        assert_eq!(trial.admitted(&key).await, Err(format!("401 {INVALID_KEY}")));
        assert_eq!(trial.admitted(&public).await, Err(format!("401 {BAD_TOKEN}")));

        // A grace that ends while something is open which began before there was an end.
        let new = bearer("tr_prod_new");
        let by_key = trial.open(&production, &new).await;
        let since = Instant::now();
        trial.sql(&rotate("tr_prod_new", "tr_prod_newer", "short", "2 seconds")).await;
        assert_eq!(trial.admitted(&new).await, Ok(()), "in its grace");
        by_key.ends_within(since, Duration::from_secs(2) + AT_ONCE, INVALID_KEY).await;
        assert!(since.elapsed() > Duration::from_millis(1_900), "not before its end");
        assert_eq!(trial.admitted(&new).await, Err(format!("401 {INVALID_KEY}")));
        others.goes_on(&trial).await;
        trial.gateway.stop().await;
    }
}

#[tokio::test]
async fn a_key_that_is_replaced_without_grace_ends_at_once() {
    for full in IDENTITIES {
        let trial = Trial::new(full, &[]).await;
        let production = trial.database.seeded.production;
        let key = bearer(production.secret_key);
        let public = bearer(&token::public(production, &["read:all"]));
        let (by_key, by_token) =
            (trial.open(&production, &key).await, trial.open(&production, &public).await);
        // What does not matter ends nothing.
        trial.sql(r#"UPDATE "RuntimeEnvironment" SET paused = true, "updatedAt" = now()"#).await;
        trial.sql(r#"UPDATE "Project" SET name = 'Other', "updatedAt" = now()"#).await;
        let since = Instant::now();
        trial
            .sql(r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_x' WHERE id = 'env_prod'"#)
            .await;
        by_key.ends(since, INVALID_KEY).await;
        by_token.ends(since, BAD_TOKEN).await;
        let metric = "runwire_credentials_ended_total";
        assert_eq!(trial.gateway.metric(metric).await, 2.0, "nothing else has ended");
        trial.gateway.stop().await;
    }
}

#[tokio::test]
async fn a_deleted_project_ends_all_that_its_environments_opened() {
    for full in IDENTITIES {
        let trial = Trial::new(full, &[]).await;
        let seeded = trial.database.seeded;
        let branch = Presented { branch: Some("checkout"), ..bearer(seeded.preview.secret_key) };
        let rival = trial.open(&seeded.rival, &bearer(seeded.rival.secret_key)).await;
        let opened = [
            (
                trial.open(&seeded.production, &bearer(seeded.production.secret_key)).await,
                INVALID_KEY,
            ),
            (trial.open(&seeded.production, &bearer(seeded.admin_key)).await, INVALID_KEY),
            (trial.open(&seeded.branch, &branch).await, INVALID_KEY),
            (
                trial
                    .open(
                        &seeded.production,
                        &bearer(&token::public(seeded.production, &["read:all"])),
                    )
                    .await,
                UNKNOWN_TOKEN,
            ),
        ];
        let since = Instant::now();
        trial.sql(r#"UPDATE "Project" SET "deletedAt" = now() WHERE id = 'project_shop'"#).await;
        for (open, text) in opened {
            open.ends(since, text).await;
        }
        rival.goes_on(&trial).await;
        trial.gateway.stop().await;
    }
}

#[tokio::test]
async fn an_archived_branch_ends_what_was_opened_by_name_and_its_tokens_live_until_they_expire() {
    for full in IDENTITIES {
        for refuse in [false, true] {
            let arguments: &[&str] = if refuse { &["--refuse-archived-branches"] } else { &[] };
            let trial = Trial::new(full, arguments).await;
            let seeded = trial.database.seeded;
            let named = Presented { branch: Some("checkout"), ..bearer(seeded.preview.secret_key) };
            let signer = Environment { secret_key: seeded.preview.secret_key, ..seeded.branch };
            let public = bearer(&token::public(signer, &["read:all"]));
            let by_name = trial.open(&seeded.branch, &named).await;
            let by_token = trial.open(&seeded.branch, &public).await;
            let since = Instant::now();
            trial
                .sql(r#"UPDATE "RuntimeEnvironment" SET "archivedAt" = now() WHERE id = 'env_branch'"#)
                .await;
            by_name.ends(since, NO_BRANCH).await;
            assert_eq!(trial.admitted(&named).await, Err(format!("401 {NO_BRANCH}")));
            if refuse {
                by_token.ends(since, UNKNOWN_TOKEN).await;
            } else {
                by_token.goes_on(&trial).await;
                assert_eq!(trial.admitted(&public).await, Ok(()));
            }
            trial.gateway.stop().await;
        }
    }
}

#[tokio::test]
async fn what_a_token_opened_ends_with_the_token() {
    let trial = Trial::new(false, &[]).await;
    let production = trial.database.seeded.production;
    let mut claims = token::claims(production.id);
    let end = claims["iat"].as_u64().unwrap() + 4;
    claims["exp"] = json!(end);
    claims["scopes"] = json!(["read:all"]);
    let public = bearer(&token::sign(&claims, production.secret_key));
    let since = Instant::now();
    let open = trial.open(&production, &public).await;
    let (answer, at) = open.hold.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.is_bare()), (200, true), "{}", answer.text);
    assert!(at - since < Duration::from_secs(4) + AT_ONCE);
    let (_, at) = open.events.await.unwrap();
    assert!(at - since < Duration::from_secs(4) + AT_ONCE);
    assert_eq!(trial.admitted(&public).await, Err(format!("401 {BAD_TOKEN}")));
    trial.gateway.stop().await;
}
