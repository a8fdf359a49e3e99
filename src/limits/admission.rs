//! The first thing that happens to a request: it is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::{Counter, Gauge};

use crate::telemetry;

/// Bounds the requests that nobody has been found to answer for yet: arrived, and not authenticated.
/// After that what they take is counted by environment, and shared fairly.
#[derive(Debug)]
pub struct Admission {
    now: AtomicUsize,
    limit: usize,
    used: Gauge,
    refused: Counter,
}

/// A request at the door, however it goes on.
#[derive(Debug)]
pub struct Admitted(Arc<Admission>);

impl Admission {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Arc<Admission> {
        let used = metrics::gauge!(telemetry::LIMIT_USED, "limit" => "admission");
        let refused = metrics::counter!(telemetry::LIMIT_REFUSED, "limit" => "admission");
        Arc::new(Admission { now: AtomicUsize::new(0), limit, used, refused })
    }

    /// Counts a request, unless too many are at the door.
    pub fn enter(self: &Arc<Self>) -> Option<Admitted> {
        let one_more = |now| (now < self.limit).then_some(now + 1);
        match self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Some(Admitted(Arc::clone(self))),
            Err(_) => {
                self.refused.increment(1);
                None
            }
        }
    }

    /// Shows how many are at the door.
    pub fn report(&self) {
        self.used.set(self.now.load(Ordering::Relaxed) as f64);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}
