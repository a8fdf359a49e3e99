//! Which transactions may be forgotten.
//!
//! The stream can deliver a transaction before any query shows it: with a standby that never
//! answers, for as long as that lasts. Its changes then reach a new subscriber from the window alone.
//! Once they have left the window, rows may be answered only from a snapshot that shows the
//! transaction. This part remembers what that takes (`postgres.md`, 5.6).

use std::collections::VecDeque;
use std::sync::Arc;

use super::position::Position;
use super::topic::Topic;
use crate::postgres::{Lsn, Snapshot};

/// Above this many transactions that no query has shown yet, the older half is no longer told apart.
const MAX_OPEN: usize = 1_000_000;

/// The transactions that the stream has delivered and no finished query has shown.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Delivered and still in the window, by commit LSN.
    open: VecDeque<Open>,
    /// Delivered and no longer in the window.
    forgotten: Vec<Forgotten>,
    /// All of those too many to be told apart have lower ids than this.
    crowd: Option<u32>,
    /// What a query must show before its rows may be answered.
    required: Option<Arc<Snapshot>>,
    /// The last finished query's snapshot.
    latest: Option<Arc<Snapshot>>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    xid: u32,
    commit_lsn: Lsn,
}

#[derive(Debug)]
struct Forgotten {
    open: Open,
    /// The feeds that it concerns; `None` when that is not known.
    topics: Option<Box<[Topic]>>,
}

impl Settlement {
    /// The stream starts anew and regards all that `past` shows as delivered.
    pub fn restart(&mut self, past: Option<Snapshot>) {
        *self = Settlement { required: past.map(Arc::new), ..Settlement::default() };
    }

    /// The stream delivered a transaction.
    pub fn committed(&mut self, xid: u32, commit_lsn: Lsn) {
        if self.open.len() >= MAX_OPEN {
            for open in self.open.drain(..MAX_OPEN / 2) {
                self.crowd = Some(later(self.crowd, open.xid));
            }
        }
        self.open.push_back(Open { xid, commit_lsn });
    }

    /// The transaction left the window.
    pub fn forget(&mut self, commit_lsn: Lsn, topics: impl FnOnce() -> Box<[Topic]>) {
        self.required.clone_from(&self.latest_or_required());
        let found = self.open.binary_search_by_key(&commit_lsn, |open| open.commit_lsn);
        if let Some(open) = found.ok().and_then(|at| self.open.remove(at)) {
            self.forgotten.push(Forgotten { open, topics: Some(topics()) });
        }
    }

    /// Everything left the window at once, this transaction included, whose changes are not known.
    pub fn forget_all(&mut self, xid: u32, commit_lsn: Lsn) {
        self.required.clone_from(&self.latest_or_required());
        self.committed(xid, commit_lsn);
        self.forgotten.extend(self.open.drain(..).map(|open| Forgotten { open, topics: None }));
    }

    fn latest_or_required(&self) -> Option<Arc<Snapshot>> {
        self.latest.clone().or_else(|| self.required.clone())
    }

    /// A query has finished that saw `snapshot`.
    pub fn settle(&mut self, snapshot: Snapshot) {
        // One that shows less than is required already (a slot younger than it) settles nothing.
        if self.required.as_ref().is_some_and(|required| !snapshot.includes(required)) {
            return;
        }
        let snapshot = Arc::new(snapshot);
        self.open.retain(|open| !snapshot.shows(open.xid));
        let remembered = self.forgotten.len();
        self.forgotten.retain(|forgotten| !snapshot.shows(forgotten.open.xid));
        let mut settled = self.forgotten.len() < remembered;
        if self.crowd.is_some_and(|xid| has_ended_below(&snapshot, xid)) {
            self.crowd = None;
            settled = true;
        }
        // Of what is no longer remembered, a query that is still under way may lack something.
        if settled {
            self.required = Some(Arc::clone(&snapshot));
        }
        self.latest = Some(snapshot);
    }

    /// The stream goes on after its connection was made anew. If the server crashed, some of what it
    /// showed is gone with its transaction ids, and no snapshot may ever show as much again. What
    /// was delivered and settled is durable, so that each new query shows it.
    pub fn reconnected(&mut self) {
        // What a new slot regards as past is durable, and holds until it is shown.
        if self.latest.take().is_some() {
            self.required = None;
        }
    }

    /// Every transaction that commits below this has been shown; `head` when nothing is open.
    pub fn settled_below(&self, head: Lsn) -> Lsn {
        let waits_for_past = self.required.is_some() && self.latest.is_none();
        if self.crowd.is_some() || waits_for_past {
            return Lsn(0);
        }
        let open = self.open.front().map(|open| open.commit_lsn);
        let forgotten = self.forgotten.iter().map(|forgotten| forgotten.open.commit_lsn).min();
        open.into_iter().chain(forgotten).fold(head, Lsn::min)
    }

    /// Every delivered transaction that ends up to here is shown by `snapshot`. A bound that may be
    /// low: it spares looking at changes that a query shows anyway.
    pub fn shown_up_to(&self, snapshot: &Snapshot, head: Lsn) -> Position {
        let newer = self.latest.as_ref().is_some_and(|latest| snapshot.includes(latest));
        if !newer || self.crowd.is_some() {
            return Position::default();
        }
        Position::before(self.open.front().map_or(head, |open| open.commit_lsn))
    }

