//! Events on the wire, and when their connection ends.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::Response;
use runwire::dev::run::set_metadata;
use serde_json::{Value, json};

use super::{follow, metadata, of_run, of_tag, open, trigger};
use crate::support::cluster::fresh_database;
use crate::support::gateway::{Gateway, PATIENCE, Shape, eventually};
use crate::support::runs::{insert_run, update};
use crate::support::token;

/// An answer of events, read event by event.
struct Events {
    answer: Response,
    read: String,
}

impl Events {
    async fn of(request: reqwest::RequestBuilder) -> Events {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Events { answer, read: String::new() }
    }

    /// What stands before the next empty line; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let event = event.to_owned();
                self.read = rest.to_owned();
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await;
            let Some(chunk) = chunk.expect("it says something").expect("a whole body") else {
                assert_eq!(self.read, "", "it ends with an event");
                return None;
            };
            self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next message.
    async fn message(&mut self) -> Option<Value> {
        loop {
            let event = self.next().await?;
            if let Some(data) = event.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
            assert_eq!(event, ": keep-alive");
        }
    }

    fn header(&self, name: &str) -> &str {
        self.answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Where a client of events goes on that was told this.
fn place(up_to_date: &Value) -> String {
    assert_eq!(up_to_date["headers"]["control"], "up-to-date");
    format!("{}_0", up_to_date["headers"]["global_last_seen_lsn"].as_str().unwrap())
}

#[tokio::test]
async fn each_message_is_an_event_and_the_last_says_where_to_go_on() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    let first = trigger(pool, &environment, None).await;
    let second = trigger(pool, &environment, None).await;
    for option in ["live_sse=true", "experimental_live_sse=true"] {
        let from = open(&gateway, &of_tag(), key).await;
        let request = follow(&gateway, &of_tag(), key, &from, &format!("live=true&{option}"));
        let mut events = Events::of(request.header("accept-encoding", "gzip")).await;
        assert_eq!(events.header("content-type"), "text/event-stream");
        assert_eq!(events.header("content-encoding"), "");
        assert_eq!(events.header("cache-control"), "no-store");
        assert_eq!(events.header("access-control-expose-headers"), "*");
        let place_now = (events.header("electric-handle"), events.header("electric-offset"));
        assert_eq!(place_now, (from.handle(), from.offset()), "where the client stands");
        assert!(!events.header("electric-cursor").is_empty());
        assert_eq!(events.next().await.unwrap(), ": keep-alive", "it begins at once");

        let mut both = pool.begin().await.unwrap();
        for run in [&first, &second] {
            let metadata = json!({ "of": option, "line": "1\n2\r\u{2028}" }).to_string();
            set_metadata(&mut *both, run, &metadata).await.unwrap();
        }
        both.commit().await.unwrap();
        let mut runs = Vec::new();
        let up_to_date = loop {
            let message = events.message().await.unwrap();
            if message.get("key").is_none() {
                break message;
            }
            assert!(message["value"]["metadata"].as_str().unwrap().contains(option));
            runs.push(message["key"].clone());
        };
        assert_eq!(runs.len(), 2, "of one commit, and before one up-to-date");
        drop(events);

        // What was told is not told again to who goes on from there, by events or by polls.
        let offset = place(&up_to_date);
        let path = format!("{}&handle={}&offset={offset}", of_tag(), from.handle());
        let again = Shape::read(gateway.get(&path, key).send().await.unwrap()).await;
        assert!(again.is_bare(), "{}", again.text);
    }
    // Whoever does not ask is answered as ever.
    let from = open(&gateway, &of_tag(), key).await;
    set_metadata(pool, &first, r#"{"v":1}"#).await.unwrap();
    for query in ["live=true", "live=true&live_sse=1", "live=true&live_sse=false", "live_sse=true"]
    {
        let poll = async || {
            let polled = follow(&gateway, &of_tag(), key, &from, query).send().await.unwrap();
            Shape::read(polled).await
        };
        eventually("the change", || async { metadata(&poll().await).is_some() }).await;
        let answer = poll().await;
        assert_eq!(answer.header("content-type"), "application/json", "{query}");
        assert_eq!(metadata(&answer).as_deref(), Some(r#"{"v":1}"#), "{query}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_quiet_connection_shows_that_it_lives_and_ends_where_the_next_goes_on() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let gateway = Gateway::start(&database.url, &["--sse-life=4s"]).await;
    let feed = of_run(database.seeded.run);
    let from = open(&gateway, &feed, key).await;
    let start = Instant::now();
    let request = follow(&gateway, &feed, key, &from, "live=true&live_sse=true");
    let mut events = Events::of(request).await;
    let mut comments = 0;
    let end = loop {
        match events.next().await.expect("an up-to-date before the end") {
            event if event == ": keep-alive" => comments += 1,
            event => break event,
        }
    };
    assert!(start.elapsed() >= Duration::from_millis(3_400), "{:?}", start.elapsed());
    assert!(comments >= 3, "{comments}");
    let end: Value = serde_json::from_str(end.strip_prefix("data: ").unwrap()).unwrap();
    assert!(place(&end).ends_with("_0"));
    assert_eq!(events.next().await, None);
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_ends_with_its_token_and_the_next_is_refused() {
    let database = fresh_database().await;
    let environment = database.seeded.production;
    let gateway = Gateway::start(&database.url, &[]).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expiry = now() + 5;
    let mut claims = token::claims(environment.id);
    (claims["scopes"], claims["exp"]) = (json!(["read:runs"]), json!(expiry));
    let token = token::sign(&claims, environment.secret_key);
    let feed = of_run(database.seeded.run);
    let from = open(&gateway, &feed, &token).await;
    let request = || follow(&gateway, &feed, &token, &from, "live=true&live_sse=true");
    let mut events = Events::of(request()).await;
    while events.next().await.is_some() {}
    assert!((expiry..expiry + 15).contains(&now()), "{} s after it", now() - expiry);
    assert_eq!(request().send().await.unwrap().status(), 401);
    gateway.stop().await;
}

#[tokio::test]
async fn who_stands_where_the_window_does_not_reach_is_told_by_a_409() {
    let database = fresh_database().await;
    let (environment, pool) = (database.seeded.production, &database.pool);
    let key = environment.secret_key;
    insert_run(pool, environment.id, "run_1").await;
    let gateway = Gateway::start(&database.url, &["--window=1s"]).await;
    let feed = of_run("run_1");
    let from = open(&gateway, &feed, key).await;
    let events = || follow(&gateway, &feed, key, &from, "live=true&live_sse=true");
    eventually("the window to forget", || async {
        update(pool, "run_1", "number = number + 1").await;
        gateway.catch_up("run_1", key, &from).await.status == 409
    })
    .await;
    let refused = Shape::read(events().send().await.unwrap()).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert_eq!(refused.header("content-type"), "application/json");
    assert_eq!(refused.messages()[0]["headers"]["control"], "must-refetch");
    // So is one whose handle is none of this feed's.
    let strange = format!("{feed}?handle=x&offset=1_0&live=true&live_sse=true");
    assert_eq!(gateway.get(&strange, key).send().await.unwrap().status(), 409);
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_ends_connections_with_where_they_stand() {
    let database = fresh_database().await;
    let key = database.seeded.production.secret_key;
    let gateway = Gateway::start(&database.url, &[]).await;
    let feed = of_run(database.seeded.run);
    let from = open(&gateway, &feed, key).await;
    let request = follow(&gateway, &feed, key, &from, "live=true&live_sse=true");
    let mut events = Events::of(request).await;
    events.next().await.unwrap();
    let start = Instant::now();
    gateway.stop().await;
    assert!(start.elapsed() < Duration::from_secs(4), "nothing had to be cut");
    let end = events.message().await.expect("where it stands");
    assert!(place(&end).ends_with("_0"));
    assert_eq!(events.next().await, None);
}
