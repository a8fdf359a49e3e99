//! Ticks: between two of them only the latest state, and what none may hold back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runwire::dev::Environment;
use runwire::dev::run::{built_in_error, complete, fail, set_metadata};
use serde_json::json;
use sqlx::PgPool;

use super::{OUTPUT, SOON, follow, held, metadata, of_run, of_tag, open, trigger};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, Shape};
use crate::support::npm::Client;
use crate::support::token;

fn v(n: u32) -> String {
    json!({ "v": n }).to_string()
}

/// Waits until the next tick of ten seconds is far enough away for what a test does before it.
async fn begin_a_tick() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let left = 10_000 - (now.as_millis() % 10_000) as u64;
    if left < 6_000 {
        tokio::time::sleep(Duration::from_millis(left + 50)).await;
    }
}

/// Commits two changes. A poll that is throttled is told of the first at once, and of the second not
/// before another that is not; then of everything as soon as `end` commits. Gives its last answer.
async fn holds_the_second_back(
    gateway: &Gateway,
    pool: &PgPool,
    [feed, run]: [&str; 2],
    token: &str,
    more: &str,
    end: impl AsyncFnOnce(),
) -> Shape {
    let key = "tr_prod_runwireProduction0000";
    let from = open(gateway, feed, token).await;
    begin_a_tick().await;
    let first = held(follow(gateway, feed, token, &from, &format!("live=true{more}")));
    set_metadata(pool, run, &v(1)).await.unwrap();
    let first = first.await.unwrap();
    assert_eq!(metadata(&first), Some(v(1)));
    let second = held(follow(gateway, feed, token, &first, &format!("live=true{more}")));
    let from = open(gateway, feed, key).await;
    let other = held(follow(gateway, feed, key, &from, "live=true&throttleMs=0"));
    set_metadata(pool, run, &v(2)).await.unwrap();
    assert_eq!(metadata(&other.await.unwrap()), Some(v(2)));
    assert!(!second.is_finished(), "it waits for the tick");
    end().await;
    second.await.unwrap()
}

#[tokio::test]
async fn a_change_waits_for_the_tick_and_a_completion_or_error_for_none() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &["--hold=60s"]).await;
    let key = environment.secret_key;
    for (list, fails) in [(false, false), (true, true)] {
        let run = trigger(pool, &environment, None).await;
        let feed = if list { of_tag() } else { of_run(&run) };
        let end = async || {
            let error = built_in_error("TypeError", "no");
            if fails {
                fail(pool, &run, &error).await.unwrap();
            } else {
                complete(pool, &run, OUTPUT).await.unwrap();
            }
        };
        let more = "&throttleMs=10000";
        let last = holds_the_second_back(&gateway, pool, [&feed, &run], key, more, end).await;
        let rows = last.rows();
        let (_, row) = rows.iter().find(|(_, row)| row["completedAt"].is_string()).unwrap();
        assert_eq!(row["metadata"], v(2), "with what was held back");
        assert_eq!(row["error"].is_string(), fails);
    }
    gateway.stop().await;
}

/// The settings in the order of their weight: token, query, environment, default.
#[tokio::test]
async fn the_token_wins_over_the_query_and_the_query_over_the_settings() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let signed = |throttle: u32| {
        let mut claims = token::claims(environment.id);
        claims["scopes"] = json!(["read:runs"]);
        claims["realtime"] = json!({ "throttleMs": throttle });
        token::sign(&claims, environment.secret_key)
    };
    let key = environment.secret_key.to_owned();
    let of_production = format!("--throttle-environments={}=10s,env_other=1s", environment.id);
    let cases: [(&[&str], String, &str); 5] = [
        (&[], signed(10_000), "&throttleMs=0"),
        (&[], key.clone(), "&throttleMs=3600000"),
        (&["--throttle=10s"], key.clone(), ""),
        (&["--throttle=10s"], key.clone(), "&throttleMs=soon"),
        (&[&of_production], key.clone(), ""),
    ];
    for (arguments, token, more) in cases {
        let gateway = Gateway::start(&database.url, &[arguments, &["--hold=60s"]].concat()).await;
        let run = trigger(pool, &environment, None).await;
        let end = async || complete(pool, &run, OUTPUT).await.unwrap();
        let feed = of_run(&run);
        holds_the_second_back(&gateway, pool, [&feed, &run], &token, more, end).await;
        gateway.stop().await;
    }
    // The other way round: nobody is held back who need not be.
    let of_production = format!("--throttle-environments={}=0s", environment.id);
    let cases: [(&[&str], String, &str); 4] = [
        (&["--throttle=10s"], signed(0), "&throttleMs=10000"),
        (&["--throttle=10s"], key.clone(), "&throttleMs=0"),
        (&["--throttle=10s", &of_production], key.clone(), ""),
        (&[], key, ""),
    ];
    for (arguments, token, more) in cases {
        let gateway = Gateway::start(&database.url, &[arguments, &["--hold=60s"]].concat()).await;
        begin_a_tick().await;
        follows_each_change(&gateway, pool, &environment, &token, more).await;
        gateway.stop().await;
    }
}

