//! What Runwire counts itself.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use crate::server::{Server, ask};

/// Queries sent for snapshots.
pub const SNAPSHOT_QUERIES: &str = "runwire_snapshot_queries_total";
/// Polls held now.
pub const HOLDS: &str = "runwire_holds";
/// Connections open now.
pub const CONNECTIONS: &str = "runwire_connections{listener=\"public\"}";
/// Topics that somebody waits on now.
pub const WAITED_TOPICS: &str = "runwire_waited_topics";
/// How far the stream is behind, in bytes.
const LAG_BYTES: &str = "runwire_replication_lag_bytes";
/// How far the stream is behind, in seconds.
const LAG_SECONDS: &str = "runwire_replication_lag_seconds";

/// How often Runwire is asked for its lag.
const SAMPLE: Duration = Duration::from_millis(250);
/// The metrics at one moment, in Prometheus' text form.
pub struct Metrics(String);

impl Metrics {
    /// Reads them; `None` for a server that has none.
    pub fn of(server: &Server) -> Result<Option<Metrics>> {
        server.admin.map(Metrics::at).transpose()
    }

    /// Reads them from an operators' address.
    pub fn at(admin: SocketAddr) -> Result<Metrics> {
        Ok(Metrics(ask(admin, "/metrics").context("reading the metrics")?))
    }

    /// The sum of all series of this name, or the one series if the name has labels; 0 for what has
    /// never been counted.
    pub fn sum(&self, name: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        values.sum::<f64>()
    }
}

/// The greatest lag that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    /// For how long the stream had been behind, in seconds.
    pub seconds: f64,
    /// How far it was, in bytes of log.
    pub bytes: f64,
}

/// Asks for the lag on a thread of its own until the first value is dropped. The thread returns the
/// greatest, `None` if it never got an answer.
pub fn sample_lag(admin: SocketAddr) -> (oneshot::Sender<()>, JoinHandle<Option<Lag>>) {
    let (stop, mut stopped) = oneshot::channel();
    let sampling = std::thread::spawn(move || {
        let mut most: Option<Lag> = None;
        while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            // A busy server may be late with an answer; the next look shows what it missed.
            if let Ok(metrics) = Metrics::at(admin) {
                let most = most.get_or_insert_default();
                most.seconds = most.seconds.max(metrics.sum(LAG_SECONDS));
                most.bytes = most.bytes.max(metrics.sum(LAG_BYTES));
            }
            std::thread::sleep(SAMPLE);
        }
        most
    });
    (stop, sampling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_name_are_added_and_longer_names_are_others() {
        let text = "# TYPE runwire_holds gauge\nrunwire_holds{feed=\"run\"} 3\nrunwire_holds{feed=\"tag\"} 4\n\
            runwire_holds_total 9\nrunwire_waited_topics 2.5\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum(HOLDS), 7.0);
        assert_eq!(metrics.sum("runwire_holds{feed=\"tag\"}"), 4.0);
        assert_eq!(metrics.sum(WAITED_TOPICS), 2.5);
        assert_eq!(metrics.sum(SNAPSHOT_QUERIES), 0.0);
    }
}
