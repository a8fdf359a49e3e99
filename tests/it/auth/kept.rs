//! A door that holds all keys: while they are loaded, while the stream is late, and when it is wrong.

use super::*;

#[tokio::test]
async fn a_database_of_a_version_without_additional_keys_is_asked_for_the_others() {
    let trial = Trial::new().await;
    trial.run("DROP TABLE api_keys").await;
    let door = trial.door();
    let kept = Kept::new(&trial, "auth_older", Settings::default()).await;
    for door in [&door, &kept.door] {
        assert_eq!(outcome(door, "tr_prod_root", None).await.as_deref(), Ok("prod"));
        assert_eq!(outcome(door, "tr_prod_grace", None).await.as_deref(), Ok("prod"));
        let bearer = token("prod", "tr_prod_root");
        assert_eq!(outcome(door, &bearer, None).await.as_deref(), Ok("prod"));
        assert_eq!(outcome(door, &additional("full"), None).await, Err(INVALID));
    }
    kept.stop().await;
}

#[tokio::test]
async fn those_who_come_while_the_keys_are_loaded_wait_for_them_and_need_no_budget() {
    let trial = Trial::new().await;
    let settings = Settings {
        lookups_per_second: 1.try_into().unwrap(),
        lookup_deadline: Duration::from_secs(30),
        ..Settings::default()
    };
    let kept = Kept::told(&trial, "auth_loading", settings, |door, event| door.apply(event)).await;
    let mut lock = trial.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "RuntimeEnvironment""#).execute(&mut *lock).await.unwrap();
    kept.door.set_current(true);
    eventually("the loading to be under way", || async { trial.waiting().await > 0 }).await;
    let askers = (0..20).map(|i| {
        let (door, bearer) = (kept.door.clone(), token_with("nonce", json!(i)));
        tokio::spawn(async move { admit(&door, &bearer, None).await.map(drop) })
    });
    let keys = ["tr_prod_root", "tr_stg_root", "tr_dev_root", "short"].map(|bearer| {
        let door = kept.door.clone();
        tokio::spawn(async move { admit(&door, bearer, None).await.map(drop) })
    });
    let askers: Vec<_> = askers.chain(keys).collect();
    tokio::task::yield_now().await;
    lock.rollback().await.unwrap();
    for asker in askers {
        assert_eq!(asker.await.unwrap(), Ok(()));
    }
    kept.stop().await;
}

#[tokio::test]
async fn a_key_that_the_stream_has_not_brought_yet_is_waited_for() {
    let trial = Trial::new().await;
    let late = |door: &Door, event: &Event| {
        if matches!(event, Event::Tx(_)) {
            std::thread::sleep(Duration::from_millis(300));
        }
        door.apply(event);
    };
    let settings = Settings { lookups_per_second: 1.try_into().unwrap(), ..Settings::default() };
    let kept = Kept::told(&trial, "auth_late", settings, late).await;
    kept.door.set_current(true);
    eventually("the keys to be loaded", || async { kept.door.is_loaded() }).await;
    for round in 0..3 {
        let key = format!("tr_prod_round{round}");
        trial
            .run(&format!(
                r#"UPDATE "RuntimeEnvironment" SET "apiKey" = '{key}' WHERE id = 'prod'"#
            ))
            .await;
        // Before the stream has told of it: neither is refused, nor looked up beyond the budget.
        let public = token("prod", &key);
        let asked = tokio::join!(
            admit(&kept.door, &key, None),
            admit(&kept.door, &public, None),
            admit(&kept.door, "tr_prod_garbage", None),
            admit(&kept.door, "tr_prod_more_garbage", None),
        );
        assert!(asked.0.is_ok() && asked.1.is_ok(), "{:?} {:?}", asked.0, asked.1);
        assert_eq!(
            (asked.2.err(), asked.3.err()),
            (Some(Refusal::InvalidKey), Some(Refusal::InvalidKey))
        );
    }
    kept.stop().await;
}

#[tokio::test]
async fn what_the_stream_never_told_is_found_in_time_and_the_keys_are_loaded_anew() {
    let trial = Trial::new().await;
    let deaf = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&deaf);
    let tell = move |door: &Door, event: &Event| match event {
        Event::Tx(tx) if hears.load(Ordering::Acquire) => door.apply(&Event::Progress(tx.end_lsn)),
        event => door.apply(event),
    };
    let settings = Settings { confirmed_for: Duration::from_secs(4), ..Settings::default() };
    let kept = Kept::told(&trial, "auth_deaf", settings, tell).await;
    kept.door.set_current(true);
    eventually("the keys to be loaded", || async { kept.door.is_loaded() }).await;
    let (key, other) = (additional("full"), additional("read"));
    let caller = admit(&kept.door, &key, None).await.unwrap();
    let others = admit(&kept.door, &other, None).await.unwrap();

    deaf.store(true, Ordering::Release);
    trial.run("UPDATE api_keys SET revoked_at = now() WHERE id = 'full'").await;
    trial.run("UPDATE api_keys SET updated_at = now() WHERE id = 'read'").await;
    assert!(admit(&kept.door, &key, None).await.is_ok(), "nobody has told");
    let since = Instant::now();
    eventually("the lease to end", || async { caller.lease.over().is_some() }).await;
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert_eq!(Refusal::of(&caller.lease), Some(Refusal::InvalidKey));
    let refused = || async { admit(&kept.door, &key, None).await.is_err() };
    eventually("memory to know", || async { refused().await && kept.door.is_loaded() }).await;
    assert!(refused().await);
    assert_eq!(others.lease.over(), None);
    kept.stop().await;
}