async fn follows_each_change(
    gateway: &Gateway,
    pool: &PgPool,
    environment: &Environment,
    token: &str,
    more: &str,
) {
    let run = trigger(pool, environment, None).await;
    let feed = of_run(&run);
    let mut from = open(gateway, &feed, token).await;
    let start = std::time::Instant::now();
    for n in 1..=3 {
        let poll = held(follow(gateway, &feed, token, &from, &format!("live=true{more}")));
        set_metadata(pool, &run, &v(n)).await.unwrap();
        from = poll.await.unwrap();
        assert_eq!(metadata(&from), Some(v(n)), "{more}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{more}: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_busy_run_is_told_of_once_a_tick_and_at_last_as_it_is() {
    const WRITES: u32 = 200;
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &["--throttle=500ms"]).await;
    let run = trigger(pool, &environment, None).await;
    let target = gateway.target(environment.secret_key);
    let mut client = Client::subscribe_run("sdk-4.8.3", &target, &run).await;
    client.next_run(SOON).await;
    let start = std::time::Instant::now();
    // A busy machine makes pauses of its own, after which nothing is held back.
    let (mut quiet, mut last) = (0, start);
    for n in 1..=WRITES {
        set_metadata(pool, &run, &v(n)).await.unwrap();
        quiet += usize::from(last.elapsed() >= Duration::from_millis(450));
        last = std::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    complete(pool, &run, OUTPUT).await.unwrap();
    let ticks = start.elapsed().as_millis() as usize / 500 + quiet;
    let said = client.rest(SOON).await;
    let runs: Vec<_> = said.iter().filter(|said| said["type"] == "run").collect();
    let shown: Vec<u64> = runs.iter().map(|run| run["metadata"]["v"].as_u64().unwrap()).collect();
    assert!(shown.is_sorted(), "{shown:?}");
    // The first, the last, and at each tick between one, or another of what committed just before it.
    assert!(shown.len() <= 2 * ticks + 3, "{} in {ticks} ticks: {shown:?}", shown.len());
    assert!(shown.len() >= 3, "it is told of between first and last: {shown:?}");
    let last = runs.last().unwrap();
    assert_eq!((&last["status"], &last["metadata"]["v"]), (&json!("COMPLETED"), &json!(WRITES)));
    gateway.stop().await;
}

#[tokio::test]
async fn a_hold_shorter_than_the_tick_does_not_cut_it() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let gateway = Gateway::start(&database.url, &["--hold=300ms", "--throttle=10s"]).await;
    let key = environment.secret_key;
    let run = trigger(pool, &environment, None).await;
    let feed = of_run(&run);
    let mut from = open(&gateway, &feed, key).await;
    begin_a_tick().await;
    set_metadata(pool, &run, &v(1)).await.unwrap();
    let next = async |from: &Shape| {
        let answer = follow(&gateway, &feed, key, from, "live=true").send().await.unwrap();
        Shape::read(answer).await
    };
    while metadata(&from) != Some(v(1)) {
        from = next(&from).await;
    }
    set_metadata(pool, &run, &v(2)).await.unwrap();
    for _ in 0..3 {
        from = next(&from).await;
        assert!(from.is_bare(), "{}", from.text);
    }
    // It comes with the tick, however many polls lie before it.
    while from.is_bare() {
        from = next(&from).await;
    }
    assert_eq!(metadata(&from), Some(v(2)));
    gateway.stop().await;
}
