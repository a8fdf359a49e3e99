//! What every limit counts, under its name.

use metrics::{Counter, Gauge};

use crate::telemetry::{LIMIT_REFUSED, LIMIT_USED, LIMIT_WAITING};

/// The metrics of one limit, looked up once.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub used: Gauge,
    pub waiting: Gauge,
    pub refused: Counter,
}

impl Tally {
    pub fn of(name: &'static str) -> Self {
        Tally {
            used: metrics::gauge!(LIMIT_USED, "limit" => name),
            waiting: metrics::gauge!(LIMIT_WAITING, "limit" => name),
            refused: metrics::counter!(LIMIT_REFUSED, "limit" => name),
        }
    }
}
