//! What a slot is told it may forget.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::postgres::Lsn;

/// A permanent slot trails by at most this much of the log, in bytes.
const MAX_TRAIL: u64 = 1 << 30;

/// Decides which position is confirmed to the slot. Only what was received is ever confirmed: the
/// server believes a position beyond its own log and would skip what comes there.
#[derive(Debug)]
pub(super) struct Feedback {
    trail: Option<Duration>,
    max_bytes: u64,
    /// Where the stream was, and when.
    marks: VecDeque<(Instant, Lsn)>,
    /// What the trail allows.
    due: Lsn,
    confirmed: Lsn,
}

impl Feedback {
    /// For a slot that goes with the connection: it keeps nothing.
    pub fn at_once() -> Self {
        Feedback {
            trail: None,
            max_bytes: 0,
            marks: VecDeque::new(),
            due: Lsn(0),
            confirmed: Lsn(0),
        }
    }

    /// For a slot that a restart reads again. `safe_bytes` is what the server lets it retain.
    pub fn trailing(trail: Duration, safe_bytes: Option<u64>) -> Self {
        let max_bytes = safe_bytes.map_or(MAX_TRAIL, |safe| MAX_TRAIL.min(safe / 4));
        Feedback { trail: Some(trail), max_bytes, ..Feedback::at_once() }
    }

    /// What may be confirmed now. To be asked a few times a second.
    pub fn confirm(&mut self, now: Instant, received: Lsn, settled: Lsn) -> Lsn {
        let Some(trail) = self.trail else {
            self.confirmed = self.confirmed.max(received);
            return self.confirmed;
        };
        if self.marks.back().is_none_or(|(_, lsn)| *lsn < received) {
            self.marks.push_back((now, received));
        }
        self.due = self.due.max(Lsn(received.0.saturating_sub(self.max_bytes)));
        while let Some((at, lsn)) = self.marks.front() {
            if now.saturating_duration_since(*at) < trail && *lsn > self.due {
                break;
            }
            self.due = self.due.max(*lsn);
            self.marks.pop_front();
        }
        self.confirmed = self.confirmed.max(self.due.min(settled).min(received));
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_slot_keeps_nothing() {
        let mut feedback = Feedback::at_once();
        assert_eq!(feedback.confirm(Instant::now(), Lsn(500), Lsn(0)), Lsn(500));
    }

    #[test]
    fn a_permanent_slot_trails_in_time_and_confirms_only_what_is_settled() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut feedback = Feedback::trailing(Duration::from_secs(40), None);
        assert_eq!(feedback.confirm(at(0), Lsn(100), Lsn(1_000)), Lsn(0));
        assert_eq!(feedback.confirm(at(10), Lsn(200), Lsn(1_000)), Lsn(0));
        assert_eq!(feedback.confirm(at(41), Lsn(300), Lsn(1_000)), Lsn(100));
        assert_eq!(feedback.confirm(at(60), Lsn(300), Lsn(150)), Lsn(150), "200 is not settled");
        assert_eq!(feedback.confirm(at(61), Lsn(300), Lsn(1_000)), Lsn(200));
        assert_eq!(feedback.confirm(at(90), Lsn(300), Lsn(1_000)), Lsn(300));
    }

    #[test]
    fn a_permanent_slot_trails_by_a_quarter_of_what_is_safe_at_most() {
        let mut feedback = Feedback::trailing(Duration::from_secs(40), Some(4_000));
        assert_eq!(feedback.confirm(Instant::now(), Lsn(5_000), Lsn(9_000)), Lsn(4_000));
    }
}
