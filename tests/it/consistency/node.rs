//! A gateway that keeps its address while it is stopped, killed and started again.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;

use crate::support::gateway::{API_VERSION, Gateway, PATIENCE, Shape, eventually, settings};

/// What runs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This process.
    Here,
    /// The binary, which can be killed.
    Binary,
}

enum Process {
    Here(Box<Gateway>),
    Binary(Child),
}

/// A gateway at one address for as long as the test lasts.
pub struct Node {
    pub url: String,
    pub admin_url: String,
    address: SocketAddr,
    admin: SocketAddr,
    kind: Kind,
    database_url: String,
    arguments: Vec<String>,
    trail: Option<Duration>,
    chunk: Option<usize>,
    process: Option<Process>,
}

impl Node {
    /// Starts one and waits until it is ready.
    pub async fn start(kind: Kind, database_url: &str, arguments: &[&str]) -> Node {
        let mut node = Node::unstarted(kind, database_url, arguments);
        node.start_again().await;
        node.ready().await;
        node
    }

    /// One that has an address and does not run yet.
    pub fn unstarted(kind: Kind, database_url: &str, arguments: &[&str]) -> Node {
        let (address, admin) = (free_address(), free_address());
        Node {
            address,
            admin,
            url: format!("http://{address}"),
            admin_url: format!("http://{admin}"),
            kind,
            database_url: database_url.to_owned(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            trail: None,
            chunk: None,
            process: None,
        }
    }

    /// By how much a permanent slot trails. Only for a node in this process.
    pub fn trailing(mut self, trail: Duration) -> Node {
        self.trail = Some(trail);
        self
    }

    /// How long a chunk of a long list is, in bytes. Only for a node in this process.
    pub fn in_chunks_of(mut self, bytes: usize) -> Node {
        self.chunk = Some(bytes);
        self
    }

    /// Starts it where it was before, without waiting until it is ready.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the node runs");
        self.process = Some(match self.kind {
            Kind::Here => {
                let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
                let mut settings = settings(&self.database_url, &arguments);
                (settings.listen, settings.admin_listen) = (self.address, self.admin);
                settings.replication.trail = self.trail.unwrap_or(settings.replication.trail);
                settings.feeds.chunk = self.chunk.unwrap_or(settings.feeds.chunk);
                Process::Here(Box::new(Gateway::start_with(settings).await))
            }
            Kind::Binary => Process::Binary(
                Command::new(env!("CARGO_BIN_EXE_runwire"))
                    .arg("serve")
                    .arg("--database-url")
                    .arg(&self.database_url)
                    .arg(format!("--listen={}", self.address))
                    .arg(format!("--admin-listen={}", self.admin))
                    .args(&self.arguments)
                    .env("RUNWIRE_LOG", "off")
                    .stdout(Stdio::null())
                    .spawn()
                    .expect("run the binary"),
            ),
        });
    }

    /// Waits until feeds are served.
    pub async fn ready(&self) {
        let client = client();
        let url = format!("{}/readyz", self.admin_url);
        eventually("the node to be ready", || async {
            matches!(client.get(&url).send().await, Ok(answer) if answer.status() == 200)
        })
        .await;
    }

    /// Ends it as an operator would.
    pub async fn stop(&mut self) {
        match self.process.take() {
            Some(Process::Here(gateway)) => gateway.stop().await,
            Some(Process::Binary(mut child)) => {
                signal("TERM", child.id());
                assert!(exit(&mut child).await.success(), "it ends well");
            }
            None => {}
        }
    }

    /// Ends it without a word; one in this process can only be stopped.
    pub async fn kill(&mut self) {
        match self.process.take() {
            Some(Process::Binary(mut child)) => {
                child.kill().expect("kill the binary");
                child.wait().expect("wait for the binary");
            }
            other => {
                self.process = other;
                self.stop().await;
            }
        }
    }

    /// The process id of a node that is the binary.
    pub fn process(&mut self) -> &mut Child {
        match &mut self.process {
            Some(Process::Binary(child)) => child,
            _ => panic!("not a process of its own"),
        }
    }

    /// The sum of a metric's series. Those of nodes in this process are added up, so this is of use
    /// with the binary alone.
    pub async fn metric(&self, name: &str) -> f64 {
        let url = format!("{}/metrics", self.admin_url);
        let text = client().get(url).send().await.expect("metrics").text().await.expect("text");
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = text.lines().filter(of_name);
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Opens a run's feed, or goes on with a handle.
    pub async fn get(&self, key: &str, run: &str, query: &str) -> Shape {
        let answer = get(&client(), &self.url, key, run, query).await;
        answer.expect("an answer")
    }

    /// Goes on from an answer; `more` is added to the query.
    pub async fn next(&self, key: &str, run: &str, from: &Shape, more: &str) -> Shape {
        let query = format!("handle={}&offset={}{more}", from.handle(), from.offset());
        self.get(key, run, &query).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(Process::Binary(child)) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client that knows no proxy.
pub fn client() -> Client {
    Client::builder().no_proxy().build().expect("a client")
}

/// One request for a run's feed; an error when the connection broke.
pub async fn get(
    client: &Client,
    url: &str,
    key: &str,
    run: &str,
    query: &str,
) -> Result<Shape, reqwest::Error> {
    get_path(client, url, key, &format!("/realtime/v1/runs/{run}?{query}")).await
}

/// One request for any feed.
pub async fn get_path(
    client: &Client,
    url: &str,
    key: &str,
    path: &str,
) -> Result<Shape, reqwest::Error> {
    let (name, version) = API_VERSION;
    let request = client.get(format!("{url}{path}")).bearer_auth(key).header(name, version);
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Shape { status, headers, text: response.text().await? })
}

/// Sends a signal to a process.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.expect("run kill").success(), "SIG{name} to {pid}");
}

/// Waits for a process to end.
pub async fn exit(child: &mut Child) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for the binary") {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "the binary does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address")
}
