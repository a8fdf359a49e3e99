//! Runs whose tags the stream leaves out: they are stored out of line and did not change.
//!
//! A change of such a run that nobody knows is *untold*: it lies under a topic of its own, where the
//! feeds that are chosen by tags look as well. Whoever comes upon it reads the row. So nobody passes
//! it by, on whichever node. Meanwhile the tags are read once for the window, so that those who wait
//! are woken and the changes that follow lie where they belong.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, stream};
use moka::policy::EvictionPolicy;

use super::feeds::{Feeds, Unavailable, reach};
use super::filter::Filter;
use super::image::{Image, Operation};
use super::news::{News, RunNews};
use super::topic::Topic;
use super::window::Feed;
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::text::elements;
use crate::runs::tuple::{Cell, Tuple};

/// From this length on, as Postgres prints them, tags are remembered beyond the window. Shorter ones
/// are stored out of line only where hardly any column of the row is shorter; then they are read.
const LARGE_TAGS: usize = 128;
/// What is remembered so, in bytes: of about forty thousand runs.
const REMEMBERED_BYTES: u64 = 16 << 20;
/// What an entry takes beside its texts, about.
const ENTRY: usize = 100;
/// How many runs are asked for at once. They go together into few statements.
const AT_ONCE: usize = 256;
/// For how long the stream is waited for before those who follow a run are woken again, if it has
/// changed again.
const WAKE_AGAIN: Duration = Duration::from_millis(100);
/// The pauses after a read that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Large tags, by the internal id of their run, as the stream left them.
#[derive(Debug)]
pub(super) struct RememberedTags(moka::sync::Cache<Arc<str>, Arc<str>>);

impl Default for RememberedTags {
    fn default() -> Self {
        let weigh = |id: &Arc<str>, tags: &Arc<str>| {
            u32::try_from(ENTRY + id.len() + tags.len()).unwrap_or(u32::MAX)
        };
        let cache = moka::sync::Cache::builder()
            .max_capacity(REMEMBERED_BYTES)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        RememberedTags(cache)
    }
}

impl RememberedTags {
    /// Takes note of the tags that a change carries. What it does not carry has not changed.
    pub fn follow(&self, id: &str, row: &Tuple) {
        match row.get(Column::RunTags) {
            Cell::Text(tags) if tags.len() >= LARGE_TAGS => {
                if self.0.get(id).is_none_or(|known| *known != *tags) {
                    self.0.insert(id.into(), tags.into());
                }
            }
            Cell::Text(_) | Cell::Null => self.forget(id),
            Cell::Unchanged => {}
        }
    }

    /// The run is gone.
    pub fn forget(&self, id: &str) {
        self.0.invalidate(id);
    }

    /// Something may have changed that the stream did not bring.
    pub fn forget_all(&self) {
        self.0.invalidate_all();
    }

    pub fn get(&self, id: &str) -> Option<Arc<str>> {
        self.0.get(id)
    }

    fn learn(&self, id: &Arc<str>, tags: Cell<'_>) {
        if let Cell::Text(tags) = tags {
            self.0.insert(Arc::clone(id), tags.into());
        }
    }

    /// How many bytes are remembered.
    pub fn bytes(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }
}

/// A run in the window whose tags are to be read.
#[derive(Clone, Debug)]
pub(super) struct Untold {
    /// Its internal id.
    pub run: Arc<str>,
    pub environment: Arc<str>,
    /// The number of the change with which it became one: a later one says nothing about an earlier.
    pub since: u64,
}

impl Feed {
    /// A run whose tags are to be read, once.
    pub(super) fn next_untold(&self) -> Option<Untold> {
        if self.state.read().untold.is_empty() {
            return None;
        }
        let mut state = self.state.write();
        state.untold.pop_first().map(|(_, untold)| untold)
    }

    /// The run's last state, as long as its tags are to be read.
    fn untold_image(&self, untold: &Untold) -> Option<Arc<Image>> {
        let state = self.state.read();
        let still = state.untold_since(&untold.run) == Some(untold.since);
        state.image(&untold.run).filter(|_| still).map(Arc::clone)
    }

