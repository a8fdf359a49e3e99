//! How soon one batch may follow another.

use std::time::Duration;

use tokio::time::Instant;

/// What a run in a batch adds to the pause after it.
const PER_RUN: Duration = Duration::from_millis(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_millis(150);

/// The pause after a batch, which grows with its size.
///
/// A request that comes alone goes at once. When more than a thousand come in a second, each batch is
/// larger than the one before and the pauses grow to their longest, so that a crowd that trickles in
/// over seconds costs tens of statements and not thousands. The next pause is at least half of the
/// last, since crowds come unevenly.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
    pause: Duration,
}

impl Pace {
    pub fn new() -> Self {
        Pace { next: Instant::now(), pause: Duration::ZERO }
    }

    /// When the next batch may go, unless it is full before.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A batch of so many runs goes now.
    pub fn sent(&mut self, runs: usize) {
        let now = Instant::now();
        // Idle time counts as well: whoever comes after it is not part of a crowd.
        let idle = now.saturating_duration_since(self.next);
        let half = (self.pause / 2).saturating_sub(idle);
        let own = PER_RUN * u32::try_from(runs).unwrap_or(u32::MAX).min(1_000);
        self.pause = own.max(half).min(LONGEST);
        self.next = now + self.pause;
    }
}
