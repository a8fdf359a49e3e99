//! Paths for what a test writes.

use std::path::PathBuf;

/// A path under the temporary directory, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let unique = format!("runwire-test-{name}-{}", std::process::id());
        Scratch(std::env::temp_dir().join(unique))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
