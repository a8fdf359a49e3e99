//! Following a feed from an offset: what is new there, at once or when something comes
//! (`runs-and-auth.md`, 6 and 11).

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::body::Body;
use super::feeds::{Answer, Feeds, Outcome, View};
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

/// A request for what came after an offset.
#[derive(Debug)]
pub struct Poll {
    /// What the client sees of which feed.
    pub view: View,
    /// The client's handle, as it sent it.
    pub handle: String,
    /// The client's offset.
    pub after: Position,
    /// When to answer that nothing is new; `None` answers at once.
    pub hold_until: Option<Instant>,
    /// The shortest time between two answers that something changed.
    pub throttle: Duration,
}

/// A client's place in its feed, followed from answer to answer.
#[derive(Debug)]
pub struct Subscription<'a> {
    feeds: &'a Feeds,
    follow: Follow,
    waiter: Waiter,
}

/// What a subscription comes upon next.
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
}

/// News that are ready to be sent.
#[derive(Debug)]
pub struct Update {
    /// A complete body.
    pub body: Body,
    /// When the newest change in it committed, in microseconds since 1970.
    pub committed_at: i64,
}

#[derive(Debug)]
struct Follow {
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

enum Look {
    News(Position, News),
    Nothing,
    TooOld,
}

impl Feeds {
    /// Answers with what came after the client's offset, at once or when something comes.
    pub async fn poll(&self, poll: Poll) -> Outcome {
        if poll.after.is_part() {
            return match self.chunks.get(&poll.view, &poll.handle, poll.after) {
                Some(answer) => Outcome::Answer(answer),
                None => self.refetch(&poll.view, &poll.handle, poll.after),
            };
        }
        let Some(mut subscription) = Box::pin(self.subscribe(&poll)).await else {
            return self.refetch(&poll.view, &poll.handle, poll.after);
        };
        let next = subscription.next(&poll.view, poll.throttle, poll.hold_until).await;
        let (body, committed_at) = match next {
            Next::News(update) => (update.body, Some(update.committed_at)),
            Next::Nothing => (Body::up_to_date(), None),
            Next::TooOld => return self.refetch(&poll.view, &poll.handle, poll.after),
            Next::Unavailable => return Outcome::Unavailable,
        };
        // What is seen here is never below what the client has.
        let offset = subscription.seen();
        let handle = poll.handle;
        Outcome::Answer(Answer {
            handle,
            offset,
            body,
            complete: true,
            truncated: false,
            committed_at,
        })
    }

    /// Takes up a feed where the client stands. `None` if that place is not of this feed, or can
    /// never be reached.
    pub async fn subscribe(&self, poll: &Poll) -> Option<Subscription<'_>> {
        let handle = Handle::decode(&poll.handle)?;
        let epoch = self.feed.state.read().epoch;
        let mine = epoch == Some(handle.epoch)
            && handle.feed == poll.view.feed.digest(poll.view.columns)
            && handle.not_before.is_none();
        if !mine {
            return None;
        }
        let filter = self.filter(&poll.view.feed, handle.floor.unwrap_or_default());
        let waiter = self.feed.waiters.join(self.feed.quietest(&filter));
        if !self.is_reachable(poll.after).await {
            return None;
        }
        let follow = Follow {
            filter,
            epoch: handle.epoch,
            start: handle.start,
            generation: 0,
            seen: poll.after,
            horizon: handle.horizon.filter(|h| poll.after.lsn < h.lsn).map(Box::new),
            cut: handle.cut.map(|cut| timestamp_text(cut).into()),
        };
        Some(Subscription { feeds: self, follow, waiter })
    }
}

