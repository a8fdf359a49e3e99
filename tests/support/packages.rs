//! The Node projects of this repository, with the packages of their lock files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// The unmodified clients.
pub static CLIENTS: Project = Project::new("tests/clients");
/// A headless browser.
pub static BROWSER: Project = Project::new("tests/browser");
/// The page with the React hooks.
pub static REACT: Project = Project::new("examples/react");

/// A directory with a `package.json`. What fails here fails the test; nothing is skipped.
pub struct Project {
    path: &'static str,
    installed: OnceCell<()>,
}

impl Project {
    const fn new(path: &'static str) -> Project {
        Project { path, installed: OnceCell::const_new() }
    }

    /// Where it is.
    pub fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.path)
    }

    /// Installs its packages unless this lock file's are there.
    pub async fn install(&self) {
        let directory = self.directory();
        let install = || async {
            let done = spawn_blocking(move || install(&directory)).await.expect("install packages");
            done.unwrap_or_else(|error| panic!("cannot install {}: {error}", self.path));
        };
        self.installed.get_or_init(install).await;
    }

    /// Builds its pages into a directory unless they are there, of these sources.
    pub async fn build(&self, pages: &Path) {
        self.install().await;
        let (directory, pages) = (self.directory(), pages.to_owned());
        let done = spawn_blocking(move || build(&directory, &pages)).await.expect("build pages");
        done.unwrap_or_else(|error| panic!("cannot build {}: {error}", self.path));
    }
}

fn install(directory: &Path) -> io::Result<()> {
    let wanted = digest([directory.join("package-lock.json")])?;
    // Not in node_modules, which npm ci removes.
    let lock = directory.join(".install.lock");
    let stamp = directory.join("node_modules/.runwire-installed");
    unless_stamped(&lock, &stamp, &wanted, || {
        npm(directory, &["ci", "--ignore-scripts", "--no-audit", "--no-fund"])?;
        // The one script that is ours, in place of the packages' own.
        npm(directory, &["run", "--if-present", "unpack"])
    })
}

fn build(directory: &Path, pages: &Path) -> io::Result<()> {
    let files = |directory: &Path| -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.is_file());
        paths.sort();
        Ok(paths)
    };
    let sources = [files(directory)?, files(&directory.join("src"))?].concat();
    let (lock, stamp) = (pages.with_extension("lock"), pages.with_extension("built"));
    unless_stamped(&lock, &stamp, &digest(sources)?, || {
        let pages = pages.to_str().expect("a path in UTF-8");
        npm(directory, &["run", "build", "--", "--emptyOutDir", "--outDir", pages])
    })
}

fn digest(files: impl IntoIterator<Item = PathBuf>) -> io::Result<String> {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(fs::read(file)?);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Does the work and leaves the stamp, unless the stamp is there. Other test processes wait at the
/// lock, then find the work done.
pub fn unless_stamped(
    lock: &Path,
    stamp: &Path,
    wanted: &str,
    work: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let lock = File::create(lock)?;
    lock.lock()?;
    if fs::read_to_string(stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    work()?;
    fs::write(stamp, wanted)
}

fn npm(directory: &Path, arguments: &[&str]) -> io::Result<()> {
    let mut npm = Command::new("npm");
    let output = npm.args(arguments).current_dir(directory).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{}: {}", output.status, String::from_utf8_lossy(&said))))
}
