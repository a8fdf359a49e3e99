//! What a client of a throttled feed is told of any sequence of commits, and when: by the real window
//! and the real rule, in a time of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::filter::Filter;
use super::key::FeedKey;
use super::live_tests::commit;
use super::news::News;
use super::pace::due_in;
use super::position::Position;
use super::window::{Feed, Limits};
use crate::postgres::Lsn;
use crate::replication::change::{Event, Reset};
use crate::runs::columns::Column;
use crate::runs::created::Floor;

/// One commit of the run, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Commit {
    at: i64,
    /// The run carries an error from then on, which no tick may hold back.
    fails: bool,
}

/// What a client was told: when, up to which commit, and since when it had waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    at: i64,
    first: usize,
    last: usize,
    since: i64,
}

/// How long a commit takes to the window.
const WAY: i64 = 3;
const TICK: i64 = 100;

fn commits() -> impl Strategy<Value = Vec<Commit>> {
    let gap = prop_oneof![4 => 0i64..40, 2 => 40i64..160, 1 => 160i64..500];
    let one = (gap, prop::bool::weighted(0.1));
    prop::collection::vec(one, 1..40).prop_map(|gaps| {
        let mut at = 0;
        let commit = |(gap, fails)| {
            at += gap;
            Commit { at, fails }
        };
        gaps.into_iter().map(commit).collect()
    })
}

fn cells(number: usize, commits: &[Commit]) -> Vec<(Column, String)> {
    let mut cells = vec![(Column::Metadata, number.to_string())];
    let failures = commits[..=number].iter().filter(|commit| commit.fails).count();
    if failures > 0 {
        // Each failure is another error.
        cells.push((Column::Error, format!("{failures}")));
    }
    cells
}

/// A client that asks again after these pauses, and then always at once.
struct Client<'a> {
    feed: Arc<Feed>,
    filter: Filter,
    commits: &'a [Commit],
    arrived: usize,
    after: Position,
}

impl<'a> Client<'a> {
    fn new(commits: &'a [Commit]) -> Self {
        let limits = Limits { age: Duration::from_secs(120), bytes: 1 << 20, bodies: 1 << 20 };
        let feed = Feed::new(limits);
        let floor = Lsn(10);
        feed.apply(Event::Reset(Reset { epoch: 1, floor, server: floor, past: None }));
        let key = FeedKey::run("env_1".into(), "run_1".into());
        let filter = Filter::new(&key, Floor::default());
        Client { feed, filter, commits, arrived: 0, after: Position::before(floor) }
    }

    /// What is new at that time.
    fn look(&mut self, now: i64) -> News {
        while let Some(next) = self.commits.get(self.arrived).filter(|next| next.at + WAY <= now) {
            let cells = cells(self.arrived, self.commits);
            let cells: Vec<_> = cells.iter().map(|(column, text)| (*column, &**text)).collect();
            self.arrived += 1;
            self.feed.apply(commit(self.arrived as u32, next.at * 1_000, &cells));
        }
        self.feed.state.read().news(&self.filter, self.after, None, |_| true)
    }

    fn run(mut self, pauses: &[i64]) -> Vec<Told> {
        let mut pauses = pauses.iter();
        let (mut told, mut now, mut since, mut first) = (Vec::new(), 0, 0, 0);
        loop {
            let news = self.look(now);
            let arrives = self.commits.get(self.arrived).map(|next| next.at + WAY);
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(now as u64);
            let wait = (!news.runs.is_empty())
                .then(|| due_in(&news, Duration::from_millis(TICK as u64), Duration::ZERO, || at));
            if wait == Some(Duration::ZERO) {
                let last = self.arrived - 1;
                let metadata = news.runs[0].image.text(Column::Metadata);
                assert_eq!(metadata, Some(&*last.to_string()), "the latest state");
                told.push(Told { at: now, first, last, since });
                self.after = Position::before(self.feed.head());
                first = self.arrived;
                now += pauses.next().copied().unwrap_or(0);
                since = now;
                continue;
            }
            let due = wait.map(|wait| now + i64::try_from(wait.as_millis()).unwrap());
            // It is woken by whatever comes, and looks again when what it has is due.
            match arrives.into_iter().chain(due).min() {
                Some(next) => now = next,
                None => return told,
            }
        }
    }
}

proptest! {
    #[test]
    fn every_client_ends_with_the_last_state_and_waits_for_no_more_than_a_tick(
        commits in commits(), pauses in prop::collection::vec(0i64..300, 0..40),
    ) {
        let told = Client::new(&commits).run(&pauses);
        prop_assert_eq!(told.last().map(|told| told.last), Some(commits.len() - 1));
        let mut next = 0;
        for told in told {
            prop_assert_eq!(told.first, next, "nothing is told twice, nothing is left out");
            next = told.last + 1;
            let (first, arrived) = (commits[told.first].at, commits[told.first].at + WAY);
            let latest = told.since.max(arrived).max(first + TICK);
            prop_assert!(told.at <= latest, "{told:?} waited beyond {latest}");
            // The first change after quiet, and an error, are told when they come.
            let quiet = told.first == 0 || first - commits[told.first - 1].at >= TICK;
            let news = &commits[told.first..=told.last];
            let urgent = news.iter().find(|commit| commit.fails).map(|commit| commit.at + WAY);
            let at_once = urgent.into_iter().chain(quiet.then_some(arrived)).min();
            if let Some(at_once) = at_once {
                prop_assert!(told.at <= told.since.max(at_once), "{told:?} was held back");
            }
        }
    }

    #[test]
    fn clients_that_wait_share_their_cuts_however_they_came(
        commits in commits(), pauses in prop::collection::vec(0i64..300, 0..40),
    ) {
        let steady = Client::new(&commits).run(&[]);
        for told in Client::new(&commits).run(&pauses) {
            if told.since <= commits[told.first].at + WAY {
                let same = steady.iter().any(|cut| (cut.at, cut.last) == (told.at, told.last));
                prop_assert!(same, "{told:?} is none of {steady:?}");
            }
        }
        // One at each tick, besides those that no tick holds back.
        for two in steady.windows(2) {
            let [a, b] = two else { unreachable!() };
            let news = &commits[b.first..=b.last];
            let quiet = commits[b.first].at - commits[b.first - 1].at >= TICK;
            let free = quiet || news.iter().any(|commit| commit.fails);
            let late = b.at <= commits[b.last].at + WAY;
            prop_assert!(free || late || b.at % TICK == 0, "{b:?} after {a:?} lies on no tick");
        }
    }
}
