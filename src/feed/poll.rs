//! Following a feed from an offset: what is new there, at once or when something comes
//! (`runs-and-auth.md`, 6 and 11).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context};
use std::time::{Duration, SystemTime};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::body::Body;
use super::feeds::{Answer, Feeds, Outcome, View};
use super::filter::Filter;
use super::handle::{Handle, Horizon};
use super::image::Image;
use super::news::{News, Reading, STRETCH};
use super::pace;
use super::position::Position;
use super::waiters::{Waiter, Woken};
use crate::lease::Lease;
use crate::postgres::Lsn;
use crate::runs::columns::Column;
use crate::runs::created::timestamp_text;

/// A request for what came after an offset.
#[derive(Debug)]
pub struct Poll {
    /// What the client sees of which feed.
    pub view: View,
    /// The client's handle, as it sent it.
    pub handle: Box<str>,
    /// The client's offset.
    pub after: Position,
    /// When to answer that nothing is new; `None` answers at once.
    pub hold_until: Option<Instant>,
    /// The shortest time between two answers that something changed.
    pub throttle: Duration,
    /// Nothing is told once this is over.
    pub lease: Lease,
}

/// A client's place in its feed, followed from answer to answer.
#[derive(Debug)]
pub struct Subscription {
    feeds: Arc<Feeds>,
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

impl Poll {
    /// The shortest time between two answers; who only looks knows no ticks.
    fn pace(&self) -> Duration {
        self.hold_until.map_or(Duration::ZERO, |_| self.throttle)
    }
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
    Unavailable,
}

impl Feeds {
    /// Answers with what came after the client's offset, at once or when something comes.
    ///
    /// The question is lent, since each of the futures that a poll is held in would have room for it.
    pub async fn poll(self: &Arc<Self>, poll: &mut Poll) -> Outcome {
        if poll.after.is_part() {
            return match self.chunks.get(&poll.view, &poll.handle, poll.after) {
                Some(answer) => Outcome::Answer(answer),
                None => self.refetch(&poll.view, &poll.handle, poll.after),
            };
        }
        let Some(mut subscription) = self.subscribe(poll).await else {
            return self.refetch(&poll.view, &poll.handle, poll.after);
        };
        let (body, committed_at) = match subscription.next(poll).await {
            Next::News(update) => (update.body, Some(update.committed_at)),
            Next::Nothing => (Body::up_to_date(), None),
            Next::TooOld => return self.refetch(&poll.view, &poll.handle, poll.after),
            Next::Unavailable => return Outcome::Unavailable,
            Next::Over => return Outcome::Over(poll.lease.clone()),
        };
        // What is seen here is never below what the client has.
        let offset = subscription.seen();
        let handle = std::mem::take(&mut poll.handle).into();
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
    pub async fn subscribe(self: &Arc<Self>, poll: &Poll) -> Option<Subscription> {
        let subscription = self.take_up(poll)?;
        self.is_reachable(poll.after).await.then_some(subscription)
    }

    fn take_up(self: &Arc<Self>, poll: &Poll) -> Option<Subscription> {
        let handle = Handle::decode(&poll.handle)?;
        let epoch = self.feed.state.read().epoch;
        let mine = epoch == Some(handle.epoch)
            && handle.feed == poll.view.feed.digest(poll.view.columns)
            && handle.not_before.is_none();
        if !mine {
            return None;
        }
        let floor = handle.floor.map(|floor| self.floor_to_follow(floor)).unwrap_or_default();
        let filter = self.filter(&poll.view.feed, floor);
        let topic = self.feed.quietest(&filter);
        let waiter = self.feed.waiters.join(topic, poll.lease.clone());
        let follow = Follow {
            filter,
            epoch: handle.epoch,
            start: handle.start,
            generation: 0,
            seen: poll.after,
            horizon: handle.horizon.filter(|h| poll.after.lsn < h.lsn).map(Box::new),
            cut: handle.cut.map(|cut| timestamp_text(cut).into()),
        };
        Some(Subscription { feeds: Arc::clone(self), follow, waiter })
    }
}

impl Subscription {
    /// Everything up to here has been told.
    pub fn seen(&self) -> Position {
        self.follow.seen
    }

