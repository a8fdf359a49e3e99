//! Where a client stands: the offset of the wire protocol.

use std::{fmt, str::FromStr};

use crate::postgres::Lsn;

/// A place in the order of all changes, written `<LSN>_<index>`, both decimal.
///
/// The changes of the transaction that committed at LSN C are `C_1 … C_n`; `C_0` means everything
/// that committed before C. Positions compare as they lie in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The commit LSN.
    pub lsn: Lsn,
    /// Which change of that transaction, from 1; 0 stands before the first.
    pub index: u32,
}

impl Position {
    /// Everything that committed before `lsn`.
    pub fn before(lsn: Lsn) -> Self {
        Position { lsn, index: 0 }
    }

    /// The place behind the first `index` chunks of a long answer, which is none in the log: all of
    /// them lie before whatever commits.
    pub fn part(index: u32) -> Self {
        Position { lsn: Lsn(0), index }
    }

    /// Whether this is a place in a long answer.
    pub fn is_part(self) -> bool {
        self.lsn == Lsn(0) && self.index > 0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.lsn.0, self.index)
    }
}

/// The text was no offset that Runwire issues.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an offset")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (lsn, index) = text.split_once('_').ok_or(ParsePositionError)?;
        let lsn = lsn.parse().map_err(|_| ParsePositionError)?;
        let index = index.parse().map_err(|_| ParsePositionError)?;
        Ok(Position { lsn: Lsn(lsn), index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_keepalive_that_ends_where_the_next_commit_begins_has_not_seen_it() {
        let commit = Lsn(500);
        let head = Position::before(commit);
        assert!(Position { lsn: commit, index: 1 } > head);
    }

    proptest! {
        #[test]
        fn an_offset_reads_as_it_was_written(lsn: u64, index: u32) {
            let position = Position { lsn: Lsn(lsn), index };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn any_text_is_an_offset_or_an_error(text in ".*") {
            let _ = text.parse::<Position>();
        }
    }
}
