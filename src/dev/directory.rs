//! Where a cluster keeps its files, and the removal of what others left.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::account::{self, Account};
use super::binaries::Binaries;
use super::error::{StartError, io};

const PREFIX: &str = "runwire-pg-";

/// A cluster's directories.
#[derive(Debug)]
pub(crate) struct Directories {
    /// Log, sockets, and the data unless kept.
    temporary: PathBuf,
    data: PathBuf,
    kept: bool,
    /// Held while we live, so that [`sweep`] leaves us alone.
    lock: File,
}

impl Directories {
    pub(crate) async fn prepare(
        account: Account,
        kept: Option<PathBuf>,
    ) -> Result<Directories, StartError> {
        let doing = "make a temporary directory";
        let temporary = root().join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&temporary).map_err(io(doing))?;
        let lock = File::create(temporary.join("lock")).map_err(io(doing))?;
        let data = temporary.join("data");
        // From here on it is removed again, whatever fails.
        let mut directories = Directories { temporary, data, kept: kept.is_some(), lock };
        directories.lock.try_lock().map_err(|error| io(doing)(error.into()))?;
        account.own(&directories.temporary).map_err(io(doing))?;
        directories.check(account, &directories.temporary).await?;
        if let Some(data) = kept {
            directories.data = keep(&data, account)?;
            directories.check(account, &directories.data).await?;
        }
        Ok(directories)
    }

    async fn check(&self, account: Account, path: &Path) -> Result<(), StartError> {
        let usable = account.can("-w", path).await;
        if usable { Ok(()) } else { Err(StartError::Unreachable(path.to_owned())) }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(crate) fn kept(&self) -> bool {
        self.kept
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.temporary.join("log")
    }

    /// The end of the server's log.
    pub(crate) fn last_words(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(self.log()) {
            let start = log.metadata().map_or(0, |data| data.len()).saturating_sub(2000);
            let _ = log.seek(SeekFrom::Start(start)).and_then(|_| log.read_to_end(&mut text));
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        // After a server ran, its guardian has done this already.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Unix sockets allow no long paths, and an unprivileged user must get through.
fn root() -> PathBuf {
    let set = std::env::temp_dir();
    if account::uid() == 0 || set.as_os_str().len() > 60 { PathBuf::from("/tmp") } else { set }
}

fn keep(data: &Path, account: Account) -> Result<PathBuf, StartError> {
    let doing = "make the directory to keep";
    if !data.exists() {
        DirBuilder::new().recursive(true).mode(0o755).create(data).map_err(io(doing))?;
    }
    let data = data.canonicalize().map_err(io(doing))?;
    if is_empty(&data)? {
        account.own(&data).map_err(io(doing))?;
    }
    if data.join("postmaster.pid").exists() && postmaster_lives(&data) {
        return Err(StartError::InUse(data));
    }
    Ok(data)
}

fn is_empty(data: &Path) -> Result<bool, StartError> {
    Ok(fs::read_dir(data).map_err(io("read the directory to keep"))?.next().is_none())
}

fn postmaster_lives(data: &Path) -> bool {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = file.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return false;
    };
    // A server's working directory is its data directory, so a reused pid does not deceive us.
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
}

/// The version of the cluster in a directory, if there is one and not nothing.
pub(crate) fn major(data: &Path) -> Result<Option<u32>, StartError> {
    if !data.exists() || is_empty(data)? {
        return Ok(None);
    }
    let version = fs::read_to_string(data.join("PG_VERSION")).ok();
    let major = version.and_then(|version| version.trim().parse().ok());
    major.map(Some).ok_or_else(|| StartError::NotACluster(data.to_owned()))
}

/// Removes what a process left whose guardian was killed with it.
pub(crate) async fn sweep(account: Account, binaries: &Binaries) {
    for stale in fs::read_dir(root()).into_iter().flatten().flatten() {
        let path = stale.path();
        let ours = stale.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !abandoned(&path, account).unwrap_or(false) {
            continue;
        }
        let data = path.join("data");
        if postmaster_lives(&data) {
            let mut stop = account.command(&binaries.program("pg_ctl"));
            stop.envs(binaries.environment()).arg("-D").arg(&data);
            let _ = stop.args(["-m", "immediate", "-t", "20", "-w", "stop"]).output().await;
        }
        // Somebody else may be sweeping, too.
        let _ = fs::remove_dir_all(&path);
    }
}

fn abandoned(path: &Path, account: Account) -> std::io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    // A new one may not have its lock yet.
    let age = SystemTime::now().duration_since(found.modified()?).unwrap_or_default();
    if !found.is_dir() || !account.owns(found.uid()) || age < Duration::from_secs(60) {
        return Ok(false);
    }
    match File::open(path.join("lock")) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}
