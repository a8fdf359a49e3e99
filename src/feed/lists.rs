//! The lists that were asked for last, so that all who ask for one share what is worked out of it.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;

use super::key::{FeedKey, Runs};

/// How many are kept. Two whose words fall on the same place take it from each other.
const KEPT: usize = 1_024;
/// One that was asked for in more words than these, in bytes, is not kept.
const LONGEST: usize = 512;

/// Lists by the words in which they were asked for.
#[derive(Debug)]
pub struct Lists {
    places: Box<[Mutex<Option<Known>>]>,
    by: RandomState,
}

#[derive(Debug)]
struct Known {
    tags: Box<str>,
    feed: FeedKey,
}

impl Default for Lists {
    fn default() -> Lists {
        let places = std::iter::repeat_with(Mutex::default).take(KEPT).collect();
        Lists { places, by: RandomState::new() }
    }
}

impl Lists {
    /// The list of an environment's runs that was asked for by these words, as the request has them,
    /// and this window.
    pub fn get(&self, environment: &str, tags: &str, window: Duration) -> Option<FeedKey> {
        let place = self.place(environment, tags, window).lock();
        let known = place.as_ref().filter(|known| *known.tags == *tags)?;
        let is_it = **known.feed.environment() == *environment
            && matches!(known.feed.runs(), Runs::Tagged { window: same, .. } if *same == window);
        is_it.then(|| known.feed.clone())
    }

    /// Keeps it for the next who asks.
    pub fn keep(&self, tags: &str, feed: &FeedKey) {
        if let Runs::Tagged { window, .. } = feed.runs()
            && tags.len() <= LONGEST
        {
            let known = Known { tags: tags.into(), feed: feed.clone() };
            *self.place(feed.environment(), tags, *window).lock() = Some(known);
        }
    }

    fn place(&self, environment: &str, tags: &str, window: Duration) -> &Mutex<Option<Known>> {
        let number = self.by.hash_one((environment, tags, window));
        &self.places[number as usize % KEPT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(environment: &str, tags: &str, hours: u64) -> FeedKey {
        let window = Duration::from_secs(hours * 3_600);
        let tags = tags.split(',').map(Into::into).collect();
        FeedKey::new(environment.into(), Runs::Tagged { tags, window })
    }

    #[test]
    fn a_list_is_found_by_environment_words_and_window_alone() {
        let lists = Lists::default();
        let asked: Vec<_> = ["env_1", "env_2"]
            .into_iter()
            .flat_map(|environment| ["a", "a,b", "b,a"].map(|tags| (environment, tags)))
            .flat_map(|(environment, tags)| [1, 2].map(|hours| (environment, tags, hours)))
            .collect();
        let hour = |hours: u64| Duration::from_secs(hours * 3_600);
        for (environment, tags, hours) in &asked {
            lists.keep(tags, &list(environment, tags, *hours));
        }
        for (environment, tags, hours) in asked {
            // Another may have taken its place.
            if let Some(found) = lists.get(environment, tags, hour(hours)) {
                assert_eq!(found, list(environment, tags, hours));
            }
        }
        let last = list("env_2", "b,a", 2);
        assert_eq!(lists.get("env_2", "b,a", hour(2)), Some(last));
        assert_eq!(lists.get("env_3", "b,a", hour(2)), None);
    }

    #[test]
    fn what_is_worked_out_of_a_list_is_shared_by_all_who_ask_for_it() {
        let lists = Lists::default();
        let hour = Duration::from_secs(3_600);
        lists.keep("a", &list("env_1", "a", 1));
        let found = [(); 2].map(|()| lists.get("env_1", "a", hour).expect("it is kept"));
        assert_eq!(found[0].topics().as_ptr(), found[1].topics().as_ptr());
        let long = "a".repeat(LONGEST + 1);
        lists.keep(&long, &list("env_1", &long, 1));
        assert_eq!(lists.get("env_1", &long, hour), None);
    }
}
