//! Random choices that can be made again.

use std::env;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Printed, so that a failure can be run again with `RUNWIRE_TEST_SEED` set to it.
pub fn random() -> StdRng {
    let seed = match env::var("RUNWIRE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("RUNWIRE_TEST_SEED must be a number"),
        Err(_) => rand::random(),
    };
    println!("RUNWIRE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