    /// The tags that a query showed, once the stream has passed all that it can have seen: as no
    /// change that carries tags has come, they are the run's at the head. `connections` is how many
    /// the stream had had before the query. `false` if that was in vain.
    pub(super) fn learn_tags(&self, untold: &Untold, tags: Cell<'_>, connections: u64) -> bool {
        {
            let _writer = self.writer.lock();
            let mut state = self.state.write();
            // Connected anew since: the server may have crashed and taken back what the query saw.
            let valid = state.connections == connections;
            if !valid || state.untold_since(&untold.run) != Some(untold.since) {
                return false;
            }
            let Some(image) = state.image(&untold.run) else { return false };
            let image = Arc::new(image.with_tags(tags).counted_in(&self.rendered));
            state.replace(&untold.run, image);
            self.tags.learn(&untold.run, tags);
        }
        self.wake_tagged(untold, tags);
        true
    }

    /// Wakes those who wait for runs with such tags.
    fn wake_tagged(&self, untold: &Untold, tags: Cell<'_>) {
        let Cell::Text(tags) = tags else { return };
        let topic = |tag: &String| Topic::tag(&untold.environment, tag);
        let mut topics: Vec<Topic> = elements(tags).iter().map(topic).collect();
        topics.sort_unstable();
        topics.dedup();
        topics.into_iter().for_each(|topic| self.waiters.wake(topic));
    }
}

impl Feeds {
    /// Reads the tags of untold runs, for as long as it is polled.
    pub(super) async fn tell_untold(&self) {
        let runs = stream::unfold(&self.feed, |feed| async move {
            loop {
                let more = feed.more_untold.notified();
                if let Some(untold) = feed.next_untold() {
                    return Some((untold, feed));
                }
                more.await;
            }
        });
        runs.for_each_concurrent(AT_ONCE, |untold| self.tell(untold)).await;
    }

    /// Reads the tags of a run until they are known, or it has left the window.
    async fn tell(&self, untold: Untold) {
        let mut pause = FIRST_PAUSE;
        while let Some(mut image) = self.feed.untold_image(&untold) {
            let connections = self.feed.state.read().connections;
            let Ok(read) = self.reader.row(&untold.environment, &untold.run).await else {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                continue;
            };
            metrics::counter!(crate::telemetry::TAGS_READ).increment(1);
            // Of a run that is gone nobody is told, and nothing comes any more.
            let Some(stored) = &read.run else { return };
            let tags: Option<Box<str>> = stored.row.text(Column::RunTags).map(Into::into);
            let tags = tags.as_deref().map_or(Cell::Null, Cell::Text);
            let seen = read.seen.insert_lsn;
            // It may be large, and counts for as long as it is kept.
            drop(read);
            // Whoever is woken reads the row itself as long as the window does not know the tags.
            self.feed.wake_tagged(&untold, tags);
            while !reach(&self.feed, seen, WAKE_AGAIN).await {
                let Some(now) = self.feed.untold_image(&untold) else { return };
                if !Arc::ptr_eq(&image, &now) {
                    self.feed.wake_tagged(&untold, tags);
                    image = now;
                }
            }
            if self.feed.learn_tags(&untold, tags, connections) {
                return;
            }
        }
    }

    /// The news with those runs of which only the database knows whether they are of the feed.
    pub(super) async fn decide(
        &self,
        filter: &Filter,
        mut news: News,
    ) -> Result<News, Unavailable> {
        let undecided = std::mem::take(&mut news.undecided);
        let whole = undecided.iter().map(|image| self.filled(filter.environment(), image));
        for image in try_join_all(whole).await?.into_iter().flatten() {
            news.runs.extend(entering(filter, image));
        }
        Ok(news)
    }
}

/// What is told of an untold run, once it is known whole. Whether its client has it is not known.
pub(super) fn entering(filter: &Filter, image: Arc<Image>) -> Option<RunNews> {
    let news = RunNews { image, operation: Operation::Insert, changed: ColumnSet::EXPOSED };
    filter.matches(&news.image).then_some(news)
}
