//! The servers under test as child processes: Runwire and the bare one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cores::on_core;
use crate::streams::stand::lite_command;

/// How long a server may take to come up and to go down.
const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// More than any trial has.
const MAX_CONNECTIONS: &str = "1000000";

/// A server process. Killed when dropped.
pub struct Server {
    child: Child,
    /// Its public address.
    pub address: SocketAddr,
    /// Where Runwire shows its metrics; the bare server has none.
    pub admin: Option<SocketAddr>,
    /// From the start of the process until it was ready.
    pub ready_after: Duration,
}

/// How Runwire is started.
pub struct Runwire<'a> {
    /// The program.
    pub program: &'a Path,
    /// The database.
    pub url: &'a str,
    /// `permanent`, `temporary` or `auto`.
    pub slot_kind: &'a str,
    /// A directory for its data and its log.
    pub scratch: &'a Path,
    /// The core that it runs on.
    pub core: usize,
    /// How long it holds a poll that nothing is new for, if not as long as it does by itself.
    pub hold: Option<Duration>,
    /// Settings beyond these.
    pub environment: &'a [(&'static str, String)],
}

impl Runwire<'_> {
    /// Starts it and waits until it says that it is ready.
    pub fn start(&self) -> Result<Server> {
        let listen = free_address()?;
        let admin = free_address()?;
        let log = self.scratch.join("runwire.log");
        let output = File::create(&log)?;
        let mut command = Command::new(self.program);
        command
            .arg("serve")
            .env("DATABASE_URL", self.url)
            .env("RUNWIRE_LISTEN", listen.to_string())
            .env("RUNWIRE_ADMIN_LISTEN", admin.to_string())
            .env("RUNWIRE_SLOT_KIND", self.slot_kind)
            .env("RUNWIRE_MAX_CONNECTIONS", MAX_CONNECTIONS)
            .env("RUNWIRE_DATA_DIR", self.scratch.join("data"))
            .env_remove("DIRECT_URL")
            .env_remove("RUNWIRE_REPLICATION_URL")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if let Some(hold) = self.hold {
            command.env("RUNWIRE_HOLD", format!("{}s", hold.as_secs()));
        }
        let began = Instant::now();
        let child = on_core(self.core, || {
            command.spawn().with_context(|| format!("starting {}", self.program.display()))
        })?;
        let mut server =
            Server { child, address: listen, admin: Some(admin), ready_after: Duration::ZERO };
        while !is_ready(admin) {
            if let Some(status) = server.child.try_wait()? {
                bail!("runwire ended with {status}: {}", last_lines(&log));
            }
            if began.elapsed() > START_LIMIT {
                bail!("runwire is not ready after {START_LIMIT:?}: {}", last_lines(&log));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        server.ready_after = began.elapsed();
        Ok(server)
    }
}

/// Starts the bare server, which is this program under another command.
pub fn start_bare(answer: &Path, feeds: usize, http2: bool, core: usize) -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bare", "--listen", "127.0.0.1:0", "--feeds", &feeds.to_string(), "--answer"])
        .arg(answer)
        .args(http2.then_some("--http2"));
    start_self(command, core)
}

/// Starts the bare server of events.
pub fn start_bare_events(core: usize) -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare-events");
    start_self(command, core)
}

/// Starts this program as a server that says where it listens.
fn start_self(mut command: Command, core: usize) -> Result<Server> {
    let began = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = on_core(core, || command.spawn().context("starting the bare server"))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    let address = line.trim().parse();
    let ready_after = began.elapsed();
    let mut server = Server { child, address: free_address()?, admin: None, ready_after };
    server.address = address.context("the bare server did not say where it listens")?;
    Ok(server)
}

/// Starts plain s2-lite on this directory, and waits until it is healthy.
pub fn start_lite(directory: &Path, flush: &str, core: usize) -> Result<Server> {
    let (began, address) = (Instant::now(), free_address()?);
    let mut command = lite_command(directory, flush, address.port())?;
    let child = on_core(core, || command.spawn().context("starting s2-lite"))?;
    let mut server = Server { child, address, admin: None, ready_after: Duration::ZERO };
    while !ask(address, "/health").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        if let Some(status) = server.child.try_wait()? {
            bail!("s2-lite ended with {status}: {}", last_lines(&directory.join("log")));
        }
        if began.elapsed() > START_LIMIT {
            bail!("s2-lite is not healthy after {START_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    server.ready_after = began.elapsed();
    Ok(server)
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end by SIGTERM and returns how long it took.
    pub fn stop(mut self) -> Result<Duration> {
        let began = Instant::now();
        let pid = i32::try_from(self.child.id()).context("an impossible process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("sending SIGTERM")?;
        while began.elapsed() < STOP_LIMIT {
            if self.child.try_wait()?.is_some() {
                return Ok(began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the server ignored SIGTERM for {STOP_LIMIT:?}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that was free a moment ago. Each server gets a new one, so that no connection of an
/// earlier trial, still closing, stands in its way.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn is_ready(admin: SocketAddr) -> bool {
    ask(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The whole answer of an operators' route.
pub fn ask(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&admin, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// A directory of this invocation's own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    pub fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("runwire-load-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning of temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
