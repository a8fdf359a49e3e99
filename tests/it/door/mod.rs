//! The door under a running gateway: what is open ends with the credential that opened it, at once.
//!
//! Nothing is believed for less than 30 s here unless a test says so, so that what ends within
//! [`AT_ONCE`] has ended because the stream told of it.

mod expired;
mod lookups;
mod published;
mod revoked;

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use runwire::dev::Environment;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;

use crate::support::cluster::{Database, fresh_database};
use crate::support::gateway::{PATIENCE, Shape, eventually};
use crate::support::program::Serving;
use crate::support::runs::{insert_run, set_metadata};

/// What the stream tells has effect within this.
const AT_ONCE: Duration = Duration::from_secs(2);
const HELD: &str = r#"runwire_holds{feed="run"}"#;
const INVALID_KEY: &str = r#"{"error":"Invalid API key"}"#;
const BAD_TOKEN: &str = r#"{"error":"Public Access Token is invalid"}"#;
const UNKNOWN_TOKEN: &str = r#"{"error":"Invalid Public Access Token"}"#;
const NO_BRANCH: &str = r#"{"error":"No matching branch env"}"#;

/// A database and a gateway that holds its keys.
struct Trial {
    database: Database,
    gateway: Serving,
}

/// What somebody presents.
#[derive(Clone, Debug)]
struct Presented {
    bearer: String,
    branch: Option<&'static str>,
}

fn bearer(bearer: &str) -> Presented {
    Presented { bearer: bearer.to_owned(), branch: None }
}

/// A held poll and a connection of events with one credential.
struct Open {
    run: String,
    hold: JoinHandle<(Shape, Instant)>,
    events: JoinHandle<(String, Instant)>,
    /// What the events have said so far.
    said: tokio::sync::watch::Receiver<String>,
}

impl Trial {
    /// Whether the tables of keys have REPLICA IDENTITY FULL.
    async fn new(full: bool, arguments: &[&str]) -> Trial {
        let database = fresh_database().await;
        for table in ["RuntimeEnvironment", "Project", "RevokedApiKey", "api_keys"] {
            if full {
                run_sql(&database.pool, &format!(r#"ALTER TABLE "{table}" REPLICA IDENTITY FULL"#))
                    .await;
            }
        }
        Trial::start(database, arguments).await
    }

    async fn start(database: Database, arguments: &[&str]) -> Trial {
        let gateway = Serving::start_ready(&database.url, arguments).await;
        let trial = Trial { database, gateway };
        trial.loaded().await;
        trial
    }

    /// Waits until all keys are held.
    async fn loaded(&self) {
        let loaded = || async { self.gateway.metric("runwire_key_loads_total").await > 0.0 };
        eventually("the keys to be loaded", loaded).await;
    }

    async fn sql(&self, sql: &str) {
        run_sql(&self.database.pool, sql).await;
    }

    fn request(&self, path: &str, who: &Presented) -> RequestBuilder {
        let request = self.gateway.get(path, &who.bearer);
        match who.branch {
            Some(branch) => request.header("x-trigger-branch", branch),
            None => request,
        }
    }

    async fn ask(&self, path: &str, who: &Presented) -> Shape {
        Shape::read(self.request(path, who).send().await.unwrap()).await
    }

    /// Whether the credential is let in now, and else what it is told.
    async fn admitted(&self, who: &Presented) -> Result<(), String> {
        let answer = self.ask("/realtime/v1/runs?tags=none&offset=-1", who).await;
        match answer.status.as_u16() {
            // Whoever is told that the scopes do not do was let in.
            200 | 403 => Ok(()),
            status => Err(format!("{status} {}", answer.text)),
        }
    }

    /// Opens a poll and events on a run of this environment, and waits until both are held.
    async fn open(&self, environment: &Environment, who: &Presented) -> Open {
        let before = self.gateway.metric(HELD).await;
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let run = format!("run_door{number}");
        insert_run(&self.database.pool, environment.id, &run).await;
        let path = format!("/realtime/v1/runs/{run}?log=full&offset=-1");
        let opened = self.ask(&path, who).await;
        assert_eq!(opened.status, 200, "{}", opened.text);
        let next = format!("{}&cursor=&live=true", opened.next(&run));
        let poll = self.request(&next, who);
        let hold = tokio::spawn(async move {
            let answer = Shape::read(poll.send().await.unwrap()).await;
            (answer, Instant::now())
        });
        let events = self.request(&format!("{next}&live_sse=true"), who);
        let (say, said) = tokio::sync::watch::channel(String::new());
        let events = tokio::spawn(async move {
            let mut answer = events.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            while let Some(chunk) = answer.chunk().await.unwrap() {
                say.send_modify(|said| said.push_str(std::str::from_utf8(&chunk).unwrap()));
            }
            (say.borrow().clone(), Instant::now())
        });
        let mut open = Open { run, hold, events, said };
        let began = Instant::now();
        while self.gateway.metric(HELD).await < before + 2.0 {
            if open.hold.is_finished() {
                let (answer, _) = (&mut open.hold).await.unwrap();
                panic!("not held: {} {}", answer.status, answer.text);
            }
            assert!(!open.events.is_finished(), "not held: {:?}", (&mut open.events).await);
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for the poll and the events to be held"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        open
    }
}

impl Open {
    /// Both end at once after `since`: the poll with this refusal.
    async fn ends(self, since: Instant, text: &str) {
        self.ends_within(since, AT_ONCE, text).await;
    }

    async fn ends_within(self, since: Instant, within: Duration, text: &str) {
        let (answer, at) = tokio::time::timeout(PATIENCE, self.hold).await.unwrap().unwrap();
        assert_eq!((answer.status.as_u16(), &*answer.text), (401, text));
        assert!(at - since < within, "the poll ended after {:?}", at - since);
        let (said, at) = tokio::time::timeout(PATIENCE, self.events).await.unwrap().unwrap();
        assert!(at - since < within, "the events ended after {:?}", at - since);
        assert!(!said.contains("data:"), "{said}");
    }

    /// Both go on: a change of the run arrives.
    async fn goes_on(self, trial: &Trial) {
        set_metadata(&trial.database.pool, &self.run, 7).await;
        let (answer, _) = tokio::time::timeout(PATIENCE, self.hold).await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.text.contains(r#"{\"v\":7}"#), "{}", answer.text);
        let mut said = self.said.clone();
        let told = said.wait_for(|said| said.contains(r#"{\"v\":7}"#));
        tokio::time::timeout(PATIENCE, told).await.unwrap().expect("the events go on");
        assert!(!self.events.is_finished());
        // Who counts what is held next must not count these.
        let held = trial.gateway.metric(HELD).await;
        self.events.abort();
        let gone = || async { trial.gateway.metric(HELD).await < held };
        eventually("the events to be gone", gone).await;
    }
}

async fn run_sql(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}