impl Subscription<'_> {
    /// Everything up to here has been told.
    pub fn seen(&self) -> Position {
        self.follow.seen
    }

    /// Waits for news; without `until` only looks.
    pub async fn next(&mut self, view: &View, throttle: Duration, until: Option<Instant>) -> Next {
        let mut last = until.is_none();
        // Whether nothing has touched the feed since the last look.
        let mut quiet = false;
        let mut folded = false;
        loop {
            let wakes = self.waiter.wakes();
            let woken = self.waiter.woken();
            let mut due = None;
            match Box::pin(self.follow.look(self.feeds, quiet)).await {
                Look::TooOld => return Next::TooOld,
                Look::Nothing => {}
                Look::News(head, news) => {
                    let fold = if folded { Duration::ZERO } else { self.fold() };
                    let wait = pace::due_in(&news, throttle, fold, SystemTime::now());
                    if last || wait.is_zero() {
                        match self.deliver(view, head, news).await {
                            Some(next) => return next,
                            None => continue,
                        }
                    }
                    folded = news.just_completed;
                    due = Some(Instant::now() + wait);
                }
            }
            let Some(until) = until.filter(|_| !last) else { return Next::Nothing };
            // The end is looked at once more: the head that it finds keeps a quiet feed's offset
            // above the floor.
            (quiet, last) = tokio::select! {
                biased;
                () = woken => (false, false),
                () = sleep_until(due) => (false, false),
                () = tokio::time::sleep_until(until) => (self.waiter.wakes() == wakes, true),
                () = self.feeds.drain.cancelled() => (self.waiter.wakes() == wakes, true),
            };
        }
    }

    /// For how long a completion waits: only the client of a single run stops listening at it
    /// (`runs-and-auth.md`, 8.3).
    fn fold(&self) -> Duration {
        if self.follow.filter.is_of_one() {
            self.feeds.settings.completion_fold
        } else {
            Duration::ZERO
        }
    }

    /// Makes the body and moves on to the head. `None` if there is nothing in the news for this
    /// client.
    async fn deliver(&mut self, view: &View, head: Position, news: News) -> Option<Next> {
        let committed_at = news.last_commit;
        if news.runs.len() > self.feeds.settings.list_max {
            // More than a list holds: the client is better served by a new one.
            return Some(Next::TooOld);
        }
        let parts = match Box::pin(self.feeds.messages(view, news.runs)).await {
            Ok(parts) => parts,
            Err(_) => return Some(Next::Unavailable),
        };
        if parts.is_empty() {
            self.follow.pass(head);
            return None;
        }
        let bodies = &self.feeds.feed.bodies;
        if bodies.room().is_err() {
            return Some(Next::Unavailable);
        }
        let body = bodies.of(&parts);
        self.follow.pass(head);
        Some(Next::News(Update { body, committed_at }))
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Follow {
    /// Reads what came after `seen`, which moves to the head only where there was nothing. Between
    /// two stretches of a long reading the window is free for others.
    async fn look(&mut self, feeds: &Feeds, quiet: bool) -> Look {
        let mut reading = Reading::after(self.seen);
        loop {
            {
                let state = feeds.feed.state.read();
                // The server may have crashed and given the ids that the horizon names out again,
                // also while the poll was held.
                let void = self.horizon.is_some() && self.start < state.resumed_at;
                if void || state.epoch != Some(self.epoch) {
                    return Look::TooOld;
                }
                let floor = Position::before(state.floor);
                if reading.next() < floor {
                    // What has left the window meanwhile was not of this feed, or it would have
                    // been woken.
                    if !(quiet && self.generation == state.generation) {
                        return Look::TooOld;
                    }
                    reading = Reading::after(floor);
                }
                self.generation = state.generation;
                let head = self.seen.max(Position::before(state.head));
                let horizon = self.horizon.as_deref();
                if reading.advance(&state, &self.filter, horizon, STRETCH) {
                    let news = reading.finish(&state, &self.filter, |image| self.has(image));
                    drop(state);
                    if news.runs.is_empty() {
                        self.pass(head);
                        return Look::Nothing;
                    }
                    return Look::News(head, news);
                }
            }
            tokio::task::yield_now().await;
        }
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
