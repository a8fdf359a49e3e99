//! A Postgres cluster of our own, gone when its owner is.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::binaries::Binaries;
use super::directory::{self, Directories};
use super::error::{StartError, io};
use super::guardian::Guardian;

pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What kind of cluster to start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The major version, where it matters.
    pub major: Option<u32>,
    /// Where the database is kept between starts; without it, it is thrown away.
    pub data_dir: Option<PathBuf>,
    /// Settings beyond ours, or instead of them.
    pub settings: Vec<(String, String)>,
}

/// How to stop, in Postgres' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients; slots' consumers get what is left.
    Fast,
    /// Stops as a crash would.
    Immediate,
}

impl StopMode {
    const fn name(self) -> &'static str {
        match self {
            StopMode::Smart => "smart",
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        }
    }
}

/// A running cluster. Dropping it stops it and removes what is not to be kept; if the process dies
/// instead, a guardian process does the same.
#[derive(Debug)]
pub struct Postgres {
    binaries: Binaries,
    account: Account,
    directories: Directories,
    settings: Vec<(String, String)>,
    port: u16,
    server: Option<Child>,
    guardian: Guardian,
}

impl Postgres {
    /// Makes a cluster (or opens a kept one) and starts it.
    pub async fn start(options: Options) -> Result<Postgres, StartError> {
        let account = Account::for_postgres().ok_or(StartError::NoUnprivilegedUser)?;
        let kept_major = options.data_dir.as_deref().map(directory::major).transpose()?.flatten();
        let major = kept_major.or(options.major);
        let stop = CancellationToken::new();
        // If we are dropped meanwhile, so is the search.
        let _stop_if_dropped = stop.clone().drop_guard();
        let find = tokio::task::spawn_blocking(move || Binaries::find(major, &stop));
        let binaries = find.await.map_err(|panic| io("look for Postgres")(panic.into()))??;
        if !account.can("-x", &binaries.program("postgres")).await {
            return Err(StartError::Unreachable(binaries.directory().to_owned()));
        }
        directory::sweep(account, &binaries).await;
        let directories = Directories::prepare(account, options.data_dir).await?;
        let stop = if directories.kept() { StopMode::Fast } else { StopMode::Immediate };
        let guardian = Guardian::start(
            account,
            &binaries,
            directories.data(),
            stop.name(),
            directories.temporary(),
        )
        .map_err(io("start a shell"))?;
        let settings = settings(directories.kept(), options.settings);
        let mut postgres =
            Postgres { binaries, account, directories, settings, port: 0, server: None, guardian };
        if kept_major.is_none() {
            postgres.initdb().await?;
        }
        for _ in 0..5 {
            postgres.port = free_port().map_err(io("find a free port"))?;
            match postgres.start_again().await {
                // Somebody else took the port between our look and the server's.
                Err(StartError::Program { said, .. }) if said.contains("in use") => {}
                result => return result.map(|()| postgres),
            }
        }
        postgres.start_again().await.map(|()| postgres)
    }

    async fn initdb(&self) -> Result<(), StartError> {
        let mut command = self.account.command(&self.binaries.program("initdb"));
        command.envs(self.binaries.environment()).arg("-D").arg(self.directories.data());
        command.args(["-A", "trust", "-U", "postgres", "--locale=C", "--encoding=UTF8"]);
        if !self.directories.kept() {
            command.arg("--no-sync");
        }
        let output = command.output().await.map_err(io("run initdb"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(StartError::Program { program: "initdb", status: output.status, said })
    }

    /// Starts the stopped server on the same port, and waits until it takes connections.
    pub async fn start_again(&mut self) -> Result<(), StartError> {
        if self.is_running() {
            return Ok(());
        }
        let data = self.directories.data();
        let log = File::create(self.directories.log()).map_err(io("write Postgres' log"))?;
        let mut command = Command::new(self.binaries.program("postgres"));
        self.account.apply(&mut command);
        command.envs(self.binaries.environment()).arg("-D").arg(data);
        command.arg("-k").arg(self.directories.temporary()).arg("-p").arg(self.port.to_string());
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(log.try_clone().map_err(io("write Postgres' log"))?).stderr(log);
        // Kept at once, so that it is stopped also if we are dropped while it starts.
        let server = self.server.insert(command.spawn().map_err(io("run postgres"))?);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.try_wait().map_err(io("wait for postgres"))? {
                let said = self.directories.last_words();
                return Err(StartError::Program { program: "postgres", status, said });
            }
            if is_ready(data, server.id()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(StartError::Slow { said: self.directories.last_words() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the server and keeps its data, for [`Postgres::start_again`].
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), StartError> {
        if !self.is_running() {
            return Ok(());
        }
        let mut command = self.account.command(&self.binaries.program("pg_ctl"));
        command.envs(self.binaries.environment()).arg("-D").arg(self.directories.data());
        command.args(["-m", mode.name(), "-t", "120", "-w", "stop"]);
        let output = command.output().await.map_err(io("run pg_ctl"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(StartError::Program { program: "pg_ctl", status: output.status, said });
        }
        if let Some(mut server) = self.server.take() {
            // The pid file is gone, so the process is ending.
            server.wait().map_err(io("wait for postgres"))?;
        }
        Ok(())
    }

    /// Whether the server's process lives.
    pub fn is_running(&mut self) -> bool {
        let running = self.server.as_mut().is_some_and(|s| matches!(s.try_wait(), Ok(None)));
        if !running {
            self.server = None;
        }
        running
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How to reach a database of this cluster, as its superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The directory of `postgres`, `initdb` and `pg_ctl`.
    pub fn bin_dir(&self) -> &Path {
        self.binaries.directory()
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.binaries.major()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        self.directories.data()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.guardian.finish();
        if let Some(mut server) = self.server.take() {
            // Ends at once after the guardian's work, and also if somebody killed the guardian.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn settings(kept: bool, more: Vec<(String, String)>) -> Vec<(String, String)> {
    let ours = [
        ("listen_addresses", "127.0.0.1"),
        ("wal_level", "logical"),
        ("max_replication_slots", "100"),
        ("max_wal_senders", "100"),
        ("max_connections", "200"),
        ("fsync", if kept { "on" } else { "off" }),
        ("logging_collector", "off"),
    ];
    // Of a setting given twice, the last counts.
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(more).collect()
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Whether the postmaster says so in its pid file, as pg_ctl asks: the pid is on the first line,
/// the state on the eighth.
fn is_ready(data: &Path, pid: u32) -> bool {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = file.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}
