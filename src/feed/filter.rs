//! Which runs a feed is of (`runs-and-auth.md`, 10.1).

use std::sync::Arc;
use std::time::Duration;

use super::handle::feed_digest;
use super::image::Image;
use super::topic::{Topic, Topics};
use super::window::{Before, Record};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::text::has_element;

/// What a request asks for, within the environment that its credential opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FeedKey {
    /// The environment's id.
    pub environment: Arc<str>,
    /// Which of its runs.
    pub runs: Runs,
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
    /// The feed of one run.
    pub fn run(environment: Arc<str>, friendly_id: Arc<str>) -> Self {
        FeedKey { environment, runs: Runs::One(friendly_id) }
    }

    /// Names the feed and its columns in handles, on every node alike.
    pub fn digest(&self, columns: ColumnSet) -> u64 {
        let environment = &*self.environment;
        match &self.runs {
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
}

/// A feed made ready for matching.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    environment: Arc<str>,
    runs: Selected,
    /// How far back a list reaches; other feeds reach back to the beginning.
    floor: Floor,
    /// A run of the feed is found under each of these.
    pub topics: Box<[Topic]>,
    /// Where changes lie of which the stream does not say whether they concern a feed that is chosen
    /// by tags.
    pub untold: Option<Topic>,
}

#[derive(Clone, Debug)]
enum Selected {
    One(Arc<str>),
    OfBatch(Arc<str>),
    /// The feed's tags, as the request has them.
    Tagged(Arc<[Box<str>]>),
}

impl Filter {
    /// `floor` bounds lists alone.
    pub fn new(key: &FeedKey, floor: Floor, numbers: &Topics) -> Self {
        let environment = &*key.environment;
        let (runs, topics) = match &key.runs {
            Runs::One(id) => (Selected::One(Arc::clone(id)), vec![numbers.run(environment, id)]),
            Runs::OfBatch(id) => {
                (Selected::OfBatch(Arc::clone(id)), vec![numbers.batch(environment, id)])
            }
            Runs::Tagged { tags, .. } => {
                let named = tags.iter().map(|tag| numbers.tag(environment, tag));
                let named: Vec<Topic> = if tags.is_empty() {
                    vec![numbers.environment(environment)]
                } else {
                    named.collect()
                };
                (Selected::Tagged(Arc::clone(tags)), named)
            }
        };
        let floor = if matches!(runs, Selected::Tagged(_)) { floor } else { Floor::default() };
        let by_tags = matches!(&runs, Selected::Tagged(tags) if !tags.is_empty());
        let untold = by_tags.then(|| numbers.untold(environment));
        let environment = Arc::clone(&key.environment);
        Filter { environment, runs, floor, topics: topics.into(), untold }
    }

    /// The environment that it belongs to.
    pub fn environment(&self) -> &Arc<str> {
        &self.environment
    }

    /// Whether the feed is that of a single run.
    pub fn is_of_one(&self) -> bool {
        matches!(self.runs, Selected::One(_))
    }

    /// Whether the run is known to be of the feed.
    pub fn matches(&self, image: &Image) -> bool {
        self.tells_of(image) == Some(true)
    }

    /// Whether the run is of the feed; `None` where its tags decide and are not known. Topics are
    /// numbers that may collide, so the row itself decides.
    pub fn tells_of(&self, image: &Image) -> Option<bool> {
        if image.text(Column::RuntimeEnvironmentId) != Some(&self.environment) {
            return Some(false);
        }
        match &self.runs {
            Selected::One(id) => Some(image.text(Column::FriendlyId) == Some(id)),
            Selected::OfBatch(id) => Some(image.text(Column::BatchId) == Some(id)),
            Selected::Tagged(tags) => {
                if !self.reaches_back_to(image) {
                    return Some(false);
                }
                carries(image, tags)
            }
        }
    }

    /// Whether the run was created within a list's window.
    fn reaches_back_to(&self, image: &Image) -> bool {
        match image.created() {
            Some(created) => created >= self.floor,
            // A time beyond all floors, were it `infinity`, compares as the database compares it.
            None => image.text(Column::CreatedAt).is_some_and(|at| *at >= *self.floor.text()),
        }
    }

    /// Whether the change may be of a run that is of the feed, or was, as far as its topics tell.
    pub fn may_concern(&self, record: &Record) -> bool {
        self.topics.iter().all(|topic| record.topics.contains(topic))
    }

    /// Whether the change came without the tags that decide, so that its run does.
    pub fn is_untold(&self, record: &Record) -> bool {
        self.untold.is_some_and(|topic| record.untold && record.topics.contains(&topic))
    }

    /// Whether the feed may tell of the run at all, were it only that it left.
    pub fn may_show(&self, image: &Image) -> bool {
        match &self.runs {
            Selected::One(_) => self.matches(image),
            _ => image.text(Column::RuntimeEnvironmentId) == Some(&self.environment),
        }
    }

    /// Whether the run was of the feed before the change; `None` where that is not known.
    pub fn matched_before(&self, record: &Record) -> Option<bool> {
        let under = |topics: &[Topic]| self.topics.iter().all(|topic| topics.contains(topic));
        match &record.before {
            Before::Absent => Some(false),
            Before::Unknown => None,
            // A run from before a list's window is under its topics and was never in the list.
            _ if record.created < self.floor => Some(false),
            _ if self.is_untold(record) => None,
            Before::SamePlaces => Some(under(&record.topics)),
            Before::Elsewhere(topics) => Some(under(topics)),
        }
    }
}

fn carries(image: &Image, tags: &[Box<str>]) -> Option<bool> {
    if tags.is_empty() {
        return Some(true);
    }
    if image.lacks_tags() {
        return None;
    }
    let carried = image.text(Column::RunTags).unwrap_or_default();
    Some(tags.iter().all(|tag| has_element(carried, tag)))
}
