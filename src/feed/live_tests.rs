//! Held polls and what holds news back: ticks, and what follows a completion. Nothing here waits for
//! time to pass: delays are either far longer than a test, or over already.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::poll_tests::{feeds_that_fold, poll};
use super::position::Position;
use super::tests::row_of;
use super::window::Feed;
use super::{Answer, Feeds, Outcome, Poll};
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Tx};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::tuple::Tuple;

const LONG: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(20);

/// `run_1` of `env_1` with these cells besides.
pub fn run_1(cells: &[(Column, &str)]) -> Tuple {
    let fixed = [
        (Column::Id, "id1"),
        (Column::FriendlyId, "run_1"),
        (Column::RuntimeEnvironmentId, "env_1"),
    ];
    row_of(&[&fixed, cells].concat())
}

/// The transaction number `n` of this run, committed then in microseconds since 1970.
pub fn commit(n: u32, commit_time: i64, cells: &[(Column, &str)]) -> Event {
    let new = run_1(cells);
    let change =
        if n == 1 { Change::RunInserted(new) } else { Change::RunUpdated { new, old: None } };
    let lsn = 1_000 * u64::from(n);
    let (commit_lsn, end_lsn) = (Lsn(lsn), Lsn(lsn + 8));
    Event::Tx(Tx { xid: n, commit_lsn, end_lsn, commit_time, changes: vec![change] })
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64
}

const RUNNING: [(Column, &str); 2] = [(Column::Status, "EXECUTING"), (Column::Metadata, "early")];
const COMPLETED: [(Column, &str); 3] = [
    (Column::Status, "COMPLETED_SUCCESSFULLY"),
    (Column::CompletedAt, "2026-09-01 08:15:33.511"),
    (Column::Metadata, "early"),
];
const FLUSHED: [(Column, &str); 3] = [
    (Column::Status, "COMPLETED_SUCCESSFULLY"),
    (Column::CompletedAt, "2026-09-01 08:15:33.511"),
    (Column::Metadata, "final"),
];

/// A feed whose run has begun long ago, and a poll from there.
fn begun(fold: Duration, hold: Option<Duration>) -> (Arc<Feed>, Arc<Feeds>, Poll) {
    let (feed, feeds) = feeds_that_fold(fold);
    feed.apply(commit(1, 0, &RUNNING));
    let mut poll = poll(None, Duration::ZERO);
    poll.after = Position::before(feed.head());
    poll.hold_until = hold.map(|hold| Instant::now() + hold);
    (feed, feeds, poll)
}

/// Lets every other task run until it waits: there is one thread.
async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn hold(feeds: &Arc<Feeds>, mut poll: Poll) -> JoinHandle<Outcome> {
    let feeds = Arc::clone(feeds);
    let held = tokio::spawn(async move { feeds.poll(&mut poll).await });
    let_others_run().await;
    held
}

async fn answer(held: JoinHandle<Outcome>) -> Answer {
    let outcome = tokio::time::timeout(PATIENCE, held).await.expect("an answer").unwrap();
    let Outcome::Answer(answer) = outcome else { panic!("{outcome:?}") };
    answer
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.plain().to_vec()).unwrap()
}

#[tokio::test]
async fn a_completion_waits_for_the_next_version_whatever_wakes_the_poll_meanwhile() {
    let (feed, feeds, poll) = begun(LONG, Some(LONG));
    let held = hold(&feeds, poll).await;
    feed.apply(commit(2, now(), &COMPLETED));
    for _ in 0..3 {
        let_others_run().await;
        // As the wake of the completion itself does, when the poll has seen it before.
        feed.waiters.wake_all();
    }
    let_others_run().await;
    assert!(!held.is_finished());
    feed.apply(commit(3, now(), &FLUSHED));
    let answer = text(&answer(held).await);
    assert!(answer.contains("COMPLETED_SUCCESSFULLY") && answer.contains("final"), "{answer}");
}

