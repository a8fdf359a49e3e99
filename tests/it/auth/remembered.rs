//! A door without a stream: what it remembers of the database, and for how long.

use super::*;

#[tokio::test]
async fn what_is_remembered_needs_no_database_and_ends_on_time() {
    let trial = Trial::new().await;
    let settings = Settings { accepted_for: Duration::from_secs(60), ..Settings::default() };
    let door = Door::new(trial.pool.clone(), settings);
    trial
        .run("UPDATE api_keys SET expires_at = now() AT TIME ZONE 'utc' + interval '3 seconds' WHERE id = 'read'")
        .await;
    let (short, key) = (token_with("exp", json!(now() + 3)), additional("read"));
    let known =
        ["tr_prod_root".to_owned(), token("prod", "tr_prod_root"), short.clone(), key.clone()];
    for bearer in &known {
        admit(&door, bearer, None).await.unwrap();
    }
    trial.pool.close().await;
    for bearer in &known {
        admit(&door, bearer, None).await.unwrap();
    }
    // A token that was never seen, of an environment whose keys are known.
    admit(&door, &token_with("otu", json!(true)), None).await.unwrap();
    assert_eq!(admit(&door, "tr_stg_root", None).await.unwrap_err(), Refusal::Unavailable);

    tokio::time::sleep(Duration::from_millis(3100)).await;
    let refused = |bearer: String| {
        let door = door.clone();
        async move { admit(&door, &bearer, None).await.unwrap_err() }
    };
    assert_eq!(refused(short).await, Refusal::PublicAccessTokenIsInvalid);
    assert_eq!(refused(key).await, Refusal::InvalidKey);
    assert!(admit(&door, "tr_prod_root", None).await.is_ok());

    door.forget_all();
    assert_eq!(refused("tr_prod_root".into()).await, Refusal::Unavailable);
    assert_eq!(refused(token("prod", "tr_prod_root")).await, Refusal::Unavailable);
}

