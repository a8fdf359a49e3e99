//! What is new for a feed after a position: read from the window, run by run.

use std::collections::{HashMap, VecDeque};
use std::iter::Peekable;
use std::sync::Arc;

use super::filter::Filter;
use super::handle::Horizon;
use super::image::{Image, Operation};
use super::position::Position;
use super::window::Window;
use crate::runs::columns::ColumnSet;

/// How many changes are read before others get their turn at the window.
pub(super) const STRETCH: usize = 4_096;
/// So few runs are found without an index.
const FEW: usize = 8;
/// How many changes are looked through for the one before the news.
const LOOK_BACK: usize = 64;

/// One run's news.
#[derive(Clone, Debug)]
pub(super) struct RunNews {
    /// Its last state.
    pub image: Arc<Image>,
    pub operation: Operation,
    /// What an update holds: the exposed columns that may differ from what the client has. An insert
    /// holds all that the client receives.
    pub changed: ColumnSet,
}

/// Everything new for a feed between a client's offset and the head.
#[derive(Debug, Default)]
pub(super) struct News {
    /// By the order of each run's first change.
    pub runs: Vec<RunNews>,
    /// Runs of which it is not known whether they are of the feed: that takes their tags.
    pub undecided: Vec<Arc<Image>>,
    /// When the first and the last of the changes committed, in microseconds since 1970.
    pub first_commit: i64,
    pub last_commit: i64,
    /// When the change before them committed, where the window has it.
    pub previous_commit: Option<i64>,
    /// A run completed or failed, so that its news are not to be held back.
    pub urgent: bool,
    /// The last change is a run's first completion, and nothing came after it.
    pub just_completed: bool,
}

/// A reading of one feed's changes, which may go on in several stretches.
#[derive(Debug)]
pub(super) struct Reading {
    next: Position,
    runs: Vec<Touched>,
    /// Where each of the runs stands, once there are many.
    places: HashMap<Arc<str>, usize>,
    news: News,
}

#[derive(Debug)]
struct Touched {
    run: Arc<str>,
    changed: ColumnSet,
    /// Whether it was of the feed at first, where that is known.
    had: Option<bool>,
    /// Whether it came to the feed with one of the changes. What changed while it was elsewhere is
    /// not found under the feed's topics.
    entered: bool,
}

impl Reading {
    /// Begins behind a position.
    pub fn after(position: Position) -> Self {
        Reading { next: position, runs: Vec::new(), places: HashMap::new(), news: News::default() }
    }

    /// What comes after this is still to be read.
    pub fn next(&self) -> Position {
        self.next
    }

    /// The runs whose changes were read.
    pub fn runs(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().map(|touched| &*touched.run)
    }

    /// Reads a stretch. `true` when it has come to the head: then [`Reading::finish`] it on the same
    /// version of the window.
    pub fn advance(
        &mut self,
        window: &Window,
        filter: &Filter,
        horizon: Option<&Horizon>,
        stretch: usize,
    ) -> bool {
        // A change is found under each of the feed's topics, so the rarest one has it too, unless
        // it came without the run's tags.
        let posting = window.rarest(filter.topics()).unwrap_or(&NOTHING);
        let untold = filter.untold().and_then(|topic| window.posting(topic)).unwrap_or(&NOTHING);
        let start = self.start_in(posting, window);
        let untold_start = self.start_in(untold, window);
        if start == posting.len() && untold_start == untold.len() {
            return true;
        }
        if self.runs.is_empty() {
            let earlier = posting.range(..start).rev().take(LOOK_BACK);
            let mut earlier = earlier.map(|number| window.record(*number));
            let previous = earlier.find(|record| filter.may_concern(record));
            self.news.previous_commit = previous.map(|record| record.commit_time);
        }
        let mut told = posting.range(start..).copied().peekable();
        let mut untold = untold.range(untold_start..).copied().peekable();
        let mut left = stretch;
        while let Some(number) = lower(&mut told, &mut untold) {
            if left == 0 {
                return false;
            }
            left -= 1;
            let record = window.record(number);
            self.next = record.at;
            let shown = horizon.is_some_and(|h| h.shows(record.xid, record.at.lsn));
            // What the run carries by now decides where the change does not tell.
            let may = |(image, _): (&Arc<Image>, bool)| filter.tells_of(image) != Some(false);
            let concerns = filter.may_concern(record)
                || (filter.is_untold(record) && window.state(&record.run).is_some_and(may));
            if shown || !concerns {
                continue;
            }
            if self.runs.is_empty() {
                self.news.first_commit = record.commit_time;
            }
            self.news.last_commit = record.commit_time;
            self.news.just_completed = record.completes;
            self.news.urgent |= record.urgent;
            // Who follows a run by itself has had its row from the start.
            let had = if filter.is_of_one() { Some(true) } else { filter.matched_before(record) };
            let touched = self.touched(&record.run, had);
            touched.changed = touched.changed.union(record.changed);
            touched.entered |= record.inserted || had != Some(true);
        }
        true
    }

