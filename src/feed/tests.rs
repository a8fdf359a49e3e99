//! The window's laws, without a database: what a reader of the stream is told from where it stands.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::filter::Filter;
use super::handle::Horizon;
use super::image::Operation;
use super::key::FeedKey;
use super::news::RunNews;
use super::position::Position;
use super::window::{Feed, Limits};
use crate::postgres::{Lsn, Snapshot};
use crate::replication::change::{Change, Event, Reset, Tx};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::tuple::Tuple;

const ENVIRONMENT: &str = "env_1";

fn feed(bytes: usize) -> Arc<Feed> {
    let feed = Feed::new(Limits { age: Duration::from_secs(120), bytes, bodies: 1 << 20 });
    feed.apply(Event::Reset(Reset { epoch: 1, floor: Lsn(10), server: Lsn(10), past: None }));
    feed
}

pub fn row(run: usize, metadata: Option<&str>) -> Tuple {
    let id = format!("id{run}");
    let friendly_id = format!("run_{run}");
    let cells = [
        (Column::Id, Some(id.as_str())),
        (Column::FriendlyId, Some(&friendly_id)),
        (Column::RuntimeEnvironmentId, Some(ENVIRONMENT)),
        (Column::Status, Some("EXECUTING")),
        (Column::RunTags, Some("{a,b}")),
        (Column::Metadata, metadata),
    ];
    let data: String = cells.iter().filter_map(|(_, text)| *text).collect();
    let mut tuple = Tuple::new(Bytes::from(data));
    let mut start = 0;
    for (column, text) in cells {
        match text {
            Some(text) => tuple.set_text(column, start, start + text.len()).unwrap(),
            None => tuple.set_unchanged(column),
        }
        start += text.map_or(0, str::len);
    }
    tuple
}

/// A row of these cells.
pub fn row_of(cells: &[(Column, &str)]) -> Tuple {
    let data: String = cells.iter().map(|(_, text)| *text).collect();
    let mut tuple = Tuple::new(Bytes::from(data));
    let mut start = 0;
    for (column, text) in cells {
        tuple.set_text(*column, start, start + text.len()).unwrap();
        start += text.len();
    }
    tuple
}

pub fn tx(xid: u32, commit: u64, changes: Vec<Change>) -> Event {
    Event::Tx(Tx {
        xid,
        commit_lsn: Lsn(commit),
        end_lsn: Lsn(commit + 8),
        commit_time: 0,
        changes,
    })
}

fn update(run: usize, metadata: Option<&str>) -> Change {
    Change::RunUpdated { new: row(run, metadata), old: None }
}

fn filter(run: usize) -> Filter {
    let key = FeedKey::run(ENVIRONMENT.into(), format!("run_{run}").into());
    Filter::new(&key, Floor::default())
}

fn news(feed: &Feed, run: usize, after: Position, horizon: Option<&Horizon>) -> Option<RunNews> {
    let news = feed.state.read().news(&filter(run), after, horizon, |_| true);
    assert!(news.runs.len() <= 1);
    news.runs.into_iter().next()
}

fn only(column: Column) -> ColumnSet {
    let mut set = ColumnSet::EMPTY;
    set.insert(column);
    set
}

#[test]
fn a_reader_is_told_of_the_columns_that_changed_after_its_offset() {
    let feed = feed(1 << 20);
    feed.apply(tx(5, 100, vec![Change::RunInserted(row(1, Some("v1")))]));
    feed.apply(tx(6, 200, vec![update(1, Some("v2"))]));
    let all = news(&feed, 1, Position::default(), None).unwrap();
    assert!(all.operation == Operation::Insert && all.changed == ColumnSet::EXPOSED);
    let later = news(&feed, 1, Position::before(Lsn(108)), None).unwrap();
    assert_eq!(later.changed, only(Column::Metadata));
    assert_eq!(later.image.text(Column::Metadata), Some("v2"));
    assert!(news(&feed, 1, Position::before(feed.head()), None).is_none());
    assert!(news(&feed, 2, Position::default(), None).is_none());
}

#[test]
fn a_commit_at_the_lsn_where_a_keepalive_ended_is_still_news() {
    let feed = feed(1 << 20);
    feed.apply(Event::Progress(Lsn(500)));
    let offset = Position::before(feed.head());
    feed.apply(tx(5, 500, vec![update(1, Some("v1"))]));
    assert!(news(&feed, 1, offset, None).is_some());
}

#[test]
fn an_unchanged_cell_keeps_its_value_and_is_unknown_where_there_is_none() {
    let feed = feed(1 << 20);
    feed.apply(tx(5, 100, vec![update(1, None)]));
    let first = news(&feed, 1, Position::default(), None).unwrap();
    assert!(first.image.unknown().contains(Column::Metadata));
    assert!(!first.changed.contains(Column::Metadata), "what did not change is not sent");
    feed.apply(tx(6, 200, vec![update(1, Some("v2"))]));
    feed.apply(tx(7, 300, vec![update(1, None)]));
    let last = news(&feed, 1, Position::default(), None).unwrap();
    assert_eq!(last.image.text(Column::Metadata), Some("v2"));
}

