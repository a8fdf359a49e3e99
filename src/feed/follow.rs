//! One client's way through its feed: what it has been told, and what is next.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::body::{Body, Part};
use super::feeds::{Feeds, View, lacks};
use super::filter::Filter;
use super::handle::{Handle, Horizon};
use super::image::Image;
use super::news::{News, Reading, STRETCH};
use super::pace;
use super::position::Position;
use super::waiters::Waiter;
use crate::postgres::Lsn;
use crate::runs::columns::Column;
use crate::runs::created::timestamp_text;

/// What a client comes upon next.
#[derive(Debug)]
pub enum Next {
    /// News.
    News(Update),
    /// Nothing, until the time that was given.
    Nothing,
    /// The window does not hold what came after the client's offset.
    TooOld,
    /// The database is needed and does not answer.
    Unavailable,
    /// The lease is over.
    Over,
}

/// News that are ready to be sent.
#[derive(Debug)]
pub struct Update {
    /// A complete body.
    pub body: Body,
    /// When the newest change in it committed, in microseconds since 1970.
    pub committed_at: i64,
}

/// Where a client stands in its feed, and what it may have.
#[derive(Debug)]
pub(super) struct Follow {
    filter: Filter,
    /// The history that its positions belong to.
    epoch: u64,
    /// See [`Handle::start`].
    start: Lsn,
    /// How often the window had been emptied when it was last looked at.
    generation: u64,
    /// Everything up to here has been looked at.
    seen: Position,
    horizon: Option<Box<Horizon>>,
    /// See [`Handle::cut`].
    cut: Option<Box<str>>,
}

/// What a look comes to.
pub(super) enum Step {
    End(Next),
    /// There were news, with nothing in them for this client.
    Again,
    /// There are news that wait until then. `folds`: for what follows a completion.
    Untold {
        due: Instant,
        folds: bool,
    },
    Nothing,
}

/// What a reading of the window comes to.
enum Read {
    /// Everything up to this head, of which these are news.
    News(Position, News),
    /// There is more to read.
    More,
    TooOld,
}

impl Follow {
    /// From an offset on, under this handle.
    pub fn from(handle: Handle, filter: Filter, after: Position) -> Follow {
        Follow {
            filter,
            epoch: handle.epoch,
            start: handle.start,
            generation: 0,
            seen: after,
            horizon: handle.horizon.filter(|h| after.lsn < h.lsn).map(Box::new),
            cut: handle.cut.map(|cut| timestamp_text(cut).into()),
        }
    }

    /// Everything up to here has been told.
    pub fn seen(&self) -> Position {
        self.seen
    }

    /// Looks for news and tells of those that are due. `None` where that takes a wait: nothing has been
    /// told then, and [`Follow::step`] does it. To be asked first: almost always all is at hand, while
    /// what may wait has to be boxed.
    pub fn step_at_once(
        &mut self,
        feeds: &Feeds,
        waiter: &Waiter,
        view: &View,
        throttle: Duration,
        untold_since: &mut Option<Instant>,
    ) -> Option<Step> {
        match self.read(feeds, waiter, &mut Reading::after(self.seen)) {
            Read::News(head, news) if news.undecided.is_empty() => {
                self.judge(feeds, view, throttle, head, news, untold_since).ok()
            }
            Read::News(..) | Read::More => None,
            Read::TooOld => Some(Step::End(Next::TooOld)),
        }
    }

    /// Looks for news and tells of those that are due.
    pub async fn step(
        &mut self,
        feeds: &Feeds,
        waiter: &Waiter,
        view: &View,
        throttle: Duration,
        untold_since: &mut Option<Instant>,
    ) -> Step {
        let mut reading = Reading::after(self.seen);
        let (head, mut news) = loop {
            match self.read(feeds, waiter, &mut reading) {
                Read::News(head, news) => break (head, news),
                // Between two stretches of a long reading the window is free for others.
                Read::More => tokio::task::yield_now().await,
                Read::TooOld => return Step::End(Next::TooOld),
            }
        };
        if news.undecided.len() > feeds.settings.list_max {
            return Step::End(Next::TooOld);
        }
        if !news.undecided.is_empty() {
            news = match feeds.decide(&self.filter, news).await {
                Ok(news) => news,
                Err(_) => return Step::End(Next::Unavailable),
            };
        }
        let committed_at = news.last_commit;
        let parts = match self.judge(feeds, view, throttle, head, news, untold_since) {
            Ok(step) => return step,
            Err(parts) => parts,
        };
        waiter.rest();
        *untold_since = None;
        match feeds.filled_parts(view, parts).await {
            Ok(parts) => self.tell(feeds, head, &parts, committed_at),
            Err(_) => Step::End(Next::Unavailable),
        }
    }

