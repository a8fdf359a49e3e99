//! Held polls, without a database: what they answer when something else than their run moves.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::{Handle, Horizon};
use super::position::Position;
use super::tests::{row_of, tx};
use super::window::Limits;
use super::{Answer, Feed, FeedKey, FeedSettings, Feeds, Outcome, Poll, Runs, View};
use crate::lease::Lease;
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Reset};
use crate::runs::columns::{Column, ColumnSet};
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
        just_created_wait: Duration::from_secs(2),
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
    poll_of(FeedKey::run("env_1".into(), "run_1".into()), horizon, hold)
}

fn poll_of(feed: FeedKey, horizon: Option<Horizon>, hold: Duration) -> Poll {
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
async fn held(
    feed: &Feed,
    runs: Arc<Feeds>,
    mut poll: Poll,
    happens: impl FnOnce(&Feed),
) -> Outcome {
    feed.apply(Event::Progress(Lsn(50)));
    let held = tokio::spawn(async move { runs.poll(&mut poll).await });
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

#[tokio::test]
async fn who_is_sent_away_starts_behind_neither_its_offset_nor_the_row_that_a_query_showed_it() {
    let (_, runs) = feeds();
    for (log_end, least) in [(2_000, 2_000), (20, 50)] {
        let horizon = Horizon { snapshot: "7:9:".parse().unwrap(), lsn: Lsn(log_end) };
        let poll = poll(Some(horizon), Duration::ZERO);
        let outcome = runs.refetch(&poll.view, &poll.handle, poll.after);
        let Outcome::MustRefetch(handle) = outcome else { panic!("{outcome:?}") };
        let handle = Handle::decode(&handle).unwrap();
        assert_eq!(handle.not_before, Some(Position::before(Lsn(least))));
    }
}

/// The number `n` of the transactions: this run with these tags, or without a word about them.
fn tagged(n: u32, run: u32, tags: Option<&str>, metadata: &str) -> Event {
    let (id, friendly_id) = (format!("id{run}"), format!("run_{run}"));
    let cells = [
        (Column::Id, id.as_str()),
        (Column::FriendlyId, &friendly_id),
        (Column::RuntimeEnvironmentId, "env_1"),
        (Column::CreatedAt, "2026-09-01 08:00:00"),
        (Column::RunTags, tags.unwrap_or_default()),
        (Column::Metadata, metadata),
    ];
    let mut new = row_of(&cells);
    let change = if tags.is_none() {
        new.set_unchanged(Column::RunTags);
        Change::RunUpdated { new, old: None }
    } else {
        Change::RunInserted(new)
    };
    tx(n, 100 * u64::from(n), vec![change])
}

/// Pushes what came before out of the window.
fn much_else(feed: &Feed, from: u32) {
    let large = "x".repeat(1 << 17);
    (from..from + 10).for_each(|n| feed.apply(tagged(n, n, Some("{z}"), &large)));
    assert!(feed.state.read().floor > Lsn(100 * u64::from(from)), "the window has moved on");
}

/// Holds a poll of the list of those with two tags, which it waits for under the first.
async fn held_list(feed: &Feed, feeds: &Arc<Feeds>) -> tokio::task::JoinHandle<Outcome> {
    feed.apply(Event::Progress(Lsn(50)));
    let runs = Runs::Tagged { tags: ["a".into(), "b".into()].into(), window: LIST_WINDOW };
    let key = FeedKey::new("env_1".into(), runs);
    let (mut poll, feeds) = (poll_of(key, None, Duration::from_secs(60)), Arc::clone(feeds));
    let held = tokio::spawn(async move { feeds.poll(&mut poll).await });
    let_it_wait(feed).await;
    held
}

const LIST_WINDOW: Duration = Duration::from_secs(3_600);

async fn let_it_wait(feed: &Feed) {
    while feed.waiters.len() == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_list_that_others_wake_stays_held_however_short_the_window_is() {
    let (feed, feeds) = feeds();
    let held = held_list(&feed, &feeds).await;
    for n in [10, 40] {
        much_else(&feed, n);
        // Several of them, before the poll comes to look.
        for other in 11..=13 {
            feed.apply(tagged(n + other, 1, Some("{a}"), &other.to_string()));
        }
        let_it_wait(&feed).await;
        assert!(!held.is_finished(), "{n}: {:?}", held.await);
    }
    much_else(&feed, 70);
    feed.apply(tagged(90, 2, Some("{a,b}"), "mine"));
    let Outcome::Answer(answer) = held.await.unwrap() else { panic!("it was sent away") };
    let text = String::from_utf8(answer.body.plain().to_vec()).unwrap();
    assert!(text.contains("mine") && text.contains("id2") && !text.contains("id1"), "{text}");
    assert_eq!(answer.offset, Position::before(feed.head()));
}

#[tokio::test]
async fn a_list_is_sent_away_when_what_may_be_of_it_has_left_the_window_before_it_looked() {
    for (lost, sent_away) in [
        (tagged(20, 1, Some("{a,b}"), "mine"), true),
        // Nothing tells them apart any more.
        (tagged(20, 1, Some("{a}"), "other"), true),
        (tagged(20, 1, None, "untold"), true),
        (tagged(20, 1, Some("{z}"), "other"), false),
    ] {
        let (feed, feeds) = feeds();
        let held = held_list(&feed, &feeds).await;
        let what = format!("{lost:?}");
        feed.apply(lost);
        much_else(&feed, 30);
        feed.apply(tagged(50, 2, Some("{a}"), "wakes"));
        let_it_wait(&feed).await;
        assert_eq!(held.is_finished(), sent_away, "{what}");
        if sent_away {
            let outcome = held.await.unwrap();
            assert!(matches!(outcome, Outcome::MustRefetch(_)), "{what}: {outcome:?}");
        }
    }
}
