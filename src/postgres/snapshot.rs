//! What a query saw: the text of `pg_current_snapshot()` and the tests that it answers.

use std::{fmt, str::FromStr};

/// A transaction snapshot (`xmin:xmax:xip,…`, 64-bit transaction ids).
///
/// It shows a transaction when that had ended before the snapshot was taken. Snapshots decide how a
/// query's rows join the replication stream, where WAL positions cannot: the stream may deliver a
/// transaction before any query shows it, and with asynchronous commit the other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every id below this had ended.
    pub xmin: u64,
    /// No id from here on had been given out.
    pub xmax: u64,
    /// The ids between that were still running, ascending.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Whether the snapshot shows the transaction that the stream calls `xid`.
    ///
    /// The stream has the low 32 bits only; of all ids that end so, the one nearest to `xmax` is meant.
    pub fn shows(&self, xid: u32) -> bool {
        self.shows_full(self.widen(xid))
    }

    fn shows_full(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    fn widen(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }

    /// Whether everything that `earlier` shows is shown here too.
    pub fn includes(&self, earlier: &Snapshot) -> bool {
        let hidden_here = |xid: u64| !earlier.shows_full(xid);
        // Ids at or above our xmax are hidden here, so `earlier` must hide them as well. It lists at
        // most its own xip between the two, so a wider gap than that cannot be all hidden.
        if earlier.xmax > self.xmax {
            let gap = earlier.xmax - self.xmax;
            if gap > earlier.xip.len() as u64 || !(self.xmax..earlier.xmax).all(hidden_here) {
                return false;
            }
        }
        self.xip.iter().copied().all(hidden_here)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text was not of the form `xmin:xmax:xip,…`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a snapshot: {0:?}")]
pub struct ParseSnapshotError(String);

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let mut xip = Vec::new();
            for xid in list.split(',').filter(|xid| !xid.is_empty()) {
                xip.push(xid.parse().ok()?);
            }
            xip.sort_unstable();
            Some(Snapshot { xmin, xmax, xip })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_shows_what_had_ended_when_it_was_taken() {
        let s = snapshot("10:20:12,15");
        assert!(s.shows(9) && s.shows(10) && s.shows(19));
        assert!(!s.shows(12) && !s.shows(15) && !s.shows(20) && !s.shows(21));
    }

    #[test]
    fn an_xid_of_32_bits_is_widened_to_the_value_nearest_to_xmax() {
        let s = snapshot("4294967290:4294967300:");
        assert!(s.shows(4_294_967_291), "before the wrap");
        assert!(s.shows(2), "after the wrap, below xmax");
        assert!(!s.shows(4), "at xmax");
        assert!(s.shows(3_000_000_000), "of the epoch before, not of the next");
    }

    #[test]
    fn a_later_snapshot_includes_an_earlier_one_and_not_the_reverse() {
        let earlier = snapshot("10:20:12,15");
        assert!(snapshot("12:25:12,22").includes(&earlier));
        assert!(earlier.includes(&earlier));
        assert!(!earlier.includes(&snapshot("12:25:12,22")));
        assert!(!snapshot("10:20:12,14").includes(&earlier), "14 was shown");
        assert!(snapshot("10:19:12").includes(&snapshot("10:20:12,19")), "19 is hidden by both");
        assert!(!snapshot("10:18:12").includes(&snapshot("10:20:12,19")), "18 was shown");
    }

    prop_compose! {
        fn small_snapshot()(xmin in 3u64..20, span in 0u64..12, mask in any::<u16>()) -> Snapshot {
            let xip = (0..span).filter(|i| mask >> i & 1 == 1).map(|i| xmin + i).collect();
            Snapshot { xmin, xmax: xmin + span, xip }
        }
    }

    proptest! {
        #[test]
        fn inclusion_agrees_with_asking_for_every_id(a in small_snapshot(), b in small_snapshot()) {
            let all = (0u64..64).all(|xid| !b.shows_full(xid) || a.shows_full(xid));
            prop_assert_eq!(a.includes(&b), all);
        }

        #[test]
        fn the_text_form_round_trips(a in small_snapshot()) {
            prop_assert_eq!(a.to_string().parse(), Ok(a));
        }
    }
}