    /// Whether rows that were read with `snapshot` lack nothing that the window no longer holds and
    /// that was found under `topic`, or under `untold`.
    pub fn admits(&self, snapshot: &Snapshot, topic: Topic, untold: Option<Topic>) -> bool {
        let is_theirs = |found: &Topic| *found == topic || Some(*found) == untold;
        let concerns = |forgotten: &Forgotten| {
            forgotten.topics.as_ref().is_none_or(|topics| topics.iter().any(is_theirs))
        };
        self.required.as_ref().is_none_or(|required| snapshot.includes(required))
            && self.crowd.is_none_or(|xid| has_ended_below(snapshot, xid))
            && self.forgotten.iter().all(|gone| !concerns(gone) || snapshot.shows(gone.open.xid))
    }
}

fn later(known: Option<u32>, xid: u32) -> u32 {
    match known {
        Some(known) if known.wrapping_sub(xid) as i32 > 0 => known,
        _ => xid,
    }
}

/// Whether every id up to `xid` had ended.
fn has_ended_below(snapshot: &Snapshot, xid: u32) -> bool {
    snapshot.shows(xid) && (snapshot.xmin as u32).wrapping_sub(xid) as i32 > 0
}

#[cfg(test)]
mod tests {
    use super::super::topic::Topic;
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_transaction_that_no_query_shows_is_remembered_after_it_left_the_window() {
        let (run, other) = (Topic::run("env", "run_1"), Topic::run("env", "run_2"));
        let mut settlement = Settlement::default();
        settlement.committed(7, Lsn(100));
        settlement.committed(8, Lsn(200));
        settlement.settle(snapshot("7:9:7"));
        assert_eq!(settlement.settled_below(Lsn(300)), Lsn(100), "7 must not be confirmed");
        settlement.forget(Lsn(100), || [run].into());
        settlement.forget(Lsn(200), || [other].into());
        assert!(
            !settlement.admits(&snapshot("7:12:7"), run, None),
            "its rows lack the change of 7"
        );
        assert!(settlement.admits(&snapshot("7:12:7"), other, None));
        assert!(settlement.admits(&snapshot("12:12:"), run, None));
        settlement.settle(snapshot("12:12:"));
        assert_eq!(settlement.settled_below(Lsn(300)), Lsn(300));
    }

    #[test]
    fn a_query_that_began_before_the_forgetting_is_repeated() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        settlement.committed(7, Lsn(100));
        let early = snapshot("7:8:7");
        settlement.settle(snapshot("8:8:"));
        settlement.forget(Lsn(100), || [topic].into());
        assert!(!settlement.admits(&early, topic, None));
    }

    #[test]
    fn a_query_that_began_before_the_forgotten_was_shown_is_repeated() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        settlement.committed(7, Lsn(100));
        settlement.forget(Lsn(100), || [topic].into());
        let under_way = snapshot("7:8:7");
        settlement.settle(snapshot("8:8:"));
        assert!(!settlement.admits(&under_way, topic, None), "its rows lack the change of 7");
        assert!(settlement.admits(&snapshot("8:9:"), topic, None));
    }

    #[test]
    fn ids_that_a_crash_took_back_are_not_waited_for() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        settlement.committed(7, Lsn(100));
        settlement.settle(snapshot("300:300:"));
        settlement.forget(Lsn(100), || [topic].into());
        assert!(!settlement.admits(&snapshot("9:9:"), topic, None));
        settlement.reconnected();
        assert!(settlement.admits(&snapshot("9:9:"), topic, None));
        settlement.committed(9, Lsn(200));
        assert_eq!(settlement.settled_below(Lsn(300)), Lsn(200));
        settlement.settle(snapshot("10:10:"));
        assert_eq!(settlement.settled_below(Lsn(300)), Lsn(300));
    }

    #[test]
    fn what_a_new_slot_regards_as_past_is_waited_for_after_a_new_connection_too() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        settlement.restart(Some(snapshot("9:9:")));
        settlement.reconnected();
        assert!(!settlement.admits(&snapshot("8:10:8"), topic, None));
    }

    #[test]
    fn a_new_slot_serves_only_what_shows_all_that_it_regards_as_past() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        settlement.restart(Some(snapshot("9:9:")));
        assert!(
            !settlement.admits(&snapshot("8:10:8"), topic, None),
            "8 hangs between log and sight"
        );
        settlement.settle(snapshot("8:10:8"));
        assert!(
            !settlement.admits(&snapshot("8:10:8"), topic, None),
            "a settling query changes nothing"
        );
        assert!(settlement.admits(&snapshot("10:10:"), topic, None));
    }

    #[test]
    fn a_crowd_that_is_not_told_apart_is_waited_for_as_a_whole() {
        let topic = Topic::run("env", "run_1");
        let mut settlement = Settlement::default();
        for i in 0..=MAX_OPEN as u32 {
            settlement.committed(i + 10, Lsn(u64::from(i)));
        }
        assert_eq!(settlement.settled_below(Lsn(1)), Lsn(0));
        assert!(!settlement.admits(&snapshot("12:9000000:12"), topic, None));
        settlement.settle(snapshot("9000000:9000000:"));
        assert!(settlement.admits(&snapshot("9000000:9000000:"), topic, None));
        assert_eq!(settlement.settled_below(Lsn(9)), Lsn(9));
    }
}
