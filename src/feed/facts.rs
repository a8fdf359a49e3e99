//! What scopes may name a run by, remembered so that polls need no query (`runs-and-auth.md`, 13.1).

use std::sync::Arc;
use std::time::Duration;

use super::feeds::{Feeds, Unavailable};
use super::filter::Filter;
use super::image::Image;
use super::key::FeedKey;
use crate::runs::columns::Column;
use crate::runs::created::Floor;
use crate::runs::reader::Patience;
use crate::runs::store::StoredRun;
use crate::runs::text::elements;

/// What scopes may name a run by, besides its own id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The task's identifier.
    pub task: String,
    /// The run's tags.
    pub tags: Vec<String>,
    /// The friendly id of its batch.
    pub batch: Option<Arc<str>>,
}

/// The facts of runs that were read.
#[derive(Debug)]
pub(super) struct FactsMemory {
    /// Friendly ids of batches by internal id. They never change.
    batches: moka::sync::Cache<String, Arc<str>>,
    /// Tags may be added, so what the window has forgotten is read anew before long.
    facts: moka::sync::Cache<(Arc<str>, Arc<str>), Arc<Facts>>,
}

impl Default for FactsMemory {
    fn default() -> Self {
        let facts = moka::sync::Cache::builder()
            .max_capacity(100_000)
            .time_to_live(Duration::from_secs(30))
            .build();
        FactsMemory { batches: moka::sync::Cache::new(100_000), facts }
    }
}

impl FactsMemory {
    pub fn of(&self, image: &Image) -> Facts {
        Facts {
            task: image.text(Column::TaskIdentifier).unwrap_or_default().to_owned(),
            tags: image.text(Column::RunTags).map(elements).unwrap_or_default(),
            batch: image.text(Column::BatchId).and_then(|id| self.batches.get(id)),
        }
    }

    /// The facts of a row that was read, of which this is the image.
    pub fn of_stored(&self, stored: &StoredRun, image: &Image) -> Facts {
        if let (Some(id), Some(batch)) =
            (stored.row.text(Column::BatchId), &stored.batch_friendly_id)
        {
            self.batches.insert(id.to_owned(), batch.as_str().into());
        }
        self.of(image)
    }

    /// Keeps a run's facts for the polls that follow, if `opens`, which they have let in, needs them. Most
    /// scopes name the run itself, or all.
    pub fn keep(
        &self,
        environment: &Arc<str>,
        run: &Arc<str>,
        facts: &Facts,
        opens: impl Fn(&Facts) -> bool,
    ) {
        if !opens(&Facts::default()) {
            let key = (Arc::clone(environment), Arc::clone(run));
            self.facts.insert(key, Arc::new(facts.clone()));
        }
    }
}

impl Feeds {
    /// Whether the scopes, of which `opens` tells, open a run that a client already follows.
    /// `Ok(None)`: there is no such run.
    pub async fn may_follow(
        &self,
        environment: &Arc<str>,
        run: &Arc<str>,
        opens: impl Fn(&Facts) -> bool,
    ) -> Result<Option<bool>, Unavailable> {
        let remembered = self.remembered_facts(environment, run);
        if remembered.is_some_and(|facts| opens(&facts)) {
            return Ok(Some(true));
        }
        // A refusal ends the client's subscription, so it is never based on what may be old.
        let read = self.reader.run(environment, run, Patience::Fresh).await?;
        let Some(stored) = &read.run else { return Ok(None) };
        let facts = self.facts.of_stored(stored, &Image::of_row(&stored.row));
        let let_in = opens(&facts);
        if let_in {
            self.facts.keep(environment, run, &facts, opens);
        }
        Ok(Some(let_in))
    }

    fn remembered_facts(&self, environment: &Arc<str>, run: &Arc<str>) -> Option<Facts> {
        let key = FeedKey::run(Arc::clone(environment), Arc::clone(run));
        let filter = Filter::new(&key, Floor(0));
        let image = {
            let state = self.feed.state.read();
            state.last_state(&filter).map(|(image, _)| Arc::clone(image))
        };
        match image {
            Some(image) => Some(self.facts.of(&image)),
            None => {
                let key = (Arc::clone(environment), Arc::clone(run));
                self.facts.facts.get(&key).map(|facts| Facts::clone(&facts))
            }
        }
    }
}
