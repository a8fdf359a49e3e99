//! Held polls, without a database: what they answer when something else than their run moves.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::{Handle, Horizon};
use super::position::Position;
use super::window::Limits;
use super::{Answer, Feed, FeedKey, FeedSettings, Feeds, Outcome, Poll, View};
use crate::lease::Lease;
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Reset};
use crate::runs::columns::ColumnSet;
use crate::runs::reader::{Reader, ReaderLimits};
use crate::runs::store::RunStore;

fn feeds() -> (Arc<Feed>, Arc<Feeds>) {
    feeds_that_fold(Duration::from_millis(100))
}

/// A window and its feeds, with completions that wait for so long.
pub fn feeds_that_fold(completion_fold: Duration) -> (Arc<Feed>, Arc<Feeds>) {
    let feed = Feed::new(Limits { age: Duration::from_secs(120), bytes: 1 << 20, bodies: 1 << 20 });
    reset(&feed, 1, 10);
    // Nobody listens there, and nobody asks.
    let pool = PgPoolOptions::new().connect_lazy("postgresql://127.0.0.1:1/none").unwrap();
    let caught_up = Arc::new(AtomicBool::new(true));
    let settings = FeedSettings {
        completion_fold,
        created_max: Duration::from_secs(86_400),
        list_max: 10,
        list_bytes: 1 << 20,
        chunk_bytes: 1 << 20,
        chunk: 1 << 20,
    };
    let reader = Reader::new(RunStore::new(pool), ReaderLimits::default());
    let drain = CancellationToken::new();
    let feeds = Feeds::new(feed.clone(), reader, caught_up, drain, settings);
    (feed, Arc::new(feeds))
}

fn reset(feed: &Feed, epoch: u64, floor: u64) {
    let floor = Lsn(floor);
    feed.apply(Event::Reset(Reset { epoch, floor, server: floor, past: None }));
}

pub fn poll(horizon: Option<Horizon>, hold: Duration) -> Poll {
    let feed = FeedKey::run("env_1".into(), "run_1".into());
    let view = View { feed, columns: ColumnSet::EXPOSED, old_statuses: false };
    let mut handle = Handle::issue(1, view.feed.digest(view.columns), Lsn(50));
    handle.horizon = horizon;
    Poll {
        view,
        handle: handle.encode().into(),
        after: Position::before(Lsn(50)),
        hold_until: Some(Instant::now() + hold),
        throttle: Duration::ZERO,
        lease: Lease::default(),
    }
}

/// Holds a poll, lets something happen, and gives what the poll is answered with.
async fn held(feed: &Feed, runs: Arc<Feeds>, poll: Poll, happens: impl FnOnce(&Feed)) -> Outcome {
    feed.apply(Event::Progress(Lsn(50)));
    let held = tokio::spawn(async move { runs.poll(poll).await });
    while feed.waiters.len() == 0 {
        tokio::task::yield_now().await;
    }
    happens(feed);
    held.await.unwrap()
}

#[tokio::test]
async fn its_end_carries_the_head_so_that_a_quiet_feed_stays_above_the_floor() {
    let (feed, runs) = feeds();
    let poll = poll(None, Duration::from_millis(50));
    let outcome = held(&feed, runs, poll, |feed| feed.apply(Event::Progress(Lsn(900)))).await;
    let Outcome::Answer(Answer { offset, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(offset, Position::before(Lsn(900)));
}

#[tokio::test]
async fn one_whose_run_is_quiet_while_others_fill_the_window_is_not_sent_away() {
    let (feed, runs) = feeds();
    let poll = poll(None, Duration::from_millis(50));
    let others = |feed: &Feed| {
        for i in 1..50u32 {
            let row = super::tests::row(1 + i as usize, Some(&"x".repeat(1 << 16)));
            feed.apply(super::tests::tx(i, 1_000 * u64::from(i), vec![Change::RunInserted(row)]));
        }
        assert!(feed.state.read().floor > Lsn(50), "the window has moved on");
    };
    let outcome = held(&feed, runs, poll, others).await;
    let Outcome::Answer(Answer { offset, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(offset, Position::before(feed.head()));
}

#[tokio::test]
async fn one_that_is_held_while_everything_is_forgotten_at_once_is_sent_away() {
    let (feed, runs) = feeds();
    let poll = poll(None, Duration::from_secs(60));
    let truncated = |feed: &Feed| {
        feed.apply(super::tests::tx(5, 1_000, vec![Change::RunsTruncated]));
    };
    let outcome = held(&feed, runs, poll, truncated).await;
    assert!(matches!(outcome, Outcome::MustRefetch(_)), "{outcome:?}");
}

#[tokio::test]
async fn one_that_is_held_while_the_history_becomes_another_is_sent_away() {
    let (feed, runs) = feeds();
    let poll = poll(None, Duration::from_secs(60));
    // A restored copy that stands below where this client is.
    let outcome = held(&feed, runs, poll, |feed| reset(feed, 2, 20)).await;
    assert!(matches!(outcome, Outcome::MustRefetch(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_horizon_is_void_once_the_server_may_have_crashed_also_while_the_poll_is_held() {
    let horizon = Horizon { snapshot: "7:9:".parse().unwrap(), lsn: Lsn(2_000) };
    let (feed, runs) = feeds();
    let before = poll(Some(horizon.clone()), Duration::from_millis(50));
    let outcome = held(&feed, runs.clone(), before, |_| {}).await;
    assert!(matches!(outcome, Outcome::Answer(_)), "{outcome:?}");
    let during = poll(Some(horizon), Duration::from_millis(50));
    let outcome =
        held(&feed, runs, during, |feed| feed.apply(Event::Resumed { server: Lsn(60) })).await;
    assert!(matches!(outcome, Outcome::MustRefetch(_)), "{outcome:?}");
}
