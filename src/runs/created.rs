//! The `createdAt` window of a list: how far back it reaches (`runs-and-auth.md`, 10.2).

use std::time::{Duration, SystemTime};

/// The window when a request names none.
pub const DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// The end of the year 9999: later times have no such text.
const LAST_MILLIS: u64 = 253_402_300_799_999;

/// The longest text that is read.
const MAX_LEN: usize = 100;

/// A list's lower bound of `createdAt`, in whole minutes since 1970: bounds that lie close together
/// become one feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Floor(pub u32);

impl Floor {
    /// The bound of a window of this length that ends now.
    pub fn before(now: SystemTime, window: Duration) -> Self {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let minutes = now.saturating_sub(window).as_secs() / 60;
        Floor(u32::try_from(minutes).unwrap_or(u32::MAX))
    }

    /// The minute of a row's text: the highest bound that the row is not below.
    pub fn of(text: &str) -> Option<Self> {
        let minutes = timestamp_millis(text)? / 60_000;
        Some(Floor(u32::try_from(minutes).unwrap_or(u32::MAX)))
    }

    /// The bound, to be compared with a row's text.
    pub fn text(self) -> String {
        timestamp_text(u64::from(self.0) * 60_000)
    }
}

/// Milliseconds since 1970 as Postgres writes a `timestamp`, but for zeros at the end: such texts
/// compare byte for byte as their times do, `a <= b` also where only `b` has the zeros.
pub fn timestamp_text(millis: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis.min(LAST_MILLIS));
    let text = if millis.is_multiple_of(1_000) {
        humantime::format_rfc3339_seconds(at).to_string()
    } else {
        humantime::format_rfc3339_millis(at).to_string()
    };
    text.trim_end_matches('Z').replace('T', " ")
}

/// The time that such a text names, in milliseconds since 1970.
pub fn timestamp_millis(text: &str) -> Option<u64> {
    let at = humantime::parse_rfc3339_weak(text).ok()?;
    Some(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis() as u64)
}

/// The window that a request asks for, never longer than `maximum`. A text that does not follow the
/// grammar asks for the maximum.
pub fn window(text: Option<&str>, maximum: Duration) -> Duration {
    let asked = match text {
        None => DEFAULT,
        Some(text) => parse(text).unwrap_or(maximum),
    };
    asked.min(maximum)
}

/// `<digits><unit>…` with the units w, d, h or hr, m and s in any order. Of a unit that is repeated
/// the first counts.
fn parse(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > MAX_LEN {
        return None;
    }
    let mut first = [None; 5];
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        // Too many digits are more than any maximum.
        let number = if digits == 0 { return None } else { number.parse().unwrap_or(u64::MAX) };
        let (unit, length) = match after.as_bytes() {
            [b'w', ..] => (0, 1),
            [b'd', ..] => (1, 1),
            [b'h', b'r', ..] => (2, 2),
            [b'h', ..] => (2, 1),
            [b'm', ..] => (3, 1),
            [b's', ..] => (4, 1),
            _ => return None,
        };
        first[unit].get_or_insert(number);
        rest = &after[length..];
    }
    let seconds = [7 * 24 * 60 * 60, 24 * 60 * 60, 60 * 60, 60, 1u64];
    let total = first.iter().zip(seconds).fold(0u64, |sum, (number, seconds)| {
        sum.saturating_add(number.unwrap_or(0).saturating_mul(seconds))
    });
    Some(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn units_add_up_and_of_a_repeated_one_the_first_counts() {
        let minutes = |text| parse(text).map(|window| window.as_secs_f64() / 60.0);
        assert_eq!(minutes("1h"), Some(60.0));
        assert_eq!(minutes("1hr"), Some(60.0));
        assert_eq!(minutes("2w1d1h1m30s"), Some(15.0 * 1440.0 + 61.5));
        assert_eq!(minutes("30m5m"), Some(30.0));
        assert_eq!(minutes("12h1d"), Some(36.0 * 60.0));
        assert_eq!(minutes("0s"), Some(0.0));
        for bad in ["", "1", "h", "1 h", "1H", "-1h", "1.5h", "yesterday", "2026-09-01", "1min"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&"1h".repeat(51)), None, "longer than 100");
    }

    #[test]
    fn the_window_has_a_default_and_a_maximum() {
        assert_eq!(window(None, 2 * DAY), DAY);
        assert_eq!(window(None, DAY / 2), DAY / 2);
        assert_eq!(window(Some("7d"), DAY), DAY);
        assert_eq!(window(Some("99999999999999999999999w"), DAY), DAY);
        assert_eq!(window(Some("yesterday"), 3 * DAY), 3 * DAY);
    }

    #[test]
    fn a_floor_compares_with_a_rows_text() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_788_250_559_999);
        let floor = Floor::before(at, Duration::ZERO).text();
        assert_eq!(floor, "2026-09-01 08:15:00");
        assert!(*floor <= *"2026-09-01 08:15:00");
        assert!(*floor <= *"2026-09-01 08:15:00.001");
        assert!(*floor > *"2026-09-01 08:14:59.999");
        let minute = |text| Floor::of(text).map(Floor::text);
        assert_eq!(minute("2026-09-01 08:15:00").as_deref(), Some(&*floor));
        assert_eq!(minute("2026-09-01 08:15:59.999").as_deref(), Some(&*floor));
        assert_eq!(minute("2026-09-01 08:14:59.999").as_deref(), Some("2026-09-01 08:14:00"));
        assert_eq!(minute("infinity"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_window_within_the_maximum(text in ".*") {
            prop_assert!(window(Some(&text), DAY) <= DAY);
        }
    }
}
