//! The feeds that were asked for last, so that all who ask for one share what is worked out of it.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;

use super::key::{FeedKey, Runs};

/// How many are kept. Two that fall on the same place take it from each other.
const KEPT: usize = 1_024;
/// One that was asked for in more words than these, in bytes, is not kept.
const LONGEST: usize = 512;

/// Feeds by the words in which they were asked for.
#[derive(Debug)]
pub struct Asked {
    places: Box<[Mutex<Place>]>,
    by: RandomState,
}

#[derive(Debug, Default)]
struct Place {
    known: Option<Known>,
    /// What was looked for in vain last: who is asked for once takes nobody's place.
    missed: u64,
}

#[derive(Debug)]
struct Known {
    /// A list's tags, as the request has them.
    tags: Box<str>,
    feed: FeedKey,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked::with(KEPT)
    }
}

impl Asked {
    fn with(places: usize) -> Asked {
        let places = std::iter::repeat_with(Mutex::default).take(places).collect();
        Asked { places, by: RandomState::new() }
    }

    /// The feed of a run of an environment.
    pub fn run(&self, environment: &str, run: &str) -> Option<FeedKey> {
        let is_it = |known: &Known| matches!(known.feed.runs(), Runs::One(same) if **same == *run);
        self.find(environment, self.of_run(environment, run), is_it)
    }

    /// The list of an environment's runs that was asked for by these tags, as the request has them, and
    /// this window.
    pub fn list(&self, environment: &str, tags: &str, window: Duration) -> Option<FeedKey> {
        let is_it = |known: &Known| match known.feed.runs() {
            Runs::Tagged { window: same, .. } => *same == window && *known.tags == *tags,
            Runs::One(_) | Runs::OfBatch(_) => false,
        };
        self.find(environment, self.of_list(environment, tags, window), is_it)
    }

    /// Keeps the feed for the next who asks by these tags, or for the run, from the second time on.
    pub fn keep(&self, tags: &str, feed: &FeedKey) {
        let (number, words) = match feed.runs() {
            Runs::One(run) => (self.of_run(feed.environment(), run), &**run),
            Runs::Tagged { window, .. } => (self.of_list(feed.environment(), tags, *window), tags),
            Runs::OfBatch(_) => return,
        };
        if words.len() > LONGEST {
            return;
        }
        let mut place = self.place(number).lock();
        if place.missed == number {
            place.known = Some(Known { tags: tags.into(), feed: feed.clone() });
        }
        place.missed = number;
    }

    fn find(
        &self,
        environment: &str,
        number: u64,
        is_it: impl Fn(&Known) -> bool,
    ) -> Option<FeedKey> {
        let place = self.place(number).lock();
        let known = place.known.as_ref().filter(|known| is_it(known))?;
        (**known.feed.environment() == *environment).then(|| known.feed.clone())
    }

    fn of_run(&self, environment: &str, run: &str) -> u64 {
        self.by.hash_one((environment, run))
    }

    fn of_list(&self, environment: &str, tags: &str, window: Duration) -> u64 {
        self.by.hash_one((environment, tags, window))
    }

    fn place(&self, number: u64) -> &Mutex<Place> {
        &self.places[number as usize % self.places.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn list(environment: &str, tags: &str, window: Duration) -> FeedKey {
        let sorted = tags.split(',').map(Into::into).collect();
        FeedKey::new(environment.into(), Runs::Tagged { tags: sorted, window })
    }

    fn keep_twice(asked: &Asked, tags: &str, feed: &FeedKey) {
        (0..2).for_each(|_| asked.keep(tags, feed));
    }

    #[test]
    fn a_feed_is_found_by_environment_and_words_alone() {
        let asked = Asked::default();
        for environment in ["env_1", "env_2"] {
            for tags in ["a", "a,b", "b,a"] {
                for window in [HOUR, 2 * HOUR] {
                    let feed = list(environment, tags, window);
                    keep_twice(&asked, tags, &feed);
                    assert_eq!(asked.list(environment, tags, window), Some(feed));
                }
                let feed = FeedKey::run(environment.into(), tags.into());
                keep_twice(&asked, "", &feed);
                assert_eq!(asked.run(environment, tags), Some(feed));
            }
        }
    }

    #[test]
    fn feeds_that_fall_on_one_place_are_told_apart() {
        let asked = Asked::with(1);
        let (feed, run) = (list("env_1", "a", HOUR), FeedKey::run("env_1".into(), "a".into()));
        keep_twice(&asked, "a", &feed);
        assert_eq!(asked.run("env_1", "a"), None);
        for (environment, tags, window) in
            [("env_2", "a", HOUR), ("env_1", "b", HOUR), ("env_1", "a", 2 * HOUR)]
        {
            assert_eq!(asked.list(environment, tags, window), None);
        }
        asked.keep("", &run);
        assert_eq!(asked.list("env_1", "a", HOUR), Some(feed), "it was asked for once only");
        asked.keep("", &run);
        assert_eq!(asked.list("env_1", "a", HOUR), None);
        assert_eq!(asked.run("env_1", "b").or(asked.run("env_2", "a")), None);
        assert_eq!(asked.run("env_1", "a"), Some(run));
    }

    #[test]
    fn what_is_worked_out_of_a_feed_is_shared_by_all_who_ask_for_it() {
        let asked = Asked::default();
        keep_twice(&asked, "a", &list("env_1", "a", HOUR));
        let found = [(); 2].map(|()| asked.list("env_1", "a", HOUR).expect("it is kept"));
        assert_eq!(found[0].topics().as_ptr(), found[1].topics().as_ptr());
        let long = "a".repeat(LONGEST + 1);
        keep_twice(&asked, &long, &list("env_1", &long, HOUR));
        assert_eq!(asked.list("env_1", &long, HOUR), None);
    }
}
