//! A gateway with a stream store of its own, and what tests do with it.

use std::time::{Duration, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use runwire::dev::{RunSpec, trigger_run};
use runwire::streams::Secret;
use runwire::streams::access::{Authority, Grant, Issuer, Operation};
use serde_json::{Value, json};

use super::cluster::{Database, fresh_database};
use super::gateway::Gateway;
use super::npm::{Client, Target};
use super::scratch::Scratch;

/// Long enough for a Node program on a machine that does much else.
pub const SOON: Duration = Duration::from_secs(60);

/// What signs tokens here.
pub const SECRET: &str = "a secret of the tests, long enough";

/// A database, a data directory, and a gateway on both.
pub struct Stand {
    pub database: Database,
    pub gateway: Gateway,
    /// Where the gateway keeps what it must not lose. Removed at the end.
    pub _data: Scratch,
}

impl Stand {
    /// With these further arguments.
    pub async fn start(arguments: &[&str]) -> Stand {
        let (database, data) = (fresh_database().await, scratch());
        let fixed =
            [&*format!("--data-dir={}", data.0.display()), "--secret", SECRET].map(str::to_owned);
        let all: Vec<&str> =
            fixed.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let gateway = Gateway::start(&database.url, &all).await;
        Stand { database, gateway, _data: data }
    }

    /// A run of production's, with v2 streams.
    pub async fn run(&self) -> String {
        run(&self.database).await
    }

    /// Production's key.
    pub fn key(&self) -> &'static str {
        self.database.seeded.production.secret_key
    }

    /// An SDK at work in this run.
    pub async fn task(&self, sdk: &str, run: &str) -> Client {
        task(sdk, &self.gateway.target(self.key()), run).await
    }

    /// Creates a stream, and gives the answer's headers.
    pub async fn create(&self, run: &str, key: &str) -> reqwest::header::HeaderMap {
        let path = format!("/realtime/v1/streams/{run}/self/{key}");
        let answer = self.gateway.request("PUT", &path).bearer_auth(self.key()).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 202);
        answer.headers().clone()
    }

    /// Appends one chunk.
    pub async fn append(&self, run: &str, key: &str, chunk: &str) {
        let path = format!("/realtime/v1/streams/{run}/self/{key}/append");
        let request = self.gateway.request("POST", &path).bearer_auth(self.key());
        let answer = request.header("x-part-id", "p").body(chunk.to_owned()).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("a body"));
    }

    /// Reads a stream to its end, which comes when nothing has come for so many seconds.
    pub async fn read(&self, run: &str, key: &str, after: Option<&str>, wait: u64) -> String {
        let path = format!("/realtime/v1/streams/{run}/{key}");
        let mut request = self.gateway.request("GET", &path).bearer_auth(self.key());
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let answer = request.header("timeout-seconds", wait).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.text().await.expect("a whole body")
    }

    /// The keys of a run's streams, as its row has them.
    pub async fn keys(&self, run: &str) -> Vec<String> {
        let sql = r#"SELECT "realtimeStreams" FROM "TaskRun" WHERE "friendlyId" = $1"#;
        let keys = sqlx::query_scalar(sql).bind(run).fetch_one(&self.database.pool).await;
        keys.expect("a run")
    }
}

/// What the gateway signs tokens with.
pub fn issuer() -> Issuer {
    Issuer::new(Secret::of(SECRET), Vec::new(), Duration::from_secs(60))
}

/// What opens these streams for a minute, on the word of production's key.
pub fn grant(prefix: &str, operations: &[Operation]) -> Grant {
    Grant {
        authority: Authority::Key(basis(runwire::dev::seed::SEEDED.production.secret_key)),
        environment: "env_prod".to_owned(),
        basin: "trigger-realtime".to_owned(),
        prefix: prefix.to_owned(),
        auto_prefix: None,
        operations: operations.to_vec(),
        expires_at: SystemTime::now() + Duration::from_secs(60),
    }
}

/// What a root key's tokens rest on.
pub fn basis(key: &str) -> String {
    let digest = runwire::replication::keys::digest(key);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("root:{digest}")
}

/// Where a stream's records are, below `/s2/v1`.
pub fn records_of(stream: &str) -> String {
    format!("/streams/{}/records", utf8_percent_encode(stream, NON_ALPHANUMERIC))
}

/// A directory of the calling test's own.
pub fn scratch() -> Scratch {
    Scratch::new(&format!("streams-{:016x}", rand::random::<u64>()))
}

/// A run of production's, with v2 streams.
pub async fn run(database: &Database) -> String {
    let spec = RunSpec::new("hello");
    let run = trigger_run(&database.pool, &database.seeded.production, spec).await;
    run.expect("trigger a run").friendly_id
}

/// An SDK at work in this run.
pub async fn task(sdk: &str, target: &Target, run: &str) -> Client {
    let env =
        [("BASE_URL", &*target.base_url), ("ACCESS_TOKEN", &target.access_token), ("RUN_ID", run)];
    Client::start("streams.mjs", &[sdk], &env).await
}

/// Gives it an order, and waits until that is done.
pub async fn order(client: &mut Client, order: Value) {
    client.tell(&order).await;
    client.next_of("done", SOON).await;
}

/// The records of all batches of a stream's events, as `(number, body)`.
pub fn records(events: &str) -> Vec<(u64, String)> {
    let data = events.lines().filter_map(|line| line.strip_prefix("data: {\"records\""));
    data.flat_map(|rest| {
        let batch: Value = serde_json::from_str(&format!("{{\"records\"{rest}")).expect("JSON");
        batch["records"].as_array().expect("records").clone()
    })
    .map(|record| {
        let number = record["seq_num"].as_u64().expect("a number");
        (number, record["body"].as_str().unwrap_or_default().to_owned())
    })
    .collect()
}

/// The values from 0 on that a client reads, this many.
pub async fn expect_numbers(client: &mut Client, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert_eq!(client.next_of("chunk", SOON).await["chunk"], json!({ "n": n }));
    }
}
