//! When a token that is being made ends (`runs-and-auth.md` 17.3).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of an expiry in whole seconds since 1970; it may have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(i64);

/// A text that names no span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid expiration time")]
pub struct NoSpan;

impl Expiry {
    /// So many seconds since 1970. A fraction is dropped, so that no token lives longer than asked.
    pub fn at(seconds: f64) -> Self {
        // A cast from floating point saturates.
        Expiry(seconds.floor() as i64)
    }

    /// A span from `now` as a text: `1h`, `15 minutes`, `-2.5 days`, `1 year from now`.
    pub fn parse(text: &str, now: SystemTime) -> Result<Self, NoSpan> {
        let span = span(text).ok_or(NoSpan)?;
        Ok(Expiry(seconds(now).saturating_add(span.round() as i64)))
    }

    /// So long after `now`.
    pub fn after(span: Duration, now: SystemTime) -> Self {
        Expiry(seconds(now).saturating_add_unsigned(span.as_secs()))
    }

    /// The claim `exp`.
    pub(super) fn claim(self) -> i64 {
        self.0
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Seconds: an optional sign, digits with or without decimals, a unit, and ` ago` or ` from now`.
fn span(text: &str) -> Option<f64> {
    let text = text.to_ascii_lowercase();
    let (sign, rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.get(..1), rest.strip_prefix(' ').unwrap_or(rest)),
        None => (None, &*text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, rest) = rest.split_at(end);
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let well_formed = match number.split_once('.') {
        Some((whole, fraction)) => plain(whole) && plain(fraction),
        None => plain(number),
    };
    let number: f64 = well_formed.then(|| number.parse().ok())??;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let (unit, past) = match (rest.strip_suffix(" ago"), rest.strip_suffix(" from now")) {
        (None, None) => (rest, sign == Some("-")),
        _ if sign.is_some() => return None,
        (Some(unit), _) => (unit, true),
        (_, Some(unit)) => (unit, false),
    };
    let unit = match unit {
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "week" | "weeks" => 604_800.0,
        "y" | "yr" | "yrs" | "year" | "years" => 31_557_600.0,
        _ => return None,
    };
    Some(if past { -number * unit } else { number * unit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_read_as_the_contract_says() {
        for (text, wanted) in [
            ("1h", Some(3_600.0)),
            ("15m", Some(900.0)),
            ("+ 2 MINS", Some(120.0)),
            ("1.5 days", Some(129_600.0)),
            ("0.25y", Some(7_889_400.0)),
            ("3 weeks from now", Some(1_814_400.0)),
            ("-1s", Some(-1.0)),
            ("10 seconds ago", Some(-10.0)),
            ("-10 seconds ago", None),
            ("+1h from now", None),
            ("1", None),
            ("", None),
            ("h", None),
            (".5h", None),
            ("5.h", None),
            ("1.2.3h", None),
            ("1  h", None),
            (" 1h", None),
            ("1h ", None),
            ("1hago", None),
            ("1 fortnight", None),
            ("1e3s", None),
        ] {
            assert_eq!(span(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn an_absurd_span_ends_at_the_end_of_time() {
        let far = Expiry::parse(&format!("{}y", "9".repeat(300)), SystemTime::now());
        assert_eq!(far.map(Expiry::claim), Ok(i64::MAX));
        assert_eq!(Expiry::at(1e300).claim(), i64::MAX);
        assert_eq!(Expiry::at(10.9).claim(), 10);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,20}") {
            let _ = Expiry::parse(&text, SystemTime::now());
        }
    }
}