    /// Waits for the poll's news until it has been held for long enough. Without a hold it only looks,
    /// and ticks mean nothing.
    ///
    /// News that wait for a tick at the end stay untold, and are news again for who comes back. A
    /// completion is waited for beyond the end: its client may listen to nothing that comes after.
    pub async fn next(&mut self, poll: &Poll) -> Next {
        let mut over = poll.hold_until.is_none();
        let mut untold_since = None;
        loop {
            let woken = self.waiter.woken();
            if self.waiter.is_over() {
                return Next::Over;
            }
            // Boxed, so that it takes no memory while the poll is held.
            let step = self.follow.step(&self.feeds, &self.waiter, poll, &mut untold_since);
            let (due, folds) = match Box::pin(step).await {
                // It may have waited for the database.
                Step::End(_) if self.waiter.is_over() => return Next::Over,
                Step::End(next) => return next,
                Step::Again => continue,
                Step::Untold { due, folds } => (Some(due), folds),
                Step::Nothing => (None, false),
            };
            // Looked at after `woken` began, so that [`Feeds::end_holds`] is heard.
            let drained = self.feeds.drain.is_cancelled();
            over |= drained;
            if over && (drained || !folds) {
                return Next::Nothing;
            }
            // The end is looked at once more: the head that it finds keeps a quiet feed's offset
            // above the floor.
            let end = poll.hold_until.filter(|_| !over);
            let Some(until) = due.into_iter().chain(end).min() else { return Next::Nothing };
            // One timer for both, since it is most of what a held poll takes.
            let time = tokio::time::sleep_until(until);
            let by_time = Wait { woken, time }.await;
            over |= by_time && poll.hold_until.is_some_and(|end| Instant::now() >= end);
        }
    }
}

pin_project! {
    /// Waits for a wake or a time, and tells whether it was the time.
    struct Wait<'a> {
        woken: Woken<'a>,
        #[pin]
        time: Sleep,
    }
}

impl Future for Wait<'_> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> task::Poll<bool> {
        let this = self.project();
        if Pin::new(this.woken).poll(context).is_ready() {
            return task::Poll::Ready(false);
        }
        this.time.poll(context).map(|()| true)
    }
}

/// What a look comes to.
enum Step {
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

impl Follow {
    /// Looks for news and tells of those that are due.
    async fn step(
        &mut self,
        feeds: &Feeds,
        waiter: &Waiter,
        poll: &Poll,
        untold_since: &mut Option<Instant>,
    ) -> Step {
        let (head, news) = match self.look(feeds, waiter).await {
            Look::TooOld => return Step::End(Next::TooOld),
            Look::Unavailable => return Step::End(Next::Unavailable),
            Look::Nothing => return Step::Nothing,
            Look::News(head, news) => (head, news),
        };
        let (throttle, fold) = (poll.pace(), self.fold(feeds));
        let wait = pace::due_in(&news, throttle, fold, SystemTime::now());
        // However a clock is set back, news wait no longer than they ever may.
        let since = untold_since.get_or_insert_with(Instant::now);
        if !wait.is_zero() && since.elapsed() < throttle + fold {
            return Step::Untold { due: Instant::now() + wait, folds: news.just_completed };
        }
        waiter.rest();
        let next = self.deliver(feeds, &poll.view, head, news).await;
        *untold_since = None;
        next.map_or(Step::Again, Step::End)
    }

    /// For how long a completion waits: only the client of a single run stops listening at it
    /// (`runs-and-auth.md`, 8.3).
    fn fold(&self, feeds: &Feeds) -> Duration {
        if self.filter.is_of_one() { feeds.settings.completion_fold } else { Duration::ZERO }
    }

    /// Makes the body and moves on to the head. `None` if there is nothing in the news for this
    /// client.
    async fn deliver(
        &mut self,
        feeds: &Feeds,
        view: &View,
        head: Position,
        news: News,
    ) -> Option<Next> {
        let committed_at = news.last_commit;
        if news.runs.len() > feeds.settings.list_max {
            // More than a list holds: the client is better served by a new one.
            return Some(Next::TooOld);
        }
        let parts = match feeds.messages(view, news.runs).await {
            Ok(parts) => parts,
            Err(_) => return Some(Next::Unavailable),
        };
        if parts.is_empty() {
            self.pass(head);
            return None;
        }
        let bodies = &feeds.feed.bodies;
        if bodies.room().is_err() {
            return Some(Next::Unavailable);
        }
        let body = bodies.of(&parts);
        self.pass(head);
        Some(Next::News(Update { body, committed_at }))
    }

    /// Reads what came after `seen`, which moves to the head only where there was nothing. Between
    /// two stretches of a long reading the window is free for others.
    async fn look(&mut self, feeds: &Feeds, waiter: &Waiter) -> Look {
        let mut reading = Reading::after(self.seen);
        let (head, news) = loop {
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
                    // What has left the window since the last look was not of this feed if none of
                    // it lay where this waits: a change of the feed lies under each of its topics.
                    let same = self.generation == state.generation;
                    let untold = self.filter.untold.is_some();
                    let lost_untold = untold && state.untold_evicted >= self.seen.lsn;
                    if !same || lost_untold || !waiter.lost_nothing_after(self.seen) {
                        return Look::TooOld;
                    }
                    reading = Reading::after(floor);
                }
                self.generation = state.generation;
                let head = self.seen.max(Position::before(state.head));
                let horizon = self.horizon.as_deref();
                if reading.advance(&state, &self.filter, horizon, STRETCH) {
                    let news = reading.finish(&state, &self.filter, |image| self.has(image));
                    break (head, news);
                }
            }
            tokio::task::yield_now().await;
        };
        let news = if news.undecided.is_empty() {
            news
        } else if news.undecided.len() > feeds.settings.list_max {
            return Look::TooOld;
        } else if let Ok(news) = feeds.decide(&self.filter, news).await {
            news
        } else {
            return Look::Unavailable;
        };
        if news.runs.is_empty() {
            self.pass(head);
            return Look::Nothing;
        }
        Look::News(head, news)
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
