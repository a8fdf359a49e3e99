//! The watch on Postgres: what queries see now, how far the stream is behind, and whom that concerns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::auth::Door;
use crate::feed::Feed;
use crate::readiness::{Lag, Readiness};
use crate::replication;
use crate::replication::change::Marks;
use crate::runs::store::RunStore;
use crate::telemetry;

/// How often the server's state is looked at once the stream is caught up.
const TICK: Duration = Duration::from_secs(1);
/// The same before that, so that a start is not slowed down by it.
const EAGER_TICK: Duration = Duration::from_millis(25);
/// How many ticks pass between looks at what the slot retains.
const RETAINED_EVERY: u32 = 10;
/// A stream further behind than this is not ready.
const READY_LAG: Duration = Duration::from_secs(3);

/// Looks at the server once a second: what queries see now, and how far the stream is behind.
pub(crate) struct Ticker {
    pub(crate) store: RunStore,
    pub(crate) pool: PgPool,
    pub(crate) feed: Arc<Feed>,
    pub(crate) door: Door,
    pub(crate) publication: String,
    pub(crate) marks: Arc<Marks>,
    pub(crate) status: Arc<replication::Status>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: PrometheusHandle,
}

impl Ticker {
    /// Looks until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut lag = Lag::default();
        let mut looked = false;
        let mut unmeasured = RETAINED_EVERY;
        let mut published = false;
        for tick in 0u32.. {
            let reason = tokio::select! {
                reason = self.look(&mut lag, &mut looked) => reason,
                () = stop.cancelled() => return,
            };
            unmeasured += 1;
            if unmeasured > RETAINED_EVERY && self.status.attached() {
                self.measure_slot().await;
                published = self.check_publication().await;
                unmeasured = 0;
            }
            // Ready means attached and caught up.
            self.door.set_current(published && reason.is_none());
            // Histograms are kept value by value until this is called.
            self.metrics.run_upkeep();
            let ready = reason.is_none();
            if !stop.is_cancelled() {
                self.readiness.set(reason);
            }
            let pause = if ready || tick > 400 { TICK } else { EAGER_TICK };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// `None` when all is well.
    async fn look(&self, lag: &mut Lag, looked: &mut bool) -> Option<String> {
        let attached = self.status.attached();
        metrics::gauge!(telemetry::ATTACHED).set(if attached { 1.0 } else { 0.0 });
        let server = match self.store.server_state().await {
            Ok(server) => server,
            Err(error) => return Some(error.to_string()),
        };
        self.marks.saw_server_at(server.flush_lsn);
        self.door.settle(&server.snapshot);
        let settled = self.feed.settle(server.snapshot);
        self.marks.settle(settled);
        let behind = lag.measure(Instant::now(), server.flush_lsn, self.feed.head());
        metrics::gauge!(telemetry::LAG_BYTES).set(behind.bytes as f64);
        metrics::gauge!(telemetry::LAG_SECONDS).set(behind.time.as_secs_f64());
        // A first look has nothing to compare with: the stream must pass where the server was then.
        let first = !std::mem::replace(looked, true);
        if !attached {
            return Some(self.status.reason().unwrap_or_else(|| "the slot is not attached".into()));
        }
        let starting = first || (self.readiness.reason().is_some() && !behind.time.is_zero());
        if starting || behind.time > READY_LAG {
            return Some(format!("the stream is {} bytes of log behind", behind.bytes));
        }
        None
    }

    /// Whether the stream carries the tables of keys. What it does not carry is not known in time.
    async fn check_publication(&self) -> bool {
        let missing = match replication::unpublished(&self.pool, &self.publication).await {
            Ok(missing) => missing,
            Err(_) => return false,
        };
        let published = missing.is_none();
        metrics::gauge!(telemetry::KEYS_PUBLISHED).set(if published { 1.0 } else { 0.0 });
        let advice = missing.map(|missing| {
            format!(
                "revoked keys are noticed after 5 s only, until their tables are published: {}",
                missing.remedy
            )
        });
        if self.readiness.advise(advice.clone()) {
            // What came in between is not known.
            self.door.forget_all();
            if let Some(advice) = advice {
                tracing::warn!("{advice}");
            }
        }
        published
    }

    async fn measure_slot(&self) {
        let slot = self.status.slot();
        if let Some(bytes) = replication::retained_wal(&self.pool, &slot).await {
            metrics::gauge!(telemetry::RETAINED_WAL).set(bytes as f64);
        }
    }
}
