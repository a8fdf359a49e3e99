//! Why the throw-away Postgres did not start.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::binaries::BinariesError;
use super::postgres::START_TIMEOUT;

/// Why Postgres did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No programs.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// We are root, and nobody else is here.
    #[error("Postgres refuses to run as root, and there is no user postgres or nobody")]
    NoUnprivilegedUser,
    /// The directory to keep holds something else.
    #[error("{0} is neither empty nor a Postgres data directory")]
    NotACluster(PathBuf),
    /// The user that runs Postgres cannot get at a file.
    #[error("the user that runs Postgres (not root) cannot use {0}: choose another directory")]
    Unreachable(PathBuf),
    /// Somebody else runs this cluster.
    #[error("the cluster in {0} is in use already")]
    InUse(PathBuf),
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The refusal.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {said}")]
    Program {
        /// Which one.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// It neither became ready nor ended.
    #[error("Postgres was not ready after {} seconds: {said}", START_TIMEOUT.as_secs())]
    Slow {
        /// Its last words.
        said: String,
    },
}

pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { doing, source }
}
