//! What the window knows of the tags of runs whose rows the stream does not bring whole.

use std::sync::Arc;
use std::time::Duration;

use super::filter::Filter;
use super::image::Operation;
use super::key::{FeedKey, Runs};
use super::position::Position;
use super::tests::{row, row_of, tx};
use super::untold::Untold;
use super::window::{Feed, Limits};
use crate::postgres::Lsn;
use crate::replication::change::{Change, Event, Reset};
use crate::runs::columns::Column;
use crate::runs::created::Floor;
use crate::runs::tuple::{Cell, Tuple};

/// Longer than what is not worth remembering.
const LARGE: &str = "{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,b}";

fn feed(bytes: usize) -> Arc<Feed> {
    let feed = Feed::new(Limits { age: Duration::from_secs(120), bytes, bodies: 1 << 20 });
    feed.apply(Event::Reset(Reset { epoch: 1, floor: Lsn(10), server: Lsn(10), past: None }));
    feed
}

/// The run's row with these tags, or without a word about them.
fn tagged(metadata: &str, tags: Option<&str>) -> Tuple {
    let cells = [
        (Column::Id, "id1"),
        (Column::FriendlyId, "run_1"),
        (Column::RuntimeEnvironmentId, "env_1"),
        (Column::CreatedAt, "2026-09-01 08:00:00"),
        (Column::Metadata, metadata),
        (Column::RunTags, tags.unwrap_or_default()),
    ];
    let mut tuple = row_of(&cells);
    if tags.is_none() {
        tuple.set_unchanged(Column::RunTags);
    }
    tuple
}

fn update(n: u32, tags: Option<&str>) -> Event {
    let new = tagged(&n.to_string(), tags);
    tx(n, 100 * u64::from(n), vec![Change::RunUpdated { new, old: None }])
}

fn others(n: u32) -> Event {
    let large = "x".repeat(1 << 16);
    tx(n, 100 * u64::from(n), vec![Change::RunInserted(row(7, Some(&large)))])
}

fn tags_of(feed: &Feed) -> Option<String> {
    let state = feed.state.read();
    state.image("id1").expect("a run of the window").text(Column::RunTags).map(str::to_owned)
}

#[test]
fn large_tags_are_remembered_when_the_run_has_left_the_window_until_they_change() {
    let feed = feed(2_000);
    feed.apply(tx(1, 100, vec![Change::RunInserted(tagged("1", Some(LARGE)))]));
    feed.apply(others(2));
    assert!(feed.state.read().image("id1").is_none(), "the window has forgotten it");
    feed.apply(update(3, None));
    assert_eq!(tags_of(&feed).as_deref(), Some(LARGE));
    assert!(feed.next_untold().is_none());
    for (n, change) in [(10, Some("{b}")), (20, Some(LARGE)), (30, Some("{c}"))] {
        feed.apply(update(n, change));
        feed.apply(others(n + 1));
        feed.apply(update(n + 2, None));
        let known = change.filter(|tags| *tags == LARGE);
        assert_eq!(tags_of(&feed).as_deref(), known, "after {change:?}");
        feed.apply(others(n + 3));
    }
}

#[test]
fn nothing_is_remembered_beyond_what_the_stream_may_have_skipped() {
    let (floor, past) = (Lsn(500), None);
    let skips = [
        Event::Reset(Reset { epoch: 1, floor, server: floor, past }),
        tx(5, 500, vec![Change::TooLarge]),
        tx(5, 500, vec![Change::RunsTruncated]),
        tx(5, 500, vec![Change::RunDeleted("id1".to_owned())]),
        Event::Progress(floor),
    ];
    for skip in skips {
        let feed = feed(1 << 20);
        feed.apply(tx(1, 100, vec![Change::RunInserted(tagged("1", Some(LARGE)))]));
        let (what, kept) = (format!("{skip:?}"), matches!(skip, Event::Progress(_)));
        feed.apply(skip);
        feed.apply(update(9, None));
        assert_eq!(tags_of(&feed).is_some(), kept, "{what}");
        assert_eq!(feed.next_untold().is_none(), kept, "{what}");
    }
}

#[test]
fn what_was_read_of_a_run_says_nothing_about_what_it_became() {
    let read = |feed: &Feed| {
        let untold = feed.next_untold().expect("a run to be read");
        let connections = feed.state.read().connections;
        (untold, connections)
    };
    let learn = |feed: &Feed, (untold, connections): &(Untold, u64)| {
        feed.learn_tags(untold, Cell::Text("{a}"), *connections)
    };
    // Nothing came in between.
    let feed = feed(2_000);
    feed.apply(update(1, None));
    let first = read(&feed);
    feed.apply(update(2, None));
    assert!(feed.next_untold().is_none(), "it is read once");
    assert!(learn(&feed, &first));
    assert_eq!(tags_of(&feed).as_deref(), Some("{a}"));
    // They changed, and were forgotten again.
    feed.apply(others(3));
    feed.apply(update(4, Some("{b}")));
    feed.apply(others(5));
    feed.apply(update(6, None));
    assert!(!learn(&feed, &first));
    assert_eq!(tags_of(&feed), None);
    // The server may have crashed and taken back what the query saw.
    let second = read(&feed);
    feed.apply(Event::Resumed { server: Lsn(700) });
    assert!(!learn(&feed, &second));
    assert_eq!(tags_of(&feed), None);
}

#[test]
fn a_run_that_leaves_the_window_is_read_no_more() {
    let feed = feed(2_000);
    feed.apply(update(1, None));
    assert_eq!(feed.state.read().untold.len(), 1);
    feed.apply(others(2));
    assert!(feed.next_untold().is_none());
    let state = feed.state.read();
    assert!(state.is_empty(), "{state:?}");
}

#[test]
fn who_may_have_been_sent_such_a_run_is_told_when_it_leaves_or_ends() {
    let runs = Runs::Tagged { tags: ["a".into()].into(), window: Duration::from_secs(60) };
    let key = FeedKey::new("env_1".into(), runs);
    let news = |feed: &Feed, after: Position| {
        let filter = Filter::new(&key, Floor::default());
        let news = feed.state.read().news(&filter, after, None, |_| true);
        assert!(news.undecided.is_empty());
        news.runs.iter().map(|run| run.operation).collect::<Vec<_>>()
    };
    // Its tags are read, or the stream brings them.
    for (read, ends) in [(true, false), (true, true), (false, false), (false, true)] {
        let feed = feed(1 << 20);
        feed.apply(update(1, None));
        let after = Position::before(feed.head());
        feed.apply(update(2, None));
        let untold = feed.next_untold().unwrap();
        if read {
            let connections = feed.state.read().connections;
            assert!(feed.learn_tags(&untold, Cell::Text("{a}"), connections));
        } else {
            feed.apply(update(3, Some("{b,a}")));
        }
        assert_eq!(news(&feed, after), [Operation::Insert]);
        let known = Position::before(feed.head());
        feed.apply(update(4, None));
        assert_eq!(news(&feed, known), [Operation::Update]);
        let end = tx(5, 500, vec![Change::RunDeleted("id1".to_owned())]);
        feed.apply(if ends { end } else { update(5, Some("{c}")) });
        for after in [after, known] {
            assert_eq!(news(&feed, after), [Operation::Delete], "{read} {ends}");
        }
    }
}
