//! Looking for the highest rate that is still borne.

/// Doubles from the first rate on until one is too much, then halves the gap.
#[derive(Debug)]
pub struct Search {
    first: f64,
    most: f64,
    borne: Option<f64>,
    too_much: Option<f64>,
}

/// The gap that is left, as a share of the rate.
const EXACT: f64 = 0.1;

impl Search {
    /// From this rate on, which is a guess, up to that one.
    pub fn new(first: f64, most: f64) -> Search {
        Search { first, most, borne: None, too_much: None }
    }

    /// What is to be tried next; `None` when the answer is known.
    pub fn next(&self) -> Option<f64> {
        match (self.borne, self.too_much) {
            (None, None) => Some(self.first),
            (Some(borne), None) => (borne < self.most).then(|| (borne * 2.0).min(self.most)),
            (None, Some(too_much)) => (too_much > self.first / 8.0).then_some(too_much / 2.0),
            (Some(borne), Some(too_much)) => {
                (too_much - borne > EXACT * borne).then_some((borne + too_much) / 2.0)
            }
        }
    }

    /// How that went.
    pub fn tell(&mut self, rate: f64, borne: bool) {
        match borne {
            true => self.borne = Some(self.borne.map_or(rate, |before| before.max(rate))),
            false => self.too_much = Some(self.too_much.map_or(rate, |before| before.min(rate))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(limit: f64, most: f64) -> (Option<f64>, usize) {
        let (mut search, mut steps) = (Search::new(2.0, most), 0);
        while let Some(rate) = search.next() {
            search.tell(rate, rate <= limit);
            steps += 1;
            assert!(steps < 30, "{search:?}");
        }
        (search.borne, steps)
    }

    #[test]
    fn the_highest_rate_is_found_within_a_tenth() {
        for limit in [0.5, 1.0, 2.0, 3.0, 17.0, 100.0, 499.0] {
            let (found, steps) = find(limit, 1_000.0);
            let found = found.unwrap();
            assert!(found <= limit && found >= limit / 1.11, "{found} for {limit}");
            assert!(steps < 16, "{steps} steps for {limit}");
        }
    }

    #[test]
    fn it_ends_where_nothing_is_borne_and_where_everything_is() {
        assert_eq!(find(0.0, 1_000.0).0, None);
        assert_eq!(find(f64::INFINITY, 50.0).0, Some(50.0));
    }
}
