//! Held polls in this process, without any server: feeds that are registered with the index.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll as Progress, Waker};
use std::time::Duration;

use anyhow::Result;
use runwire::feed::handle::{Handle, feed_digest};
use runwire::feed::position::Position;
use runwire::feed::{Feed, Outcome, Poll, RunFeeds, RunKey};
use runwire::runs::columns::ColumnSet;
use runwire::runs::store::RunStore;
use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a registered feed shows.
#[derive(Clone, Debug)]
pub enum Shown {
    /// One run, by its friendly id.
    Run(String),
    /// The runs that carry a tag.
    Tag(String),
}

/// A held poll.
pub struct Registration(Pin<Box<dyn Future<Output = Outcome>>>);

impl Registration {
    /// Whether the poll has its answer.
    pub fn is_answered(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(self.0.as_mut().poll(&mut context), Progress::Ready(Outcome::Answer(_)))
    }
}

/// Makes held polls on a window. Nothing they do needs the database, which is not there.
pub struct Registry {
    feeds: Arc<RunFeeds>,
    feed: Arc<Feed>,
    epoch: u64,
}

impl Registry {
    /// For a window of this epoch. To be called within a runtime.
    pub fn new(feed: Arc<Feed>, epoch: u64) -> Result<Registry> {
        let pool = PgPoolOptions::new().connect_lazy("postgresql://nobody@127.0.0.1:1/nowhere")?;
        let caught_up = Arc::new(AtomicBool::new(true));
        let drain = CancellationToken::new();
        let feeds = RunFeeds::new(Arc::clone(&feed), RunStore::new(pool), caught_up, drain);
        Ok(Registry { feeds: Arc::new(feeds), feed, epoch })
    }

    /// Registers a feed of an environment by a poll that is held at the window's head.
    pub fn register(&self, environment: &str, shown: &Shown) -> Registration {
        let (Shown::Run(name) | Shown::Tag(name)) = shown;
        let run = RunKey { environment: environment.into(), friendly_id: name.as_str().into() };
        let columns = ColumnSet::EXPOSED;
        let digest = feed_digest(&["run", environment, name], columns.bits());
        let head = self.feed.head();
        let poll = Poll {
            run,
            columns,
            old_statuses: false,
            handle: Handle::issue(self.epoch, digest, head).encode(),
            after: Position::before(head),
            hold_until: Some(Instant::now() + Duration::from_secs(3_600)),
        };
        let feeds = Arc::clone(&self.feeds);
        Registration(Box::pin(async move { feeds.poll(poll).await }))
    }
}