    /// Tells of the news if they are due. Gives them back where a row is not at hand.
    fn judge(
        &mut self,
        feeds: &Feeds,
        view: &View,
        throttle: Duration,
        head: Position,
        news: News,
        untold_since: &mut Option<Instant>,
    ) -> Result<Step, Vec<Part>> {
        if news.runs.is_empty() {
            self.pass(head);
            return Ok(Step::Nothing);
        }
        if let Some(untold) = self.untold(feeds, throttle, &news, untold_since) {
            return Ok(untold);
        }
        if news.runs.len() > feeds.settings.list_max {
            // More than a list holds: the client is better served by a new one.
            return Ok(Step::End(Next::TooOld));
        }
        let committed_at = news.last_commit;
        let parts = Feeds::messages(view, news.runs);
        if parts.iter().any(lacks) {
            return Err(parts);
        }
        *untold_since = None;
        Ok(self.tell(feeds, head, &parts, committed_at))
    }

    /// Reads what comes after `reading`, whose beginning moves on only where there was nothing.
    fn read(&mut self, feeds: &Feeds, waiter: &Waiter, reading: &mut Reading) -> Read {
        let state = feeds.feed.state.read();
        // The server may have crashed and given the ids that the horizon names out again,
        // also while the poll was held.
        let void = self.horizon.is_some() && self.start < state.resumed_at;
        if void || state.epoch != Some(self.epoch) {
            return Read::TooOld;
        }
        let floor = Position::before(state.floor);
        if reading.next() < floor {
            // What has left the window since the last look was not of this feed if none of
            // it lay where this waits: a change of the feed lies under each of its topics.
            let same = self.generation == state.generation;
            let untold = self.filter.untold().is_some();
            let lost_untold = untold && state.untold_evicted >= self.seen.lsn;
            if !same || lost_untold || !waiter.lost_nothing_after(self.seen) {
                return Read::TooOld;
            }
            *reading = Reading::after(floor);
        }
        self.generation = state.generation;
        let head = self.seen.max(Position::before(state.head));
        if !reading.advance(&state, &self.filter, self.horizon.as_deref(), STRETCH) {
            return Read::More;
        }
        Read::News(head, reading.finish(&state, &self.filter, |image| self.has(image)))
    }

    /// Whether the news wait for a tick, or for what follows a completion.
    fn untold(
        &self,
        feeds: &Feeds,
        throttle: Duration,
        news: &News,
        untold_since: &mut Option<Instant>,
    ) -> Option<Step> {
        let fold = self.fold(feeds);
        let wait = pace::due_in(news, throttle, fold, SystemTime::now);
        if wait.is_zero() {
            return None;
        }
        // However a clock is set back, news wait no longer than they ever may.
        let now = Instant::now();
        let since = *untold_since.get_or_insert(now);
        let waits = now - since < throttle + fold;
        waits.then_some(Step::Untold { due: now + wait, folds: news.just_completed })
    }

    /// For how long a completion waits: only the client of a single run stops listening at it
    /// (`runs-and-auth.md`, 8.3).
    fn fold(&self, feeds: &Feeds) -> Duration {
        if self.filter.is_of_one() { feeds.settings.completion_fold } else { Duration::ZERO }
    }

    /// Makes the body and moves on to the head.
    fn tell(&mut self, feeds: &Feeds, head: Position, parts: &[Part], committed_at: i64) -> Step {
        let bodies = &feeds.feed.bodies;
        if parts.is_empty() {
            self.pass(head);
            return Step::Again;
        }
        if bodies.room().is_err() {
            return Step::End(Next::Unavailable);
        }
        let body = bodies.of(parts);
        self.pass(head);
        Step::End(Next::News(Update { body, committed_at }))
    }

    /// Everything up to there has been told.
    fn pass(&mut self, head: Position) {
        self.seen = self.seen.max(head);
        if self.horizon.as_ref().is_some_and(|horizon| self.seen.lsn >= horizon.lsn) {
            self.horizon = None;
        }
    }

    /// Whether the client can have a run that was in the feed all along.
    fn has(&self, image: &Image) -> bool {
        let created = image.text(Column::CreatedAt);
        self.cut.as_ref().is_none_or(|cut| created.is_some_and(|created| *created > **cut))
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
