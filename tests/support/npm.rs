//! The real clients, as Node programs that report what they see line by line.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::packages::{CLIENTS, Project};

/// Where to connect, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The gateway.
    pub base_url: String,
    /// A secret key or public token.
    pub access_token: String,
}

impl Target {
    fn env(&self) -> [(&'static str, &str); 2] {
        [("BASE_URL", &self.base_url), ("ACCESS_TOKEN", &self.access_token)]
    }
}

/// A running client. Killed when dropped.
pub struct Client {
    name: String,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Runs a script of `tests/clients`.
    pub async fn start(script: &str, arguments: &[&str], env: &[(&str, &str)]) -> Client {
        Client::of(&CLIENTS, script, arguments, env).await
    }

    /// Runs a script of a project.
    pub async fn of(
        project: &Project,
        script: &str,
        arguments: &[&str],
        env: &[(&str, &str)],
    ) -> Client {
        project.install().await;
        let mut process = tokio::process::Command::new("node")
            .arg(script)
            .args(arguments)
            .envs(env.iter().copied())
            .current_dir(project.directory())
            .env("EXIT_WITH_STDIN", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("run node");
        let stdout = process.stdout.take().expect("stdout is piped");
        let name = format!("{script} {}", arguments.join(" "));
        Client { name, process, lines: BufReader::new(stdout).lines() }
    }

    /// Runs a module that stands in nobody's file; what it prints is read by [`Client::next_line`].
    pub async fn module(text: &str) -> Client {
        Client::start("--input-type=module", &["-e", text], &[]).await
    }

    /// `runs.subscribeToRun` of an SDK: `sdk-4.8.3`, `sdk-4.1` or `sdk-3.3.17`.
    pub async fn subscribe_run(sdk: &str, target: &Target, run: &str) -> Client {
        let env = [&target.env()[..], &[("RUN_ID", run)]].concat();
        Client::start("subscribe-run.mjs", &[sdk], &env).await
    }

    /// Lists, by an SDK or by `core-3.2.0`; see `subscribe-lists.mjs` for what names a feed.
    pub async fn subscribe_lists(sdk: &str, target: &Target, feeds: &Value) -> Client {
        let feeds = feeds.to_string();
        let env = [&target.env()[..], &[("FEEDS", &feeds)]].concat();
        Client::start("subscribe-lists.mjs", &[sdk], &env).await
    }

    /// A raw feed (its path and query) by an Electric client, from the start or a handle and an offset.
    pub async fn electric(
        electric: &str,
        target: &Target,
        feed: &str,
        from: Option<(&str, &str)>,
    ) -> Client {
        let env = electric_env(target, feed, from);
        Client::start("electric.mjs", &[electric], &env).await
    }

    /// The same in a browser's tab, whose `localStorage` holds this.
    pub async fn electric_tab(
        electric: &str,
        target: &Target,
        feed: &str,
        from: Option<(&str, &str)>,
        storage: &Value,
    ) -> Client {
        let storage = storage.to_string();
        let mut env = electric_env(target, feed, from);
        env.push(("STORAGE", &storage));
        Client::start("electric.mjs", &[electric], &env).await
    }

    /// Gives it a line. An error is that it has ended.
    pub async fn try_tell(&mut self, order: &Value) -> std::io::Result<()> {
        let stdin = self.process.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(format!("{order}\n").as_bytes()).await
    }

    /// Gives it a line.
    pub async fn tell(&mut self, order: &Value) {
        let told = self.try_tell(order).await;
        told.unwrap_or_else(|error| panic!("{} does not listen: {error}", self.name));
    }

    /// What the client says next; `None` when it has ended.
    pub async fn next(&mut self, within: Duration) -> Option<Value> {
        let line = self.next_line(within).await?;
        Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("{} said {line}", self.name)))
    }

    /// The next line; `None` when it has ended.
    pub async fn next_line(&mut self, within: Duration) -> Option<String> {
        tokio::time::timeout(within, self.lines.next_line())
            .await
            .unwrap_or_else(|_| panic!("{} said nothing for {within:?}", self.name))
            .expect("read the client's output")
    }

    /// The next observation of this type; others but errors are passed over.
    pub async fn next_of(&mut self, kind: &str, within: Duration) -> Value {
        let deadline = tokio::time::Instant::now() + within;
        let wait = async {
            while let Some(said) = self.next(within * 2).await {
                match said["type"].as_str() {
                    Some(found) if found == kind => return said,
                    Some("error") => panic!("{} failed: {said}", self.name),
                    _ => {}
                }
            }
            panic!("{} ended before any {kind}", self.name)
        };
        let said = tokio::time::timeout_at(deadline, wait).await;
        said.unwrap_or_else(|_| panic!("no {kind} from the client within {within:?}"))
    }

    /// The next run that an SDK shows.
    pub async fn next_run(&mut self, within: Duration) -> Value {
        self.next_of("run", within).await
    }

    /// Waits for an answer that refuses the client, and returns its status.
    pub async fn until_refused(&mut self, within: Duration) -> u64 {
        loop {
            let response = self.next_of("response", within).await;
            match response["status"].as_u64() {
                Some(status) if status >= 400 => return status,
                _ => {}
            }
        }
    }

    /// Waits until the client has ended, and returns what it said until then.
    pub async fn rest(&mut self, within: Duration) -> Vec<Value> {
        let mut said = Vec::new();
        while let Some(observation) = self.next(within).await {
            said.push(observation);
        }
        let status = tokio::time::timeout(within, self.process.wait()).await;
        let status = status
            .expect("the client closes its output but does not end")
            .expect("wait for the client");
        assert!(status.success(), "{}: {status} after {said:?}", self.name);
        said
    }
}

fn electric_env<'a>(
    target: &'a Target,
    feed: &'a str,
    from: Option<(&'a str, &'a str)>,
) -> Vec<(&'static str, &'a str)> {
    let mut env = [&target.env()[..], &[("FEED", feed)]].concat();
    env.extend(from.iter().flat_map(|(handle, offset)| [("HANDLE", *handle), ("OFFSET", *offset)]));
    env
}

/// A public token with these scopes (comma-separated), made by the newest SDK.
pub async fn public_token(environment: &str, secret_key: &str, scopes: &str) -> String {
    public_token_skipping(environment, secret_key, scopes, "").await
}

/// The same, which also names columns (comma-separated) that its feeds leave out.
pub async fn public_token_skipping(
    environment: &str,
    secret_key: &str,
    scopes: &str,
    columns: &str,
) -> String {
    let env = [
        ("ENVIRONMENT_ID", environment),
        ("SECRET_KEY", secret_key),
        ("SCOPES", scopes),
        ("SKIP_COLUMNS", columns),
    ];
    let mut client = Client::start("create-token.mjs", &[], &env).await;
    let said = client.next_of("token", Duration::from_secs(30)).await;
    said["token"].as_str().expect("a token is text").to_owned()
}
