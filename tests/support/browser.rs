//! The React example in a real browser: what the page shows, and what it asks of the gateway.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::npm::Client;
use super::packages::{BROWSER, REACT};
use super::scratch::Scratch;

const SOON: Duration = Duration::from_secs(60);

/// A browser with one tab on the example's page, which is served from an origin of its own.
pub struct Tab {
    client: Client,
    /// Every request to the gateway so far, in the order in which the browser made them.
    pub requests: Vec<Request>,
    /// What the page has shown, one after the other.
    shown: Vec<Value>,
    _profile: Scratch,
}

/// A request of the page, as the browser sees it.
#[derive(Clone, Debug)]
pub struct Request {
    id: String,
    pub method: String,
    pub path: String,
    pub query: Value,
    /// Where a stream is to go on.
    pub last_event_id: Option<String>,
    /// `None` while it is under way.
    pub end: Option<End>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Answered {
        status: u64,
        body: Option<String>,
    },
    /// By the page itself.
    Aborted,
    /// By the network, or by the browser's rules for other origins.
    Failed(String),
}

impl Request {
    /// What tells the polls of a feed apart: whether it is live, and the status if it has one.
    pub fn kind(&self) -> (bool, Option<u64>) {
        let status = match &self.end {
            Some(End::Answered { status, .. }) => Some(*status),
            _ => None,
        };
        (self.query["live"] == "true", status)
    }

    /// The row messages of the answer: operation and value.
    pub fn rows(&self) -> Vec<(String, Value)> {
        let Some(End::Answered { body: Some(body), .. }) = &self.end else {
            panic!("not answered: {self:?}")
        };
        let messages: Vec<Value> = serde_json::from_str(body).expect("an array of messages");
        let rows = messages.into_iter().filter(|message| message.get("key").is_some());
        rows.map(|row| {
            (row["headers"]["operation"].as_str().unwrap().to_owned(), row["value"].clone())
        })
        .collect()
    }
}

impl Tab {
    /// Opens the page with this query.
    pub async fn open(query: &Value) -> Tab {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pages = page().await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let profile = Scratch::new(&format!("browser-{number}"));
        let env = [
            ("PAGES", pages.to_str().expect("UTF-8")),
            ("PROFILE", profile.0.to_str().expect("UTF-8")),
        ];
        let mut client = Client::of(&BROWSER, "tab.mjs", &[], &env).await;
        client.next_of("ready", SOON).await;
        let mut tab = Tab { client, requests: Vec::new(), shown: Vec::new(), _profile: profile };
        tab.order(json!({ "do": "open", "query": query })).await;
        tab
    }

    /// Loads the page again.
    pub async fn reload(&mut self) {
        self.order(json!({ "do": "reload" })).await;
    }

    /// Minimizes the window: the page is told that it is hidden.
    pub async fn hide(&mut self) {
        self.order(json!({ "do": "hide" })).await;
    }

    /// Brings the window back.
    pub async fn show(&mut self) {
        self.order(json!({ "do": "show" })).await;
    }

    /// Ends the browser, so that it writes no more to the files that go with it.
    pub async fn close(mut self) {
        self.client.tell(&json!({ "do": "close" })).await;
        self.client.rest(SOON).await;
    }

    async fn order(&mut self, order: Value) {
        self.client.tell(&order).await;
        while self.observe().await != "done" {}
    }

    /// Waits until this is so.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Tab) -> bool) {
        let wait = async {
            while !holds(self) {
                self.observe().await;
            }
        };
        if tokio::time::timeout(SOON, wait).await.is_err() {
            let tail = &self.requests[self.requests.len().saturating_sub(12)..];
            panic!("waited in vain for {what}; {:#?} after {tail:#?}", self.shown.last());
        }
    }

    /// Takes in what the browser says next.
    async fn observe(&mut self) -> String {
        let said = self.client.next(2 * SOON).await.expect("the browser runs");
        let text = |of: &str| said[of].as_str().unwrap_or_default().to_owned();
        let kind = text("type");
        let end = match kind.as_str() {
            "asked" => {
                let (id, method, path) = (text("id"), text("method"), text("path"));
                let query = said["query"].clone();
                let last_event_id = said["lastEventId"].as_str().map(str::to_owned);
                let request = Request { id, method, path, query, last_event_id, end: None };
                self.requests.push(request);
                return kind;
            }
            "answered" => End::Answered {
                status: said["status"].as_u64().expect("a status"),
                body: said["body"].as_str().map(str::to_owned),
            },
            "aborted" => End::Aborted,
            "failed" => End::Failed(text("why")),
            "shown" => {
                self.shown.push(said["feeds"].clone());
                return kind;
            }
            "done" => return kind,
            _ => panic!("the page failed: {said}"),
        };
        let of = self.requests.iter_mut().rfind(|request| request.id == text("id"));
        of.expect("it has begun").end = Some(end);
        kind
    }

    /// The polls of a feed, by the end of its path.
    pub fn polls(&self, feed: &str) -> Vec<&Request> {
        let of = |request: &&Request| request.method == "GET" && request.path.ends_with(feed);
        self.requests.iter().filter(of).collect()
    }

    /// What a feed's section shows now.
    pub fn feed(&self, feed: &str) -> Option<&Value> {
        self.shown.last()?.get(feed)
    }

    /// The error that a feed's section shows.
    pub fn error(&self, feed: &str) -> Option<&str> {
        self.feed(feed)?["error"].as_str()
    }

    /// A run as a feed's section shows it now.
    pub fn run(&self, feed: &str, run: &str) -> Option<&Value> {
        find(self.feed(feed)?, run)
    }

    /// The parts of a stream that a feed's section shows now.
    pub fn parts(&self, feed: &str, stream: &str) -> &[Value] {
        self.shown.last().map_or(&[], |all| parts(all, feed, stream))
    }

    /// All that a feed's section has shown of a stream, each state once for as long as it was there.
    pub fn history_of_parts(&self, feed: &str, stream: &str) -> Vec<&[Value]> {
        let mut states: Vec<_> = self.shown.iter().map(|all| parts(all, feed, stream)).collect();
        states.dedup();
        states
    }

    /// All that a feed's section has shown of a run, each state once for as long as it was there.
    pub fn history(&self, feed: &str, run: &str) -> Vec<&Value> {
        let mut states: Vec<_> =
            self.shown.iter().filter_map(|all| find(all.get(feed)?, run)).collect();
        states.dedup();
        states
    }
}

fn find<'a>(feed: &'a Value, run: &str) -> Option<&'a Value> {
    feed["runs"].as_array()?.iter().find(|shown| shown["id"] == run)
}

fn parts<'a>(all: &'a Value, feed: &str, stream: &str) -> &'a [Value] {
    all[feed]["streams"][stream].as_array().map_or(&[], Vec::as_slice)
}

/// The example as its users would deploy it.
async fn page() -> PathBuf {
    let pages = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("react-page");
    REACT.build(&pages).await;
    pages
}