#[test]
fn an_update_of_nothing_that_clients_see_occupies_nothing() {
    let feed = feed(1 << 20);
    feed.apply(tx(5, 100, vec![update(1, Some("v"))]));
    let offset = Position::before(feed.head());
    feed.apply(tx(6, 200, vec![update(1, Some("v"))]));
    assert!(news(&feed, 1, offset, None).is_none());
    assert_eq!(feed.head(), Lsn(208), "the head moves on all the same");
}

#[test]
fn under_replica_identity_full_the_row_before_comes_with_the_change() {
    let feed = feed(1 << 20);
    let change = Change::RunUpdated { new: row(1, None), old: Some(Box::new(row(1, Some("old")))) };
    feed.apply(tx(5, 100, vec![change]));
    assert!(news(&feed, 1, Position::default(), None).is_none(), "nothing differs");
    let change =
        Change::RunUpdated { new: row(1, Some("new")), old: Some(Box::new(row(1, Some("old")))) };
    feed.apply(tx(6, 200, vec![change]));
    let found = news(&feed, 1, Position::default(), None).unwrap();
    assert_eq!(found.changed, only(Column::Metadata));
}

#[test]
fn a_truncation_and_a_transaction_too_large_to_carry_raise_the_floor() {
    for change in [Change::RunsTruncated, Change::TooLarge] {
        let feed = feed(1 << 20);
        feed.apply(tx(5, 100, vec![update(1, Some("v"))]));
        feed.apply(tx(6, 200, vec![change]));
        let state = feed.state.read();
        assert_eq!((state.floor, state.head), (Lsn(208), Lsn(208)));
        let topic = filter(9).topics()[0];
        assert!(!state.settlement.admits(&"6:9:6".parse().unwrap(), topic, None));
    }
}

#[test]
fn eviction_raises_the_floor_and_leaves_nothing_behind() {
    let feed = feed(0);
    for i in 1..100 {
        feed.apply(tx(i, u64::from(i) * 100, vec![update(i as usize % 7, Some("v"))]));
    }
    let settled = feed.settle("200:200:".parse().unwrap());
    assert_eq!(settled, feed.head());
    let state = feed.state.read();
    assert_eq!(state.floor, state.head);
    assert!(state.is_empty(), "{state:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(usize, u32)>),
    Keepalive,
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let commit = prop::collection::vec((0usize..4, 0u32..5), 1..5).prop_map(Step::Commit);
    let step = prop_oneof![6 => commit, 1 => Just(Step::Keepalive), 1 => Just(Step::Forget)];
    prop::collection::vec(step, 1..40)
}

proptest! {
    /// Against a plain list of all that ever happened: for every run and every offset at or above
    /// the floor, there is news exactly if something the horizon does not show came after it, its
    /// image is the last state, and it names every column that differs.
    #[test]
    fn news_is_what_a_full_history_would_say(
        steps in steps(), budget in 0usize..6_000, xip in prop::collection::btree_set(1u64..40, 0..6), lsn in 0u64..4_000,
    ) {
        let feed = feed(budget);
        let horizon = Horizon {
            snapshot: Snapshot { xmin: xip.first().copied().unwrap_or(40), xmax: 40, xip: xip.into_iter().collect() },
            lsn: Lsn(lsn),
        };
        let mut history: Vec<(Position, u32, usize, Option<u32>, u32)> = Vec::new();
        let mut last: HashMap<usize, u32> = HashMap::new();
        let mut heads = vec![Position::before(Lsn(10))];
        let mut lsn = 100;
        for (i, step) in steps.into_iter().enumerate() {
            let xid = i as u32 + 1;
            match step {
                Step::Commit(rows) => {
                    let mut changes = Vec::new();
                    for (n, (run, value)) in rows.into_iter().enumerate() {
                        changes.push(update(run, Some(&value.to_string())));
                        let at = Position { lsn: Lsn(lsn), index: n as u32 + 1 };
                        history.push((at, xid, run, last.insert(run, value), value));
                    }
                    feed.apply(tx(xid, lsn, changes));
                    lsn += 8 + u64::from(xid % 3) * 16;
                }
                Step::Keepalive => {
                    feed.apply(Event::Progress(Lsn(lsn)));
                }
                Step::Forget => {
                    feed.settle(Snapshot { xmin: 1_000, xmax: 1_000, xip: vec![] });
                }
            }
            heads.push(Position::before(feed.head()));
        }
        let floor = Position::before(feed.state.read().floor);
        for after in heads.into_iter().filter(|head| *head >= floor) {
            for run in 0..4 {
                for horizon in [None, Some(&horizon)] {
                    let hidden = |xid, at: Position| horizon.is_some_and(|h| h.shows(xid, at.lsn));
                    let expected = history.iter().any(|(at, xid, r, before, value)| {
                        *r == run && *at > after && *before != Some(*value) && !hidden(*xid, *at)
                    });
                    let found = news(&feed, run, after, horizon);
                    if expected {
                        let found = found.expect("a change was lost");
                        let value = last[&run].to_string();
                        prop_assert_eq!(found.image.text(Column::Metadata), Some(value.as_str()));
                        prop_assert!(found.changed.contains(Column::Metadata));
                    } else if let Some(found) = found {
                        // Where the row before was forgotten, equal values may be sent again.
                        prop_assert!(history.iter().any(|(at, xid, r, ..)| *r == run && *at > after && !hidden(*xid, *at)));
                        prop_assert!(found.operation == Operation::Update);
                    }
                }
            }
        }
    }
}
