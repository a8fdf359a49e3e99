//! What a request asks for (`runs-and-auth.md`, 3.2).

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::handle::feed_digest;
use super::topic::Topic;
use crate::runs::columns::ColumnSet;

/// What a request asks for, within the environment that its credential opens. A clone shares what is
/// worked out of it.
#[derive(Clone, Debug)]
pub struct FeedKey(Arc<Inner>);

/// Small, since most feeds are of a run with one client, and there are many.
#[derive(Debug)]
struct Inner {
    environment: Arc<str>,
    runs: Runs,
    /// Those of its runs, and last that of untold changes if it is chosen by tags.
    topics: OnceLock<Box<[Topic]>>,
    /// The digest with all columns; 0 while it is not known.
    digest: AtomicU64,
}

/// Some of an environment's runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Runs {
    /// The run of this friendly id.
    One(Arc<str>),
    /// The runs of the batch with this internal id.
    OfBatch(Arc<str>),
    /// The runs that carry all of the tags and were created within the window before the feed began.
    Tagged {
        /// Sorted, without repetitions. None at all names every run.
        tags: Arc<[Box<str>]>,
        /// How far back the list reaches.
        window: Duration,
    },
}

impl FeedKey {
    /// Of these runs of the environment with this id.
    pub fn new(environment: Arc<str>, runs: Runs) -> Self {
        let (topics, digest) = (OnceLock::new(), AtomicU64::new(0));
        FeedKey(Arc::new(Inner { environment, runs, topics, digest }))
    }

    /// The feed of one run.
    pub fn run(environment: Arc<str>, friendly_id: Arc<str>) -> Self {
        FeedKey::new(environment, Runs::One(friendly_id))
    }

    /// The environment's id.
    pub fn environment(&self) -> &Arc<str> {
        &self.0.environment
    }

    /// Which of its runs.
    pub fn runs(&self) -> &Runs {
        &self.0.runs
    }

    /// Names the feed and its columns in handles, on every node alike.
    pub fn digest(&self, columns: ColumnSet) -> u64 {
        if columns != ColumnSet::EXPOSED {
            return self.digest_with(columns);
        }
        let known = self.0.digest.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        let digest = self.digest_with(columns);
        self.0.digest.store(digest, Ordering::Relaxed);
        digest
    }

    fn digest_with(&self, columns: ColumnSet) -> u64 {
        let environment = &**self.environment();
        match self.runs() {
            Runs::One(id) => feed_digest(&["run", environment, id], columns.bits()),
            Runs::OfBatch(id) => feed_digest(&["batch", environment, id], columns.bits()),
            Runs::Tagged { tags, window } => {
                let window = window.as_secs().to_string();
                let mut parts = vec!["list", environment, &window];
                parts.extend(tags.iter().map(AsRef::as_ref));
                feed_digest(&parts, columns.bits())
            }
        }
    }

    /// A run of the feed is found under each of these; there is one at least.
    pub(super) fn topics(&self) -> &[Topic] {
        let topics = self.numbered();
        &topics[..topics.len() - usize::from(self.is_by_tags())]
    }

    /// Where changes lie of which the stream does not say whether they concern a feed that is chosen
    /// by tags.
    pub(super) fn untold(&self) -> Option<Topic> {
        self.numbered().last().copied().filter(|_| self.is_by_tags())
    }

    fn is_by_tags(&self) -> bool {
        matches!(self.runs(), Runs::Tagged { tags, .. } if !tags.is_empty())
    }

    fn numbered(&self) -> &[Topic] {
        self.0.topics.get_or_init(|| {
            let environment = &**self.environment();
            let only = |topic| Box::new([topic]);
            match self.runs() {
                Runs::One(id) => only(Topic::run(environment, id)),
                Runs::OfBatch(id) => only(Topic::batch(environment, id)),
                Runs::Tagged { tags, .. } if tags.is_empty() => {
                    only(Topic::environment(environment))
                }
                Runs::Tagged { tags, .. } => {
                    let named = tags.iter().map(|tag| Topic::tag(environment, tag));
                    named.chain([Topic::untold(environment)]).collect()
                }
            }
        })
    }
}

impl PartialEq for FeedKey {
    fn eq(&self, other: &FeedKey) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.environment(), self.runs()) == (other.environment(), other.runs())
    }
}

impl Eq for FeedKey {}

impl Hash for FeedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.environment(), self.runs()).hash(state);
    }
}