#[tokio::test]
async fn rotation_and_revocation_take_effect_when_told() {
    let trial = Trial::new().await;
    let settings = Settings {
        accepted_for: Duration::from_secs(60),
        refused_for: Duration::from_secs(60),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    let (old, new) = (token("prod", "tr_prod_root"), token("prod", "tr_prod_new"));
    let ask = async |bearer: &str| outcome(&door, bearer, None).await;
    assert_eq!(ask("tr_prod_root").await.as_deref(), Ok("prod"));
    assert_eq!(ask(&old).await.as_deref(), Ok("prod"));
    assert_eq!(ask("tr_prod_new").await, Err(INVALID));
    assert_eq!(ask(&new).await, Err(BAD_TOKEN));

    trial
        .run(
            r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_new' WHERE id = 'prod';
               INSERT INTO "RevokedApiKey" (id, "apiKey", "runtimeEnvironmentId", "expiresAt")
               VALUES ('r', 'tr_prod_root', 'prod', now() AT TIME ZONE 'utc' + interval '1 day')"#,
        )
        .await;
    assert_eq!(ask("tr_prod_new").await, Err(INVALID), "remembered");
    door.forget_all();
    for bearer in ["tr_prod_root", "tr_prod_new", &old, &new] {
        assert_eq!(ask(bearer).await.as_deref(), Ok("prod"), "{bearer}");
    }

    trial.run(r#"DELETE FROM "RevokedApiKey" WHERE id = 'r'"#).await;
    door.forget_all();
    assert_eq!(ask("tr_prod_root").await, Err(INVALID));
    assert_eq!(ask(&old).await, Err(BAD_TOKEN));
    assert_eq!(ask(&new).await.as_deref(), Ok("prod"));

    trial.run(r#"UPDATE "Project" SET "deletedAt" = now() WHERE id = 'alive'"#).await;
    door.forget_all();
    assert_eq!(ask("tr_prod_new").await, Err(INVALID));
    assert_eq!(ask(&new).await, Err(UNKNOWN_TOKEN));
}

#[tokio::test]
async fn nothing_is_believed_longer_than_its_time_when_nobody_tells() {
    let trial = Trial::new().await;
    let settings = Settings {
        accepted_for: Duration::from_millis(400),
        refused_for: Duration::from_millis(1),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    admit(&door, "tr_prod_root", None).await.unwrap();
    admit(&door, &token("prod", "tr_prod_root"), None).await.unwrap();
    trial
        .run(r#"UPDATE "RuntimeEnvironment" SET "apiKey" = 'tr_prod_new' WHERE id = 'prod'"#)
        .await;
    // A bad signature is believed of fresh facts only, so the new key's tokens need not wait.
    admit(&door, &token("prod", "tr_prod_new"), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(410)).await;
    assert_eq!(outcome(&door, "tr_prod_root", None).await, Err(INVALID));
    assert_eq!(outcome(&door, &token("prod", "tr_prod_root"), None).await, Err(BAD_TOKEN));
}

#[tokio::test]
async fn a_crowd_costs_one_query_per_key_and_one_per_environment() {
    let trial = Trial::new().await;
    let settings = Settings { lookup_deadline: Duration::from_secs(30), ..Settings::default() };
    let door = Door::new(trial.pool.clone(), settings);
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    let mut crowd = Vec::new();
    for i in 0..50 {
        for bearer in ["tr_prod_root".to_owned(), token_with("nonce", json!(i))] {
            let door = door.clone();
            crowd.push(tokio::spawn(async move { admit(&door, &bearer, None).await }));
        }
    }
    // Both queries are under way soon; a third would be one too many at any time.
    let begun = Instant::now();
    let (mut most, mut looks) = (0, 0);
    while looks < 15 && begun.elapsed() < Duration::from_secs(20) {
        most = most.max(trial.waiting().await);
        looks += i32::from(most >= 2);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(most, 2);
    lock.rollback().await.unwrap();
    for asker in crowd {
        assert_eq!(&*asker.await.unwrap().unwrap().environment_id, "prod");
    }
}

#[tokio::test]
async fn a_database_that_does_not_answer_makes_no_credential_look_bad() {
    let trial = Trial::new().await;
    let settings = Settings {
        lookups: 1,
        lookups_waiting: 2,
        lookup_deadline: Duration::from_millis(1500),
        ..Settings::default()
    };
    let door = Door::new(trial.pool.clone(), settings);
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    let begun = Instant::now();
    let askers = ["tr_prod_root", "tr_stg_root", "short", "tr_dev_root", "nobody"].map(|bearer| {
        let door = door.clone();
        tokio::spawn(
            async move { (admit(&door, bearer, None).await.unwrap_err(), begun.elapsed()) },
        )
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(trial.waiting().await, 1, "one at a time");
    let mut at_once = 0;
    for asker in askers {
        let (refusal, after) = asker.await.unwrap();
        assert_eq!(refusal, Refusal::Unavailable);
        at_once += usize::from(after < Duration::from_millis(1000));
    }
    assert_eq!(at_once, 2, "one runs, two wait, the others are told at once");
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    lock.rollback().await.unwrap();
    assert!(admit(&door, "tr_prod_root", None).await.is_ok(), "a failure is not remembered");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_and_no_debug_text_shows_a_secret() {
    let trial = Trial::new().await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let door = trial.door();
    let bearer = token("prod", "tr_prod_root");
    let mut shown = String::new();
    for bearer in ["tr_prod_root", &additional("full"), &bearer] {
        shown += &format!("{:?}", admit(&door, bearer, None).await.unwrap());
    }
    trial.run(r#"ALTER TABLE "RuntimeEnvironment" RENAME TO away"#).await;
    door.forget_all();
    for bearer in ["tr_prod_root", &additional("full"), &bearer] {
        shown += &format!("{:?}", admit(&door, bearer, None).await.unwrap_err());
    }
    shown += &format!("{door:?}");
    let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(lines.contains("could not be looked up"), "the failure is logged: {lines}");
    for secret in ["tr_prod_root", "tr_prod_grace", &additional("full"), "eyJ"] {
        assert!(!shown.contains(secret) && !lines.contains(secret), "{secret} in {shown} {lines}");
    }
}
