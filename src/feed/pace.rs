//! When news are due: at once, at the next tick, or after what follows a completion.
//!
//! Both delays count from commit times, so that all clients of a feed share the same cuts, and what
//! is replayed or asked again is never held again.

use std::time::{Duration, SystemTime};

use super::news::News;

/// How long the news still wait, by the database's clock, which is looked at only for news that may wait;
/// zero when they are due.
///
/// Neither delay is ever longer than itself, however far that clock is from ours.
pub(super) fn due_in(
    news: &News,
    throttle: Duration,
    completion_fold: Duration,
    now: impl FnOnce() -> SystemTime,
) -> Duration {
    if news.just_completed {
        return until(news.last_commit, completion_fold, now());
    }
    if news.urgent || throttle.is_zero() {
        return Duration::ZERO;
    }
    let tick = throttle.as_micros() as i64;
    let quiet = news.previous_commit.is_none_or(|previous| news.first_commit - previous >= tick);
    if quiet {
        return Duration::ZERO;
    }
    let since_tick = news.first_commit.rem_euclid(tick);
    until(news.first_commit - since_tick, throttle, now())
}

/// How much of a delay from a commit on is left, by the database's clock.
pub(super) fn until(commit: i64, delay: Duration, now: SystemTime) -> Duration {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
    let left = commit.saturating_add(delay.as_micros() as i64).saturating_sub(now);
    Duration::from_micros(left.max(0) as u64).min(delay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Duration = Duration::from_secs(1);

    fn at(micros: i64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros as u64)
    }

    fn change(previous: Option<i64>, first: i64) -> News {
        News {
            previous_commit: previous,
            first_commit: first,
            last_commit: first,
            ..News::default()
        }
    }

    #[test]
    fn the_first_change_after_quiet_is_due_at_once_and_others_at_the_next_tick() {
        let now = at(5_300_000);
        let due = |news: &News| due_in(news, TICK, Duration::ZERO, || now).as_millis();
        assert_eq!(due(&change(None, 5_300_000)), 0);
        assert_eq!(due(&change(Some(4_300_000), 5_300_000)), 0);
        assert_eq!(due(&change(Some(5_200_000), 5_300_000)), 700);
        assert_eq!(due(&change(Some(4_800_000), 4_900_000)), 0, "its tick has passed");
        assert_eq!(due_in(&change(Some(0), 1), Duration::ZERO, TICK, || now), Duration::ZERO);
    }

    #[test]
    fn completions_and_errors_wait_for_no_tick() {
        let urgent = News { urgent: true, ..change(Some(5_200_000), 5_300_000) };
        assert_eq!(due_in(&urgent, TICK, TICK, || at(5_300_000)), Duration::ZERO);
    }

    #[test]
    fn a_first_completion_waits_from_its_commit_and_never_again() {
        let completed = News { urgent: true, just_completed: true, ..change(None, 5_000_000) };
        let fold = Duration::from_millis(100);
        let due = |now| due_in(&completed, Duration::ZERO, fold, || at(now)).as_millis();
        assert_eq!(due(5_020_000), 80);
        assert_eq!(due(5_100_000), 0);
        assert_eq!(due(9_000_000), 0, "a replay");
        assert_eq!(due(0), 100, "the database's clock is ahead");
        assert_eq!(due_in(&completed, TICK, Duration::ZERO, || at(5_000_000)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn nothing_waits_longer_than_its_delay(
            previous in prop::option::of(any::<i32>()), first: i32, now: u32, tick in 1u64..10_000,
            urgent: bool, just_completed: bool,
        ) {
            let news = News {
                urgent,
                just_completed,
                ..change(previous.map(i64::from), i64::from(first))
            };
            let (tick, fold) = (Duration::from_millis(tick), Duration::from_millis(100));
            let due = due_in(&news, tick, fold, || at(i64::from(now)));
            let longest = if just_completed { fold } else { tick };
            prop_assert!(due <= longest);
        }
    }
}
