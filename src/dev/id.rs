//! Ids as Trigger.dev's engine makes them.

use rand::Rng;

/// 25 characters like a cuid: `c`, then digits and lower-case letters.
pub(crate) fn cuid() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    let digit = |_| char::from(DIGITS[random.random_range(0..DIGITS.len())]);
    std::iter::once('c').chain((0..24).map(digit)).collect()
}

/// Hexadecimal digits, as traces and spans have them.
pub(crate) fn hex(digits: usize) -> String {
    let mut random = rand::rng();
    (0..digits).map(|_| char::from_digit(random.random_range(0..16), 16).unwrap_or('0')).collect()
}
