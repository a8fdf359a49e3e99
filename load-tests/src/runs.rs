//! The runs that the load is about: how they are named, and how their versions count.

/// The version that every run starts from. All versions have as many digits.
pub const FIRST_VERSION: u64 = 1_000_000;

/// The secret key of the environment that holds the runs.
pub const SECRET_KEY: &str = "tr_prod_loadloadloadloadloadload";

/// The environment that holds them.
pub const ENVIRONMENT: &str = "env_load";

/// With how many digits an id ends, which are the run's number.
pub const DIGITS: usize = 20;

/// The internal id of a run.
pub fn internal_id(run: usize) -> String {
    format!("cload{run:0DIGITS$}")
}

/// The id by which clients know it.
pub fn friendly_id(run: usize) -> String {
    format!("run_cload{run:0DIGITS$}")
}

/// The number of the run whose friendly id ends the path.
pub fn of_path(path: &str) -> Option<usize> {
    path.rsplit_once("run_cload")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_by_its_path() {
        assert_eq!(of_path(&format!("/realtime/v1/runs/{}", friendly_id(42))), Some(42));
        assert_eq!(of_path("/realtime/v1/runs"), None);
    }
}
