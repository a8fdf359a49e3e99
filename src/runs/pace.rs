//! How soon one batch may follow another.

use std::time::Duration;

use tokio::time::Instant;

/// What a run in a batch adds to the pause after it.
const PER_RUN: Duration = Duration::from_millis(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_millis(150);
/// When nobody has come for this part of the pause, nobody is waited for any longer,
const QUIET: u32 = 8;
/// and not before: those of a crowd may come a fraction of a millisecond apart.
const SHORTEST_QUIET: Duration = Duration::from_millis(2);

/// The pause after a batch, which grows with its size.
///
/// A request that comes alone goes at once. When more than a thousand come in a second, each batch is
/// larger than the one before and the pauses grow to their longest, so that a crowd that trickles in
/// over seconds costs tens of statements and not thousands. The next pause is at least half of the
/// last, since crowds come unevenly. A crowd that comes again only once it is answered, so many at a
/// time, is not waited for once all of it is there.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
    pause: Duration,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Pace { next: now, pause: Duration::ZERO }
    }

    /// When the pause is over.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// When a batch may go whose last came then, unless it is full or somebody comes before.
    pub fn due(&self, last_came: Instant) -> Instant {
        self.next.min(last_came + SHORTEST_QUIET.max(self.pause / QUIET))
    }

    /// A batch of so many runs goes now.
    pub fn sent(&mut self, now: Instant, runs: usize) {
        // Idle time counts as well: whoever comes after it is not part of a crowd.
        let idle = now.saturating_duration_since(self.next);
        let half = (self.pause / 2).saturating_sub(idle);
        let own = PER_RUN * u32::try_from(runs).unwrap_or(u32::MAX).min(1_000);
        self.pause = own.max(half).min(LONGEST);
        self.next = now + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many batches those who come at these times cost, and the longest wait among them.
    fn batches(arrivals: impl Iterator<Item = Duration>, begin: Instant) -> (usize, Duration) {
        let mut arrivals = arrivals.map(|after| begin + after).peekable();
        let mut pace = Pace::new(begin);
        let (mut batches, mut longest) = (0, Duration::ZERO);
        while let Some(first) = arrivals.next() {
            let (mut last, mut size) = (first, 1);
            while size < 1_000
                && let Some(arrival) = arrivals.next_if(|next| *next <= pace.due(last).max(last))
            {
                (last, size) = (arrival, size + 1);
            }
            let now = if size == 1_000 { last } else { pace.due(last).max(last) };
            longest = longest.max(now - first);
            pace.sent(now, size);
            batches += 1;
        }
        (batches, longest)
    }

    fn evenly(count: u32, over: Duration) -> impl Iterator<Item = Duration> {
        (0..count).map(move |nth| over * nth / count)
    }

    #[test]
    fn a_crowd_that_trickles_in_costs_tens_of_batches() {
        for seconds in [1, 2, 3] {
            let (batches, longest) =
                batches(evenly(15_000, Duration::from_secs(seconds)), Instant::now());
            assert!(batches <= 50, "{batches} batches for 15,000 in {seconds} s");
            assert!(longest <= LONGEST);
        }
    }

    #[test]
    fn a_crowd_in_gusts_costs_tens_of_batches() {
        // A hundred at once, then one by one, and so on.
        let gusts = (0..150u64).flat_map(|nth| {
            let begin = Duration::from_millis(nth * 20);
            let gust = std::iter::repeat_n(begin, 90);
            gust.chain((1..=10).map(move |nth| begin + Duration::from_millis(nth)))
        });
        let (batches, _) = batches(gusts, Instant::now());
        assert!(batches <= 50, "{batches} batches");
    }

    #[test]
    fn a_crowd_that_comes_again_when_it_is_answered_is_not_kept_waiting_for_nobody() {
        let (begin, crowd, answered_after) = (Instant::now(), 128, Duration::from_millis(10));
        let (mut pace, mut now) = (Pace::new(begin), begin);
        let mut waited = Duration::ZERO;
        for _ in 0..100 {
            let last_came = now + answered_after;
            now = pace.due(last_came).max(last_came);
            waited += now - last_came;
            pace.sent(now, crowd);
        }
        assert!(waited <= 100 * LONGEST / QUIET, "{waited:?}");
    }

    #[test]
    fn those_who_come_alone_do_not_wait() {
        let (batches, longest) = batches(evenly(100, Duration::from_secs(1)), Instant::now());
        assert_eq!(batches, 100);
        assert_eq!(longest, Duration::ZERO);
    }
}
