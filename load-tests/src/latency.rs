//! How long changes took to be delivered.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ledger::Delivery;
use crate::writer::Change;

/// A version of a run that was made.
#[derive(Clone, Copy)]
pub struct Made {
    /// The run.
    pub run: usize,
    /// The version.
    pub version: u64,
    /// When, and how long it took.
    pub change: Change,
}

/// Latencies of some deliveries.
pub struct Sums {
    /// From commit to delivery, in ms, in the order of the deliveries.
    pub latencies: Vec<f64>,
    /// From commit to the last delivery of the same change, in ms.
    pub lasts: Vec<f64>,
    /// The sum of `lasts`, in seconds.
    pub delivering: f64,
}

/// Joins deliveries to their changes. A delivery may precede its commit's return: the walsender and the
/// writer's backend are woken together.
pub fn evaluate(made: &[Made], deliveries: &[Delivery]) -> Sums {
    let index: HashMap<(u32, u64), usize> =
        made.iter().enumerate().map(|(i, made)| ((made.run as u32, made.version), i)).collect();
    let mut lasts: Vec<Option<f64>> = vec![None; made.len()];
    let mut latencies = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let Some(&i) = index.get(&(delivery.run, delivery.version)) else { continue };
        let latency = signed_ms(delivery.at, made[i].change.at);
        latencies.push(latency);
        lasts[i] = Some(lasts[i].map_or(latency, |last| last.max(latency)));
    }
    let lasts: Vec<f64> = lasts.into_iter().flatten().collect();
    let delivering = lasts.iter().map(|last| last.max(0.0)).sum::<f64>() / 1e3;
    Sums { latencies, lasts, delivering }
}

/// A duration in milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How much later `at` is than `origin`, in milliseconds.
pub fn signed_ms(at: Instant, origin: Instant) -> f64 {
    match at.checked_duration_since(origin) {
        Some(later) => ms(later),
        None => -ms(origin - at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_measured_from_its_own_commit_and_may_precede_it() {
        let at = Instant::now() + Duration::from_secs(1);
        let made = [Made { run: 2, version: 9, change: Change { at, took: Duration::ZERO } }];
        let delivery = |at| Delivery { run: 2, version: 9, at };
        let sums = evaluate(
            &made,
            &[
                delivery(at - Duration::from_millis(1)),
                delivery(at + Duration::from_millis(3)),
                Delivery { run: 1, version: 9, at },
            ],
        );
        assert_eq!(sums.latencies, [-1.0, 3.0]);
        assert_eq!(sums.lasts, [3.0]);
        assert_eq!(sums.delivering, 0.003);
    }
}