    /// Where what is still to be read begins. Most come for the newest, so it is looked for from the
    /// end, in steps that double.
    fn start_in(&self, posting: &VecDeque<u64>, window: &Window) -> usize {
        let is_read = |at: usize| window.record(posting[at]).at <= self.next;
        let (mut low, mut high, mut step) = (posting.len(), posting.len(), 1);
        while high > 0 {
            low = high.saturating_sub(step);
            if is_read(low) {
                low += 1;
                break;
            }
            (high, step) = (low, 2 * step);
        }
        // Before `low` all is read, from `high` on nothing.
        while low < high {
            let middle = low.midpoint(high);
            if is_read(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn touched(&mut self, run: &Arc<str>, had: Option<bool>) -> &mut Touched {
        let place = self.place(run);
        if place == self.runs.len() {
            self.runs.push(Touched {
                run: Arc::clone(run),
                changed: ColumnSet::EMPTY,
                entered: false,
                had,
            });
        }
        let touched = &mut self.runs[place];
        // Who was in the feed between two of the changes may have been sent, and is to be told of its end.
        if touched.had.is_none() && had == Some(true) {
            touched.had = had;
        }
        touched
    }

    /// Where the run stands among those that were touched, or will stand.
    fn place(&mut self, run: &Arc<str>) -> usize {
        let next = self.runs.len();
        if next < FEW {
            return self.runs.iter().position(|touched| touched.run == *run).unwrap_or(next);
        }
        if self.places.is_empty() {
            let places = self.runs.iter().zip(0..);
            self.places.extend(places.map(|(touched, at)| (Arc::clone(&touched.run), at)));
        }
        *self.places.entry(Arc::clone(run)).or_insert(next)
    }

    /// The news, with each run's last state.
    ///
    /// `is_known` tells of a run that was in the feed before whether the client can have its row:
    /// one that was beyond the end of a cut list it was never sent.
    pub fn finish(
        &mut self,
        window: &Window,
        filter: &Filter,
        is_known: impl Fn(&Image) -> bool,
    ) -> News {
        let mut news = std::mem::take(&mut self.news);
        for touched in std::mem::take(&mut self.runs) {
            let Some((image, deleted)) = window.state(&touched.run) else { continue };
            if !filter.may_show(image) {
                continue;
            }
            let Some(belongs) = filter.tells_of(image) else {
                if !deleted {
                    news.undecided.push(Arc::clone(image));
                }
                continue;
            };
            let operation = match touched.had {
                Some(false) if deleted || !belongs => continue,
                None if !belongs => continue,
                _ if deleted || !belongs => Operation::Delete,
                Some(true) if !touched.entered && is_known(image) => Operation::Update,
                _ => Operation::Insert,
            };
            let image = Arc::clone(image);
            news.runs.push(RunNews { image, operation, changed: touched.changed });
        }
        news
    }
}

static NOTHING: VecDeque<u64> = VecDeque::new();

/// The lower of the next numbers of two ascending lists.
fn lower<I: Iterator<Item = u64>>(a: &mut Peekable<I>, b: &mut Peekable<I>) -> Option<u64> {
    match (a.peek(), b.peek()) {
        (Some(first), Some(second)) if second < first => b.next(),
        (Some(first), Some(second)) => {
            if first == second {
                b.next();
            }
            a.next()
        }
        (Some(_), None) => a.next(),
        (None, _) => b.next(),
    }
}

#[cfg(test)]
impl Window {
    /// The news of a feed after a position, read in one go.
    pub fn news(
        &self,
        filter: &Filter,
        after: Position,
        horizon: Option<&Horizon>,
        is_known: impl Fn(&Image) -> bool,
    ) -> News {
        let mut reading = Reading::after(after);
        reading.advance(self, filter, horizon, usize::MAX);
        reading.finish(self, filter, is_known)
    }
}
