//! A credential whose time is over while its answer is being made.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use sqlx::Executor as _;

use super::*;
use crate::support::token;

#[tokio::test]
async fn an_opening_that_takes_longer_than_its_token_lives_is_refused() {
    let trial = Trial::new(false, &[]).await;
    let production = trial.database.seeded.production;
    let mut claims = token::claims(production.id);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (claims["scopes"], claims["exp"]) = (json!(["read:runs"]), json!(now.as_secs() + 2));
    let short = bearer(&token::sign(&claims, production.secret_key));
    let lasting = bearer(&token::public(production, &["read:runs"]));
    let run = format!("/realtime/v1/runs/{}?offset=-1", trial.database.seeded.run);
    let list = "/realtime/v1/runs?tags=none&offset=-1";

    let mut lock = trial.database.pool.begin().await.unwrap();
    lock.execute(r#"LOCK TABLE "TaskRun" IN ACCESS EXCLUSIVE MODE"#).await.unwrap();
    let unlock = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        lock.rollback().await.unwrap();
    };
    let (of_run, of_list, of_other, ()) = tokio::join!(
        trial.ask(&run, &short),
        trial.ask(list, &short),
        trial.ask(&run, &lasting),
        unlock
    );
    for late in [of_run, of_list] {
        assert_eq!((late.status.as_u16(), &*late.text), (401, BAD_TOKEN));
    }
    assert_eq!(of_other.status, 200, "who has time is answered: {}", of_other.text);
    trial.gateway.stop().await;
}
