//! Which feeds a load has, which runs are in which, and how clients ask for them.

use crate::answer::number;
use crate::runs;

/// How many tags every run carries.
const TAGS: usize = 3;

/// What the subscribers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Feeds of single runs.
    Run,
    /// Lists of the runs that carry one tag.
    Tag,
}

/// Some runs and the feeds that show them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// What the feeds are of.
    pub kind: Kind,
    /// How many feeds.
    pub feeds: usize,
    /// How many runs; run `r` is in feed `r % feeds`, and in more if it carries more of the load's tags.
    pub runs: usize,
    /// In how many feeds each run is.
    pub feeds_per_run: usize,
}

impl Layout {
    /// Each run is a feed.
    pub fn runs(count: usize) -> Layout {
        Layout { kind: Kind::Run, feeds: count, runs: count, feeds_per_run: 1 }
    }

    /// Each tag is a feed, and every run carries one of them.
    pub fn tags(feeds: usize, runs: usize) -> Layout {
        Layout { kind: Kind::Tag, feeds, runs, feeds_per_run: 1 }
    }

    /// The feeds that show a run, each once.
    pub fn feeds_of(self, run: usize) -> impl Iterator<Item = usize> {
        let stride = (self.feeds / self.feeds_per_run).max(1);
        (0..self.feeds_per_run.min(self.feeds)).map(move |k| (run + k * stride) % self.feeds)
    }

    /// How many runs the feed with the fewest has.
    pub fn fewest_runs(self) -> usize {
        let mut runs = vec![0; self.feeds];
        (0..self.runs).flat_map(|run| self.feeds_of(run)).for_each(|feed| runs[feed] += 1);
        runs.into_iter().min().unwrap_or(0)
    }

    /// The tags that a run carries, as a Postgres expression of its number `n`: those of its feeds and,
    /// up to three, some that nobody asks for.
    pub fn tags_sql(self) -> String {
        let stride = (self.feeds / self.feeds_per_run).max(1);
        let feeds = self.feeds;
        let of_feeds = (0..self.feeds_per_run.min(feeds))
            .map(|k| format!("'load-' || (n + {}) % {feeds}", k * stride));
        let others = ["'kind:load'", "'shard:' || n % 16"].map(str::to_owned);
        let all: Vec<String> = of_feeds.chain(others).take(TAGS).collect();
        format!("ARRAY[{}]", all.join(", "))
    }

    /// What a client of a feed asks for.
    pub fn target(self, feed: usize) -> Target {
        match self.kind {
            Kind::Run => Target::run(feed),
            Kind::Tag => Target::tag(feed),
        }
    }
}

/// What a client asks for: a path and the parameters around those of the protocol, sorted as the real
/// client sorts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The path.
    pub path: String,
    /// What follows the protocol's parameters, with its `&`.
    pub tail: String,
    /// What a public token must grant for it.
    pub scope: String,
}

impl Target {
    /// The feed of one run.
    pub fn run(run: usize) -> Target {
        let id = runs::friendly_id(run);
        Target {
            path: format!("/realtime/v1/runs/{id}"),
            tail: String::new(),
            scope: format!("read:runs:{id}"),
        }
    }

    /// The list of the runs that carry the tag of this number.
    pub fn tag(tag: usize) -> Target {
        Target {
            path: "/realtime/v1/runs".to_owned(),
            tail: format!("&tags=load-{tag}"),
            scope: format!("read:tags:load-{tag}"),
        }
    }
}

/// The number of the run or the tag that a request is about, for the bare server.
pub fn number_in_request(path: &str, query: Option<&str>) -> Option<usize> {
    if let Some(run) = runs::of_path(path) {
        return Some(run);
    }
    let tag = query?.split('&').find_map(|pair| pair.strip_prefix("tags=load-"))?;
    number(tag.as_bytes())?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_in_as_many_different_feeds_as_it_carries_tags() {
        let layout = Layout { feeds_per_run: 3, ..Layout::tags(100, 5_000) };
        for run in 0..5_000 {
            let mut feeds: Vec<usize> = layout.feeds_of(run).collect();
            feeds.sort_unstable();
            feeds.dedup();
            assert_eq!(feeds.len(), 3, "run {run}");
        }
        let narrow = Layout { feeds_per_run: 3, ..Layout::tags(1, 10) };
        assert_eq!(narrow.feeds_of(7).collect::<Vec<_>>(), [0]);
        assert_eq!(Layout::tags(4, 10).feeds_of(7).collect::<Vec<_>>(), [3]);
        let fewest =
            [layout, narrow, Layout::tags(4, 10), Layout::runs(9)].map(Layout::fewest_runs);
        assert_eq!(fewest, [150, 10, 2, 1]);
    }

    #[test]
    fn the_database_tags_a_run_as_its_feeds_say_and_with_three_tags() {
        let three = Layout { feeds_per_run: 3, ..Layout::tags(100, 5_000) };
        let expected =
            "ARRAY['load-' || (n + 0) % 100, 'load-' || (n + 33) % 100, 'load-' || (n + 66) % 100]";
        assert_eq!(three.tags_sql(), expected);
        assert_eq!(three.feeds_of(5).collect::<Vec<_>>(), [5, 38, 71]);
        assert_eq!(Layout::tags(1, 10).tags_sql().matches("||").count(), 2);
    }

    #[test]
    fn a_request_names_its_run_or_its_tag() {
        for target in [Target::run(42), Target::tag(42)] {
            let query = format!("log=full&offset=-1{}", target.tail);
            assert_eq!(number_in_request(&target.path, Some(&query)), Some(42));
        }
        assert_eq!(number_in_request("/realtime/v1/runs", Some("offset=-1")), None);
    }
}
