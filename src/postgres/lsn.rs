//! A position in the write-ahead log.

use std::{fmt, str::FromStr};

/// A WAL position: bytes since the start of the database's log. Its text form is Postgres' `0/16B3748`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not two hexadecimal halves with a slash between.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a WAL position: {0:?}")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let halves = text.split_once('/').and_then(|(high, low)| {
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Lsn(u64::from(high) << 32 | u64::from(low)))
        });
        halves.ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for raw in [0, 1, 0x16B_3748, 0x1_0000_0000, u64::MAX] {
            assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }
        assert!("16B3748".parse::<Lsn>().is_err());
        assert!("g/0".parse::<Lsn>().is_err());
    }
}
