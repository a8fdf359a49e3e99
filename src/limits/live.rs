//! How many polls are held, and connections of events open, for an environment at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use metrics::{Counter, Gauge};

use crate::telemetry;

/// What one environment may have at once.
#[derive(Clone, Debug)]
pub struct LiveSettings {
    /// Where nothing else is set.
    pub default: usize,
    /// By the environment's id.
    pub environments: HashMap<String, usize>,
}

/// Counts live requests by environment (`runs-and-auth.md`, 9.5). Cheap to clone.
///
/// What other gateways hold counts as well, as far as it is known: see [`super::fleet`].
#[derive(Clone, Debug)]
pub struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: LiveSettings,
    /// An entry is there while something counts, and until the next [`Live::sweep`].
    environments: DashMap<Arc<str>, Arc<Counts>>,
    used: Gauge,
    used_elsewhere: Gauge,
    refused: Counter,
}

#[derive(Debug)]
struct Counts {
    limit: usize,
    here: AtomicUsize,
    elsewhere: AtomicUsize,
}

/// A live request, however it ends.
#[derive(Debug)]
pub struct LivePlace(Arc<Counts>);

impl Live {
    /// With these limits, and nothing live.
    pub fn new(settings: LiveSettings) -> Live {
        let used = metrics::gauge!(telemetry::LIMIT_USED, "limit" => "live");
        let refused = metrics::counter!(telemetry::LIMIT_REFUSED, "limit" => "live");
        let used_elsewhere = metrics::gauge!(telemetry::LIMIT_USED, "limit" => "live_elsewhere");
        let environments = DashMap::new();
        Live(Arc::new(Inner { settings, environments, used, used_elsewhere, refused }))
    }

    /// A place for one more of this environment, or `None` at its limit.
    pub fn enter(&self, environment: &Arc<str>) -> Option<LivePlace> {
        // Counted under the map's lock, so that no entry is swept away between look and count.
        let place = match self.0.environments.get(environment) {
            Some(counts) => Counts::enter(&counts),
            None => Counts::enter(&self.entry(environment)),
        };
        if place.is_none() {
            self.0.refused.increment(1);
        }
        place
    }

    fn entry(
        &self,
        environment: &Arc<str>,
    ) -> dashmap::mapref::one::RefMut<'_, Arc<str>, Arc<Counts>> {
        self.0.environments.entry(Arc::clone(environment)).or_insert_with(|| {
            let settings = &self.0.settings;
            let limit = settings.environments.get(&**environment).copied();
            let limit = limit.unwrap_or(settings.default);
            Arc::new(Counts { limit, here: AtomicUsize::new(0), elsewhere: AtomicUsize::new(0) })
        })
    }

    /// Forgets environments that have nothing live, and shows how much the others have.
    pub fn sweep(&self) {
        let (mut all, mut all_elsewhere) = (0, 0);
        self.0.environments.retain(|_, counts| {
            let here = counts.here.load(Ordering::Relaxed);
            let elsewhere = counts.elsewhere.load(Ordering::Relaxed);
            all += here;
            all_elsewhere += elsewhere;
            here > 0 || elsewhere > 0
        });
        self.0.used_elsewhere.set(all_elsewhere as f64);
        self.0.used.set(all as f64);
    }

    /// What this gateway has live, of those environments for which it is a hundredth of the limit or
    /// more: less does not matter to anybody.
    pub fn of_note(&self) -> HashMap<Arc<str>, usize> {
        let entries = self.0.environments.iter();
        let counts = entries.map(|entry| {
            let here = entry.here.load(Ordering::Relaxed);
            (Arc::clone(entry.key()), here, entry.limit)
        });
        let of_note = counts.filter(|(_, here, limit)| *here > 0 && *here >= limit / 100);
        of_note.map(|(environment, here, _)| (environment, here)).collect()
    }

    /// What other gateways have live, all of it: who is not named has nothing.
    pub fn set_elsewhere(&self, elsewhere: &HashMap<String, usize>) {
        for entry in &self.0.environments {
            let live = elsewhere.get(&**entry.key()).copied().unwrap_or_default();
            entry.elsewhere.store(live, Ordering::Relaxed);
        }
        for (environment, live) in elsewhere {
            if !self.0.environments.contains_key(environment.as_str()) {
                self.entry(&environment.as_str().into()).elsewhere.store(*live, Ordering::Relaxed);
            }
        }
    }
}

impl Counts {
    fn enter(self: &Arc<Self>) -> Option<LivePlace> {
        let left = self.limit.saturating_sub(self.elsewhere.load(Ordering::Relaxed));
        let one_more = |here| (here < left).then_some(here + 1);
        self.here.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(LivePlace(Arc::clone(self)))
    }
}

impl Drop for LivePlace {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(default: usize, environments: &[(&str, usize)]) -> Live {
        let environments = environments.iter().map(|(id, limit)| ((*id).to_owned(), *limit));
        Live::new(LiveSettings { default, environments: environments.collect() })
    }

    #[test]
    fn an_environment_has_its_own_limit_and_gets_back_what_ends() {
        let live = live(2, &[("b", 1)]);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = live.enter(&a).expect("a place");
        let _second = live.enter(&a).expect("a place");
        let of_b = live.enter(&b).expect("a place");
        assert!(live.enter(&a).is_none() && live.enter(&b).is_none());
        drop(first);
        let _third = live.enter(&a).expect("the place that was given back");
        assert!(live.enter(&a).is_none());
        drop(of_b);
        live.sweep();
        assert_eq!(live.0.environments.len(), 1, "b is forgotten, a is not");
        assert!(live.enter(&a).is_none(), "and its count stands");
    }

    #[test]
    fn what_is_live_elsewhere_counts_until_it_is_gone_there() {
        let live = live(3, &[]);
        let a: Arc<str> = "a".into();
        live.set_elsewhere(&HashMap::from([("a".to_owned(), 2)]));
        live.sweep();
        let place = live.enter(&a).expect("the third");
        assert!(live.enter(&a).is_none());
        live.set_elsewhere(&HashMap::from([("a".to_owned(), 7)]));
        drop(place);
        assert!(live.enter(&a).is_none());
        live.set_elsewhere(&HashMap::new());
        assert!(live.enter(&a).is_some());
        live.sweep();
        assert!(live.0.environments.is_empty());
    }

    #[test]
    fn others_are_told_of_those_alone_who_come_near_their_limit() {
        let live = live(300, &[("small", 1)]);
        let (large, small): (Arc<str>, Arc<str>) = ("large".into(), "small".into());
        let mut places = vec![live.enter(&large), live.enter(&large), live.enter(&small)];
        assert_eq!(live.of_note(), HashMap::from([(Arc::clone(&small), 1)]));
        places.push(live.enter(&large));
        assert_eq!(live.of_note(), HashMap::from([(small, 1), (large, 3)]));
    }
}