#[tokio::test]
async fn a_completion_waits_beyond_the_end_of_the_hold_and_where_nothing_is_held() {
    for hold_for in [Some(Duration::ZERO), None] {
        let (feed, feeds, poll) = begun(LONG, hold_for);
        feed.apply(commit(2, now(), &COMPLETED));
        let held = hold(&feeds, poll).await;
        // The hold's timer is over by now.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let_others_run().await;
        assert!(!held.is_finished(), "{hold_for:?}");
        feed.apply(commit(3, now(), &FLUSHED));
        let answer = text(&answer(held).await);
        assert!(answer.contains("final"), "{hold_for:?}: {answer}");
    }
}

#[tokio::test]
async fn a_completion_that_is_older_than_the_fold_is_told_at_once() {
    let fold = Duration::from_secs(60);
    let (feed, feeds, poll) = begun(fold, Some(LONG));
    feed.apply(commit(2, now() - fold.as_micros() as i64, &COMPLETED));
    let held = hold(&feeds, poll).await;
    assert!(held.is_finished());
    assert!(text(&answer(held).await).contains("COMPLETED_SUCCESSFULLY"));
}

#[tokio::test]
async fn a_drain_waits_for_nothing_and_leaves_the_completion_to_the_next_poll() {
    let (feed, feeds, poll) = begun(LONG, Some(LONG));
    let after = poll.after;
    feed.apply(commit(2, now(), &COMPLETED));
    let held = hold(&feeds, poll).await;
    assert!(!held.is_finished());
    let working = Arc::clone(&feeds);
    let work = tokio::spawn(async move { working.run().await });
    feeds.drain.cancel();
    let answer = answer(held).await;
    assert_eq!((answer.offset, answer.committed_at), (after, None));
    work.abort();
}

#[tokio::test]
async fn a_tick_that_lies_beyond_the_hold_leaves_its_news_to_the_next_poll() {
    let (feed, feeds, mut poll) = begun(Duration::ZERO, Some(Duration::ZERO));
    // The first one since 1970 is far from over.
    poll.throttle = LONG * 24 * 365 * 100;
    feed.apply(commit(2, now(), &[(Column::Metadata, "a")]));
    let after = poll.after;
    let answer = answer(hold(&feeds, poll).await).await;
    assert_eq!((answer.offset, answer.committed_at), (after, None), "{}", text(&answer));
}

#[tokio::test]
async fn a_server_whose_clock_is_ahead_delays_nothing_for_longer() {
    let ahead = now() + LONG.as_micros() as i64;
    let tick = Duration::from_millis(20);
    let (feed, feeds, mut poll) = begun(tick, Some(LONG));
    poll.throttle = tick;
    feed.apply(commit(2, ahead, &[(Column::Metadata, "a")]));
    poll.after = Position::before(feed.head());
    feed.apply(commit(3, ahead, &[(Column::Metadata, "b")]));
    let held = hold(&feeds, poll).await;
    assert!(text(&answer(held).await).contains(r#""b""#));
}

#[tokio::test]
async fn news_that_say_nothing_to_a_client_keep_its_poll_held_and_at_rest() {
    let (feed, feeds, mut poll) = begun(Duration::ZERO, Some(LONG));
    poll.view.columns = ColumnSet::without(std::iter::once("metadata"));
    let handle = super::handle::Handle::issue(1, poll.view.feed.digest(poll.view.columns), Lsn(50));
    poll.handle = handle.encode().into();
    feed.apply(commit(2, now(), &[(Column::Status, "EXECUTING"), (Column::Metadata, "a")]));
    let held = hold(&feeds, poll).await;
    feed.apply(commit(3, now(), &[(Column::Status, "EXECUTING"), (Column::Metadata, "b")]));
    let_others_run().await;
    assert!(!held.is_finished());
    feed.apply(commit(4, now(), &[(Column::Status, "PAUSED"), (Column::Metadata, "b")]));
    let answer = text(&answer(held).await);
    assert!(answer.contains("PAUSED") && !answer.contains("metadata"), "{answer}");
}
