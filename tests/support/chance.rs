//! Tests that leave things to chance: `RUNWIRE_TEST_SEED` repeats the choices of a run that failed,
//! `RUNWIRE_TEST_SECONDS` says for how long they go on.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// The seed of a test's choices, which it is to print.
pub fn seed() -> u64 {
    number("RUNWIRE_TEST_SEED").unwrap_or_else(rand::random)
}

/// For how long a test goes on, which is this many seconds where nobody says otherwise.
pub fn duration(seconds: u64) -> Duration {
    Duration::from_secs(number("RUNWIRE_TEST_SECONDS").unwrap_or(seconds))
}

/// The choices of a test that makes them all by itself; it prints its seed.
pub fn random() -> StdRng {
    let seed = seed();
    println!("RUNWIRE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// The choices of one of those who take part.
pub fn choices(seed: u64, of: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_add(of))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is not a number")))
}
