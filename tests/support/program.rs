//! The program itself, as an operator starts it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::gateway::{PATIENCE, eventually};

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The line on which it says why it does not run, if that is all it says.
    pub fn complaint(&self) -> &str {
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [line] = lines[..] else { panic!("not one line: {}", self.stderr) };
        line.strip_prefix("runwire: ").unwrap_or_else(|| panic!("said {line}"))
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwire"));
    command.args(arguments);
    alone(command)
}

/// With nothing in its environment, and heard.
fn alone(mut command: Command) -> Command {
    command.env_clear().kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end, with nothing in its environment.
pub async fn run(arguments: &[&str]) -> Ended {
    let output = command(arguments).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("the program to end");
    ended(output.expect("run the program"))
}

fn ended(output: std::process::Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A gateway that runs as a process of its own, on free ports. Killed when dropped.
pub struct Serving {
    /// Where clients connect: `http://127.0.0.1:port`.
    pub url: String,
    process: Child,
    operators: String,
    said: watch::Receiver<String>,
}

impl Serving {
    /// Starts `runwire serve`, and waits until it listens.
    pub async fn start(database_url: &str, arguments: &[&str]) -> Serving {
        Serving::start_at("http://127.0.0.1:0", database_url, arguments).await
    }

    /// The same where an earlier one was.
    pub async fn start_at(url: &str, database_url: &str, arguments: &[&str]) -> Serving {
        Serving::start_in(&[], url, database_url, arguments).await
    }

    /// The same with these variables in its environment.
    pub async fn start_in(
        environment: &[(&str, &str)],
        url: &str,
        database_url: &str,
        arguments: &[&str],
    ) -> Serving {
        let listen = url.strip_prefix("http://").expect("a URL of a gateway");
        let fixed = ["serve", "--listen", listen, "--admin-listen=127.0.0.1:0"];
        let all = [&fixed[..], &["--database-url", database_url], arguments].concat();
        let mut command = command(&all);
        command.envs(environment.iter().copied());
        Serving::run(command).await
    }

    /// One whose files may be limited: see [`Serving::limit_files`].
    pub async fn start_limitable(database_url: &str, arguments: &[&str]) -> Serving {
        // The signal that comes with the limit would end it, which a full disk does not.
        let script = r#"trap "" XFSZ; exec "$0" "$@""#;
        let fixed = ["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_runwire")]).args(fixed);
        command.args(["--database-url", database_url]).args(arguments);
        Serving::run(alone(command)).await
    }

    async fn run(mut command: Command) -> Serving {
        let mut process = command.spawn().expect("run the program");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = String::new();
        let (url, operators) = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("a word from the program").expect("read its log");
            let line = line.unwrap_or_else(|| panic!("it does not run: {said}"));
            said.push_str(&line);
            said.push('\n');
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            let address = |of: &str| Some(format!("http://{}", line["fields"][of].as_str()?));
            if let (Some(url), Some(operators)) = (address("clients"), address("operators")) {
                break (url, operators);
            }
        };
        let (log, said) = watch::channel(said);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.send_modify(|said| *said = format!("{said}{line}\n"));
            }
        });
        Serving { url, process, operators, said }
    }

    /// The same, and waits until it serves feeds.
    pub async fn start_ready(database_url: &str, arguments: &[&str]) -> Serving {
        let serving = Serving::start(database_url, arguments).await;
        serving.ready().await;
        serving
    }

    /// Waits until it serves feeds.
    pub async fn ready(&self) {
        eventually("the program to be ready", || self.is_ready()).await;
    }

    /// What `/readyz` says.
    pub async fn is_ready(&self) -> bool {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.get(format!("{}/readyz", self.operators)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id().expect("it runs")
    }

    /// A GET as clients of today send it.
    pub fn get(&self, path: &str, token: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let (name, version) = super::gateway::API_VERSION;
        client.get(format!("{}{path}", self.url)).bearer_auth(token).header(name, version)
    }

    /// What an operators' path says.
    pub async fn admin(&self, path: &str) -> String {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer =
            client.get(format!("{}{path}", self.operators)).send().await.expect("an answer");
        answer.text().await.expect("a body")
    }

    /// A metric's value by its name and labels; 0 while nothing has happened to it.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics").await;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(value).unwrap_or(0.0)
    }

    /// Waits until its log holds this text.
    pub async fn until_said(&self, text: &str) {
        let mut said = self.said.clone();
        let said = tokio::time::timeout(PATIENCE, said.wait_for(|said| said.contains(text))).await;
        said.unwrap_or_else(|_| panic!("it never said {text}")).expect("it runs");
    }

    /// The most memory that it has taken so far, in bytes.
    pub fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id().expect("it runs"));
        let status = std::fs::read_to_string(path).expect("its status");
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split(' ').rev().nth(1));
        peak.and_then(|peak| peak.trim().parse::<u64>().ok()).expect("its peak") << 10
    }

    /// From now on it cannot write to a file beyond so many bytes; without a limit it can.
    pub async fn limit_files(&self, bytes: Option<u64>) {
        let pid = self.process.id().expect("it runs").to_string();
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let limit = format!("--fsize={limit}:unlimited");
        let done = Command::new("prlimit").args(["--pid", &pid, &limit]).status().await;
        assert!(done.expect("run prlimit").success(), "it can be limited");
    }

    /// Asks it to end, and waits for that; it must do so by itself and in time. Gives its log.
    pub async fn stop(mut self) -> String {
        let pid = self.process.id().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal it");
        let status = tokio::time::timeout(Duration::from_secs(6), self.process.wait()).await;
        let status = status.expect("the program to end in time").expect("wait for the program");
        // The log's end: its writer is gone.
        let _ = self.said.wait_for(|_| false).await;
        let log = self.said.borrow().clone();
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// Ends it as a crash would.
    pub async fn kill(mut self) {
        self.process.kill().await.expect("kill the program");
    }
}
