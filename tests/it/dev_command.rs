//! `runwire dev`, from outside: what it prints works as printed, and it leaves nothing behind.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use runwire::dev::{RunSpec, seed::SEEDED, trigger_run};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::npm::Client;
use crate::support::process::{alive, arguments, descendants, signal};
use crate::support::scratch::Scratch;

const SOON: Duration = Duration::from_secs(60);
pub const FREE: [&str; 2] = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwire"));
    command.arg("dev").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    // A database that is set for `serve` is none of dev's business.
    command.env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing");
    command.env("DIRECT_URL", "postgresql://nobody@127.0.0.1:1/nothing");
    command.kill_on_drop(true);
    command
}

/// A running `runwire dev`.
pub struct Dev {
    process: Child,
    /// What it printed.
    pub text: String,
}

impl Dev {
    pub async fn start(arguments: &[&str]) -> Dev {
        let mut process = command(arguments).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut text = String::new();
        while !text.contains("Ctrl-C stops everything") {
            let line = tokio::time::timeout(SOON, lines.next_line()).await;
            let line = line.expect("the text comes soon").unwrap();
            text.push_str(&line.unwrap_or_else(|| panic!("it ended after {text:?}")));
            text.push('\n');
        }
        Dev { process, text }
    }

    /// What stands behind a label.
    fn shown(&self, label: &str) -> &str {
        let line = self.text.lines().find_map(|line| line.trim_start().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {}", self.text)).trim()
    }

    /// Ends it by a signal, and asserts that it left nothing but a kept database.
    pub async fn end(mut self, by: &str) {
        let pid = self.process.id().unwrap();
        let processes = descendants(pid);
        let sockets = |pid: &u32| {
            let arguments = arguments(*pid);
            let at = arguments.iter().position(|argument| argument == "-k")?;
            Some(PathBuf::from(&arguments[at + 1]))
        };
        let directory = processes.iter().find_map(sockets).expect("a Postgres of its own");
        assert!(directory.exists());
        signal(pid, by);
        let status = tokio::time::timeout(SOON, self.process.wait()).await;
        assert_eq!(status.expect("it ends soon").unwrap().code(), Some(0));
        let left: Vec<_> = processes.into_iter().filter(|pid| alive(*pid)).map(arguments).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!directory.exists(), "{directory:?}");
        let address = self.shown("URL").strip_prefix("http://").unwrap();
        assert!(TcpStream::connect(address).is_err(), "{address}");
    }
}

#[tokio::test]
async fn what_dev_prints_works_as_printed_and_ctrl_c_leaves_nothing_behind() {
    let dev = Dev::start(&[&FREE[..], &["--pace=100ms", "--seed=1"]].concat()).await;
    assert_eq!(dev.shown("Secret key"), SEEDED.production.secret_key);

    // A shell takes the line apart, as it will for whoever pastes it.
    let line = dev.text.lines().find(|line| line.starts_with("curl -N ")).unwrap();
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{line}");
    let shell = Command::new("sh").arg("-c").arg(script).output().await.unwrap();
    let arguments = String::from_utf8(shell.stdout).unwrap();
    let [_, _, header, url] = arguments.lines().collect::<Vec<_>>()[..] else {
        panic!("{arguments}")
    };
    let (name, value) = header.split_once(": ").unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(url).header(name, value).timeout(Duration::from_secs(5));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains(SEEDED.run));

    let mut lines = dev.text.lines();
    let stream = lines.find(|line| line.starts_with("curl -N ") && line.contains("/streams/"));
    let url = stream.unwrap().split('\'').nth(3).unwrap();
    let words = async {
        let request = client.get(url).header(name, value).timeout(SOON);
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut read = String::new();
        while read.matches("event: batch").count() < 3 {
            let piece = answer.chunk().await.unwrap().expect("it goes on");
            read.push_str(std::str::from_utf8(&piece).unwrap());
        }
        read
    };
    assert!(words.await.contains(r#"{\"data\":\"A \","#), "the answer's first word");

    let snippet = dev.text.split_once("node --input-type=module -e '\n").unwrap().1;
    let snippet = snippet.split_once("\n}'\n").unwrap().0.to_owned() + "\n}";
    assert!(!snippet.contains('\'') && snippet.contains(dev.shown("Public token")));
    // The one thing that differs from an empty directory: here are several SDKs.
    let mut sdk = Client::module(&snippet.replace("@trigger.dev/sdk", "sdk-4.8.3")).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let line = sdk.next_line(SOON).await.expect("the example run never ends");
        assert!(line.starts_with(SEEDED.run) && line.contains("EXECUTING"), "{line}");
        assert_ne!(Some(&line), seen.last(), "a line per change");
        seen.push(line);
    }
    dev.end("INT").await;
}

#[tokio::test]
async fn a_kept_database_is_there_again_at_the_next_start() {
    let kept = Scratch::new("dev-kept");
    let keep = format!("--keep={}", kept.0.display());
    let dev = Dev::start(&[&FREE[..], &[&keep]].concat()).await;
    let pool = PgPool::connect(dev.shown("Database")).await.unwrap();
    let spec = RunSpec::new("keepsake");
    let run = trigger_run(&pool, &SEEDED.production, spec).await.unwrap().friendly_id;
    pool.close().await;
    dev.end("TERM").await;

    // Somebody has the usual port: we or another. It does not matter when it is not asked for.
    let _taken = TcpListener::bind("127.0.0.1:3040");
    let dev = Dev::start(&["--admin-listen=127.0.0.1:0", &keep]).await;
    assert_ne!(dev.shown("URL"), "http://127.0.0.1:3040");
    let url = format!("{}/realtime/v1/runs/{run}?offset=-1", dev.shown("URL"));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(url).bearer_auth(dev.shown("Public token")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("keepsake"));
    dev.end("TERM").await;
    assert!(kept.0.join("PG_VERSION").exists());
}

#[tokio::test]
async fn dev_ends_soon_when_its_database_does() {
    let mut dev = Dev::start(&FREE).await;
    let children = descendants(dev.process.id().unwrap());
    let postgres = |pid: &&u32| arguments(**pid)[0].ends_with("/postgres");
    signal(*children.iter().find(postgres).expect("a Postgres of its own"), "INT");
    let status = tokio::time::timeout(Duration::from_secs(20), dev.process.wait()).await;
    assert_eq!(status.expect("it ends soon").unwrap().code(), Some(1));
}

#[tokio::test]
async fn wrong_settings_are_one_line_and_exit_2() {
    async fn refused(arguments: &[&str]) -> String {
        let Output { status, stderr, .. } =
            command(arguments).stderr(Stdio::piped()).output().await.unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), said.trim_end().lines().count()), (Some(2), 1), "{said}");
        said
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&["--listen", &address, FREE[1]]).await;
    assert!(said.contains(&address), "{said}");

    let other = Scratch::new("dev-other");
    std::fs::create_dir(&other.0).unwrap();
    std::fs::write(other.0.join("thesis.txt"), "precious").unwrap();
    let path = other.0.to_str().unwrap();
    let said = refused(&[&FREE[..], &["--keep", path]].concat()).await;
    assert!(said.contains(path), "{said}");
}
