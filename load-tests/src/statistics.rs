//! Order statistics.

/// The middle and the tail of a set of values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Half of the values are below.
    pub p50: f64,
    /// Nine tenths are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Percentiles {
    /// Of these values; all zero when there are none.
    pub fn of(mut values: Vec<f64>) -> Percentiles {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * values.len() as f64).ceil() as usize;
            values.get(index.saturating_sub(1)).copied().unwrap_or_default()
        };
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// The middle one of the values (of two middle ones the lower), 0 when there are none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Percentiles::of(values.into_iter().collect()).p50
}

/// The middle one with the least and the greatest, in so many decimals; a dash when there are none.
pub fn middle_and_range(values: impl IntoIterator<Item = f64>, decimals: usize) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    match values.len() {
        0 => "–".to_owned(),
        1 => format!("{least:.decimals$}"),
        _ => {
            let all = Percentiles::of(values);
            format!("{:.decimals$} ({least:.decimals$}–{:.decimals$})", all.p50, all.max)
        }
    }
}

/// How values compare to others that were measured in turns with them: by turns, since a machine is as fast
/// for both sides of one turn, and not for all turns. The middle with the least and the greatest; a dash
/// where there are none.
pub fn ratio(
    values: impl IntoIterator<Item = f64>,
    others: impl IntoIterator<Item = f64>,
) -> String {
    let turns = values.into_iter().zip(others);
    let measured = turns.filter(|(ours, theirs)| *ours != 0.0 && *theirs != 0.0);
    middle_and_range(measured.map(|(ours, theirs)| ours / theirs), 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let p = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((p.p50, p.p90, p.p99, p.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Percentiles::of(vec![7.0]).p50, 7.0);
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!(middle_and_range([], 1), "–");
        assert_eq!(middle_and_range([2.0], 1), "2.0");
        assert_eq!(middle_and_range([3.0, 1.0, 2.0], 0), "2 (1–3)");
        assert_eq!(ratio([3.0], [2.0]), "1.50");
        assert_eq!(ratio([3.0, 8.0, 0.0, 5.0], [2.0, 4.0, 7.0, 5.0]), "1.50 (1.00–2.00)");
        assert_eq!(ratio([3.0], []), "–");
    }
}
