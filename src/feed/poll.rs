//! Following a feed from an offset: what is new there, at once or when something comes
//! (`runs-and-auth.md`, 6 and 11).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::body::Body;
use super::feeds::{Answer, Feeds, Outcome, View};
use super::filter::Filter;
use super::follow::{Follow, Next, Step};
use super::handle::Handle;
use super::position::Position;
use super::waiters::{Waiter, Woken};
use crate::lease::Lease;

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

impl Poll {
    /// The shortest time between two answers; who only looks knows no ticks.
    fn pace(&self) -> Duration {
        self.hold_until.map_or(Duration::ZERO, |_| self.throttle)
    }
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
        let filter = Filter::new(&poll.view.feed, floor);
        let topic = self.feed.quietest(&filter);
        let waiter = self.feed.waiters.join(topic, poll.lease.clone());
        let follow = Follow::from(handle, filter, poll.after);
        Some(Subscription { feeds: Arc::clone(self), follow, waiter })
    }
}

impl Subscription {
    /// Everything up to here has been told.
    pub fn seen(&self) -> Position {
        self.follow.seen()
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
            let Subscription { feeds, follow, waiter } = &mut *self;
            let woken = waiter.woken();
            if waiter.is_over() {
                return Next::Over;
            }
            let (view, pace) = (&poll.view, poll.pace());
            let step = match follow.step_at_once(feeds, waiter, view, pace, &mut untold_since) {
                Some(step) => step,
                // Boxed, so that it takes no memory while the poll is held.
                None => Box::pin(follow.step(feeds, waiter, view, pace, &mut untold_since)).await,
            };
            let (due, folds) = match step {
                // It may have waited for the database.
                Step::End(_) if waiter.is_over() => return Next::Over,
                Step::End(next) => return next,
                Step::Again => continue,
                Step::Untold { due, folds } => (Some(due), folds),
                Step::Nothing => (None, false),
            };
            // Looked at after `woken` began, so that [`Feeds::end_holds`] is heard.
            let drained = feeds.drain.is_cancelled();
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
