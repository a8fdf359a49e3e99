//! Which runs a feed is of (`runs-and-auth.md`, 10.1).

use std::sync::Arc;

use super::image::Image;
use super::key::{FeedKey, Runs};
use super::topic::Topic;
use super::window::{Before, Record};
use crate::runs::columns::Column;
use crate::runs::created::Floor;
use crate::runs::text::has_element;

/// A feed made ready for matching.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    feed: FeedKey,
    /// How far back a list reaches; other feeds reach back to the beginning.
    floor: Floor,
}

impl Filter {
    /// `floor` bounds lists alone.
    pub fn new(feed: &FeedKey, floor: Floor) -> Self {
        let is_list = matches!(feed.runs(), Runs::Tagged { .. });
        let floor = if is_list { floor } else { Floor::default() };
        Filter { feed: feed.clone(), floor }
    }

    /// See [`FeedKey::topics`].
    pub fn topics(&self) -> &[Topic] {
        self.feed.topics()
    }

    /// See [`FeedKey::untold`].
    pub fn untold(&self) -> Option<Topic> {
        self.feed.untold()
    }

    /// The environment that it belongs to.
    pub fn environment(&self) -> &Arc<str> {
        self.feed.environment()
    }

    /// Whether the feed is that of a single run.
    pub fn is_of_one(&self) -> bool {
        matches!(self.feed.runs(), Runs::One(_))
    }

    /// Whether the run is known to be of the feed.
    pub fn matches(&self, image: &Image) -> bool {
        self.tells_of(image) == Some(true)
    }

    /// Whether the run is of the feed; `None` where its tags decide and are not known. Topics are
    /// numbers that may collide, so the row itself decides.
    pub fn tells_of(&self, image: &Image) -> Option<bool> {
        if image.text(Column::RuntimeEnvironmentId) != Some(self.environment()) {
            return Some(false);
        }
        match self.feed.runs() {
            Runs::One(id) => Some(image.text(Column::FriendlyId) == Some(id)),
            Runs::OfBatch(id) => Some(image.text(Column::BatchId) == Some(id)),
            Runs::Tagged { tags, .. } => {
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
        self.topics().iter().all(|topic| record.topics.contains(topic))
    }

    /// Whether the change came without the tags that decide, so that its run does.
    pub fn is_untold(&self, record: &Record) -> bool {
        self.untold().is_some_and(|topic| record.untold && record.topics.contains(&topic))
    }

    /// Whether the feed may tell of the run at all, were it only that it left.
    pub fn may_show(&self, image: &Image) -> bool {
        match self.feed.runs() {
            Runs::One(_) => self.matches(image),
            _ => image.text(Column::RuntimeEnvironmentId) == Some(self.environment()),
        }
    }

    /// Whether the run was of the feed before the change; `None` where that is not known.
    pub fn matched_before(&self, record: &Record) -> Option<bool> {
        let under = |topics: &[Topic]| self.topics().iter().all(|topic| topics.contains(topic));
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
