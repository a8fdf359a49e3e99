//! A gateway in this process, and plain requests to it.

use std::time::{Duration, Instant};

use clap::Parser as _;
use reqwest::{RequestBuilder, Response, StatusCode};
use runwire::config::ServeArgs;
use runwire::server::{Server, Settings};
use serde_json::Value;

use super::npm::Target;

/// The version that clients of today name.
pub const API_VERSION: (&str, &str) = ("x-trigger-api-version", "2025-07-16");

/// Long enough for anything that is going to happen, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway on a free port.
pub struct Gateway {
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// The same for operators.
    pub admin_url: String,
    client: reqwest::Client,
    server: Server,
}

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    serve: ServeArgs,
}

/// The settings that `serve` has with these arguments, on free ports.
pub fn settings(database_url: &str, arguments: &[&str]) -> Settings {
    let fixed = ["test", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--database-url"];
    let all = fixed.iter().chain([&database_url]).chain(arguments);
    Arguments::parse_from(all).serve.settings().expect("settings")
}

impl Gateway {
    /// Starts one with the default settings but for `arguments`, and waits until it is ready.
    pub async fn start(database_url: &str, arguments: &[&str]) -> Gateway {
        let gateway = Gateway::start_unready(database_url, arguments).await;
        gateway.ready().await;
        gateway
    }

    /// Starts one without waiting.
    pub async fn start_unready(database_url: &str, arguments: &[&str]) -> Gateway {
        Gateway::start_with(settings(database_url, arguments)).await
    }

    /// Starts one with these settings.
    pub async fn start_with(settings: Settings) -> Gateway {
        let server = Server::start(settings).await.expect("start the gateway");
        Gateway {
            url: format!("http://{}", server.address),
            admin_url: format!("http://{}", server.admin_address),
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
            server,
        }
    }

    /// Waits until feeds are served.
    pub async fn ready(&self) {
        eventually("the gateway to be ready", || async { self.is_ready() }).await;
    }

    /// Whether feeds are served from a stream that is caught up.
    pub fn is_ready(&self) -> bool {
        self.server.readiness.reason().is_none()
    }

    /// Drains and stops it.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Where a client connects, with this credential.
    pub fn target(&self, access_token: impl Into<String>) -> Target {
        Target { base_url: self.url.clone(), access_token: access_token.into() }
    }

    /// A GET as clients of today send it.
    pub fn get(&self, path: &str, token: &str) -> RequestBuilder {
        let (name, version) = API_VERSION;
        self.client
            .get(format!("{}{path}", self.url))
            .bearer_auth(token)
            .header(name, version)
            .header("x-trigger-electric-version", "1.0.0-beta.1")
    }

    /// A request of any form.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().expect("a method");
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// Opens a run's feed.
    pub async fn open(&self, run: &str, token: &str) -> Shape {
        let path = format!("/realtime/v1/runs/{run}?log=full&offset=-1");
        Shape::read(self.get(&path, token).send().await.expect("an answer")).await
    }

    /// Goes on from an answer, holding the poll when nothing is new.
    pub async fn live(&self, run: &str, token: &str, from: &Shape) -> Shape {
        let path = format!("{}&live=true&cursor=", from.next(run));
        Shape::read(self.get(&path, token).send().await.expect("an answer")).await
    }

    /// Goes on from an answer, with no hold.
    pub async fn catch_up(&self, run: &str, token: &str, from: &Shape) -> Shape {
        Shape::read(self.get(&from.next(run), token).send().await.expect("an answer")).await
    }

    /// A GET of the operators' address.
    pub async fn admin(&self, path: &str) -> Shape {
        let url = format!("{}{path}", self.admin_url);
        Shape::read(self.client.get(url).send().await.expect("an answer")).await
    }
}

/// An answer of the shape protocol.
#[derive(Clone, Debug)]
pub struct Shape {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Shape {
    pub async fn read(response: Response) -> Shape {
        let (status, headers) = (response.status(), response.headers().clone());
        Shape { status, headers, text: response.text().await.expect("a body") }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ascii"))
    }

    pub fn handle(&self) -> &str {
        self.header("electric-handle")
    }

    pub fn offset(&self) -> &str {
        self.header("electric-offset")
    }

    /// The path of the request that goes on from here.
    pub fn next(&self, run: &str) -> String {
        let (handle, offset) = (self.handle(), self.offset());
        format!("/realtime/v1/runs/{run}?handle={handle}&log=full&offset={offset}")
    }

    /// The messages of the body.
    pub fn messages(&self) -> Vec<Value> {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON array: {}", self.text))
    }

    /// The row messages: operation and value.
    pub fn rows(&self) -> Vec<(String, Value)> {
        let messages = self.messages();
        let rows = messages.iter().filter(|message| message.get("key").is_some());
        rows.map(|message| {
            let operation = message["headers"]["operation"].as_str().expect("an operation");
            (operation.to_owned(), message["value"].clone())
        })
        .collect()
    }

    /// The one row message that there is.
    pub fn row(&self) -> (String, Value) {
        let rows = self.rows();
        assert_eq!(rows.len(), 1, "{}", self.text);
        rows[0].clone()
    }

    pub fn is_bare(&self) -> bool {
        self.text == r#"[{"headers":{"control":"up-to-date"}}]"#
    }
}

/// Waits for a condition, with a deadline instead of a guess.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
