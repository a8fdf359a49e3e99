//! Whether the feeds are served from a stream that is attached and caught up, and how far it is behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::postgres::Lsn;

/// The last word on the stream's state. Written by the ticker, read by probes and feeds.
#[derive(Debug)]
pub struct Readiness {
    caught_up: Arc<AtomicBool>,
    reason: Mutex<Option<String>>,
    advice: Mutex<Option<String>>,
}

impl Default for Readiness {
    fn default() -> Self {
        let reason = Mutex::new(Some("the stream has not begun".to_owned()));
        Readiness { caught_up: Arc::default(), reason, advice: Mutex::default() }
    }
}

impl Readiness {
    /// `None` when all is well, else why it is not.
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    /// Says how it stands.
    pub fn set(&self, reason: Option<String>) {
        self.caught_up.store(reason.is_none(), Ordering::Relaxed);
        *self.reason.lock() = reason;
    }

    /// What somebody should do about the database, though all is well without it.
    pub fn advice(&self) -> Option<String> {
        self.advice.lock().clone()
    }

    /// Says what should be done. Gives whether that is news.
    pub fn advise(&self, advice: Option<String>) -> bool {
        let mut known = self.advice.lock();
        let news = *known != advice;
        *known = advice;
        news
    }

    /// A flag that follows it, for those who ask often.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.caught_up)
    }
}

/// Measures how far the stream is behind the server's durable log.
#[derive(Debug, Default)]
pub struct Lag {
    /// Where the server was, and when it was asked; those that the stream has passed are gone.
    ahead: VecDeque<(Instant, Lsn)>,
}

/// How far the stream is behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behind {
    /// In bytes of log.
    pub bytes: u64,
    /// For how long it has not reached where the server was.
    pub time: Duration,
}

impl Lag {
    /// The marks that are kept; with one a second, more than anybody waits.
    const MARKS: usize = 3_600;

    /// Notes where the server and the stream are now.
    pub fn measure(&mut self, now: Instant, server: Lsn, head: Lsn) -> Behind {
        while self.ahead.front().is_some_and(|(_, lsn)| *lsn <= head) {
            self.ahead.pop_front();
        }
        let time = self.ahead.front().map_or(Duration::ZERO, |(asked, _)| now - *asked);
        if server > head && self.ahead.len() < Self::MARKS {
            self.ahead.push_back((now, server));
        }
        Behind { bytes: server.0.saturating_sub(head.0), time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_behind_for_as_long_as_it_has_not_passed_where_the_server_was() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        assert_eq!(lag.measure(at(0), Lsn(100), Lsn(90)).time, Duration::ZERO);
        let behind = lag.measure(at(3), Lsn(150), Lsn(95));
        assert_eq!(behind, Behind { bytes: 55, time: Duration::from_secs(3) });
        assert_eq!(lag.measure(at(4), Lsn(150), Lsn(120)).time, Duration::from_secs(1));
        assert_eq!(lag.measure(at(5), Lsn(150), Lsn(150)).time, Duration::ZERO);
    }
}
