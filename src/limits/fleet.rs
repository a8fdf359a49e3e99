//! The limits of environments across gateways, by way of Redis.
//!
//! Once a second each gateway says what it has live, under a key that ends by itself, and adds up what
//! the others said. No request waits for that: it is compared with sums that are a second or two old.
//! So an environment at its limit may have at once, beyond it, what the other gateways let in within
//! that time, and a hundredth of the limit for each of them ([`Live::of_note`]). Without Redis
//! each gateway counts for itself: limits are looser, and nothing else changes.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::time::{Instant, MissedTickBehavior};

use super::Live;
use crate::telemetry;

/// How often is said and asked.
const BEAT: Duration = Duration::from_secs(1);
/// For how long what a gateway said counts, for others and for itself.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// For how long Redis may take to answer, or to be connected to.
const PATIENCE: Duration = Duration::from_millis(800);
/// The names of the gateways that are there, or were lately.
const GATEWAYS: &str = "runwire:gateways";

/// This gateway's part in the fleet.
#[derive(Debug)]
pub struct Fleet {
    client: Client,
    name: String,
    live: Live,
}

impl Fleet {
    /// One more gateway, of a name of its own. It connects when it runs.
    pub fn new(client: Client, live: Live) -> Fleet {
        let name = format!("{:016x}", rand::random::<u64>());
        Fleet { client, name, live }
    }

    /// Takes part for ever. An outage is logged once.
    pub async fn run(&self) {
        let connected = metrics::gauge!(telemetry::FLEET_CONNECTED);
        let gateways = metrics::gauge!(telemetry::FLEET_GATEWAYS);
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        let mut heard = Instant::now();
        let mut out = false;
        loop {
            beats.tick().await;
            match self.beat(&mut connection).await {
                Ok(others) => {
                    if std::mem::take(&mut out) {
                        tracing::info!("redis is back: limits hold across gateways again");
                    }
                    heard = Instant::now();
                    connected.set(1.0);
                    gateways.set(others as f64 + 1.0);
                }
                Err(error) => {
                    connection = None;
                    connected.set(0.0);
                    if !std::mem::replace(&mut out, true) {
                        // The kind alone: what the server says may quote what it was asked.
                        let kind = error.category();
                        tracing::warn!(kind, "no redis: each gateway counts for itself");
                    }
                    if heard.elapsed() >= GOOD_FOR {
                        self.live.set_elsewhere(&HashMap::new());
                        gateways.set(1.0);
                    }
                }
            }
        }
    }

    /// Takes back what was said, so that others need not wait until it ends.
    pub async fn leave(&self) {
        let leave = async {
            let mut connection = self.connect().await?;
            let mut pipe = redis::pipe();
            pipe.srem(GATEWAYS, &self.name).ignore().del(key(&self.name)).ignore();
            pipe.query_async::<()>(&mut connection).await
        };
        let _: Result<(), RedisError> = leave.await;
    }

    /// Says what is live here, and learns what is live elsewhere. Returns how many others there are.
    async fn beat(
        &self,
        connection: &mut Option<MultiplexedConnection>,
    ) -> Result<usize, RedisError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.connect().await?),
        };
        let said = said(&self.live);
        let (names,): (Vec<String>,) = redis::pipe()
            .pset_ex(key(&self.name), said, GOOD_FOR.as_millis() as u64)
            .ignore()
            .sadd(GATEWAYS, &self.name)
            .ignore()
            // So that nothing is left when the last gateway has gone.
            .expire(GATEWAYS, 3_600)
            .ignore()
            .smembers(GATEWAYS)
            .query_async(connection)
            .await?;
        let others: Vec<String> = names.into_iter().filter(|name| *name != self.name).collect();
        if others.is_empty() {
            self.live.set_elsewhere(&HashMap::new());
            return Ok(0);
        }
        let mut ask = redis::pipe();
        for other in &others {
            ask.get(key(other));
        }
        let heard: Vec<Option<String>> = ask.query_async(connection).await?;
        let gone: Vec<&String> =
            others.iter().zip(&heard).filter(|(_, said)| said.is_none()).map(|(n, _)| n).collect();
        if !gone.is_empty() {
            redis::pipe().srem(GATEWAYS, &gone).ignore().query_async::<()>(connection).await?;
        }
        self.live.set_elsewhere(&sum(heard.iter().flatten()));
        Ok(others.len() - gone.len())
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

fn key(gateway: &str) -> String {
    format!("runwire:live:{gateway}")
}

fn said(live: &Live) -> String {
    let of_note = live.of_note();
    let counts = of_note.iter().map(|(environment, live)| (&**environment, *live));
    serde_json::Value::from_iter(counts).to_string()
}

/// What is no JSON object of numbers counts as nothing: it comes from elsewhere.
fn sum<'a>(said: impl Iterator<Item = &'a String>) -> HashMap<String, usize> {
    let mut sums = HashMap::new();
    for said in said {
        let counts: HashMap<String, usize> = serde_json::from_str(said).unwrap_or_default();
        for (environment, live) in counts {
            let sum = sums.entry(environment).or_insert(0usize);
            *sum = sum.saturating_add(live);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gateways_say_is_added_up_and_nonsense_ignored() {
        let said = [r#"{"a":3,"b":1}"#, "nonsense", r#"{"a":-1}"#, r#"{"a":4}"#, "[]"];
        let said = said.map(str::to_owned);
        let sums = sum(said.iter());
        assert_eq!(sums, HashMap::from([("a".to_owned(), 7), ("b".to_owned(), 1)]));
    }
}
