//! Held polls in this process, without any server: feeds that are registered with the index.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll as Progress, Waker};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use runwire::config::FeedArgs;
use runwire::feed::handle::Handle;
use runwire::feed::position::Position;
use runwire::feed::{Feed, FeedKey, Feeds, Outcome, Poll, Runs, View};
use runwire::lease::Lease;
use runwire::runs::columns::ColumnSet;
use runwire::runs::created;
use runwire::runs::reader::{Reader, ReaderLimits};
use runwire::runs::store::RunStore;
use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    feeds: Arc<Feeds>,
    feed: Arc<Feed>,
    epoch: u64,
    lease: Lease,
}

/// Runwire's own defaults.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    feeds: FeedArgs,
}

impl Registry {
    /// For a window of this epoch. To be called within a runtime.
    pub fn new(feed: Arc<Feed>, epoch: u64) -> Result<Registry> {
        let pool = PgPoolOptions::new().connect_lazy("postgresql://nobody@127.0.0.1:1/nowhere")?;
        let reader = Reader::new(RunStore::new(pool), ReaderLimits::default());
        let caught_up = Arc::new(AtomicBool::new(true));
        let settings = Defaults::try_parse_from(["index"])?.feeds.settings();
        let drain = CancellationToken::new();
        let feeds = Feeds::new(Arc::clone(&feed), reader, caught_up, drain, settings);
        Ok(Registry { feeds: Arc::new(feeds), feed, epoch, lease: Lease::default() })
    }

    /// Registers a feed of an environment by a poll that is held at the window's head.
    pub fn register(&self, environment: &str, runs: Runs) -> Registration {
        let feed = FeedKey::new(environment.into(), runs);
        let columns = ColumnSet::EXPOSED;
        let head = self.feed.head();
        let mut poll = Poll {
            handle: Handle::issue(self.epoch, feed.digest(columns), head).encode().into(),
            view: View { feed, columns, old_statuses: false },
            after: Position::before(head),
            hold_until: Some(Instant::now() + Duration::from_secs(3_600)),
            throttle: Duration::ZERO,
            lease: self.lease.clone(),
        };
        let feeds = Arc::clone(&self.feeds);
        Registration(Box::pin(async move { feeds.poll(&mut poll).await }))
    }
}

/// The list of the runs that carry a tag.
pub fn tagged(tag: &str) -> Runs {
    Runs::Tagged { tags: [tag.into()].into(), window: created::DEFAULT }
}
