//! An S2 elsewhere, by its REST API (`streams-and-sessions.md`, 9): s2.dev, s2-lite, another Runwire.
//!
//! S2's own client is not used: it knows no endpoint with a path, such as `…/s2/v1`. Every read has a
//! connection of its own (HTTP/1.1): servers bound how many may share one, and tails last.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::remote_events::{Said, Sayings};
use super::store::{Event, Reading, Start, StoreError, StreamId};
use crate::telemetry;

/// For how long a connection may take, and an answer to begin.
const CONNECT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(5);
/// S2 says something every 15 seconds at least.
const SILENCE: Duration = Duration::from_secs(20);
/// The pauses before an append is tried again, as upstream has them.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(250)];
/// Batches that a read is ahead of its reader.
const AHEAD: usize = 2;
/// Reads and appends at once, each with a connection.
const PLACES: usize = 10_000;
/// Connections that are kept for the next request.
const IDLE: usize = 64;
/// The longest answer that is no stream.
const MAX_ANSWER: usize = 64 << 10;
/// For how long nobody needs it before it is asked whether it answers.
const PROBE: Duration = Duration::from_secs(5);

/// Where an S2 is, and what opens it.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    /// Its account routes, such as `http://s2/v1`.
    pub account: String,
    /// Those of a basin; `{basin}` is put in where its URL has it.
    pub basin: String,
    /// Whether it is told the basin by a header.
    pub names_basin: bool,
    /// What writers are told of where it is.
    pub endpoint: Option<String>,
    /// What opens it; none for one that asks for nothing.
    pub token: Option<Token>,
    /// Whether it issues no tokens, so that writers get that one.
    pub skip: bool,
}

/// A secret. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// An S2 elsewhere.
#[derive(Debug)]
pub struct Remote {
    settings: RemoteSettings,
    client: Client,
    places: Arc<Semaphore>,
    trouble: Mutex<Option<String>>,
    /// When it was last asked something.
    asked: Mutex<Option<Instant>>,
}

/// There is no client for it.
#[derive(Debug, thiserror::Error)]
#[error("no client for an S2 elsewhere can be made: {0}")]
pub struct RemoteError(#[from] reqwest::Error);

/// Why a request did not do what it should.
enum Failed {
    /// It may be of use to try again.
    Later(String),
    /// It is not.
    Refused(StatusCode, String),
}

impl Remote {
    /// That of these settings; an error if the system has no place for a client of it.
    pub fn new(settings: RemoteSettings) -> Result<Remote, RemoteError> {
        let client = Client::builder().no_proxy().http1_only().connect_timeout(CONNECT);
        // Its tails come and go with readers, and its token goes nowhere else.
        let client = client
            .pool_max_idle_per_host(IDLE)
            .read_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::none());
        Ok(Remote {
            settings,
            client: client.tcp_nodelay(true).build()?,
            places: Arc::new(Semaphore::new(PLACES)),
            trouble: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// What it was told.
    pub fn settings(&self) -> &RemoteSettings {
        &self.settings
    }

    /// See [`super::Store::append`].
    pub async fn append(&self, stream: &StreamId, body: Bytes) -> Result<(), StoreError> {
        let _place = self.places.try_acquire().map_err(|_| too_many())?;
        let record = String::from_utf8_lossy(&body);
        let body = Bytes::from(json!({ "records": [{ "body": record }] }).to_string());
        let (began, mut pauses) = (Instant::now(), PAUSES.iter());
        loop {
            let request = self.of_stream(Method::POST, stream, "");
            let request = request.header("content-type", "application/json").body(body.clone());
            match self.ask(request).await {
                Ok(_) => return Ok(()),
                Err(Failed::Later(why)) => {
                    match pauses.next().filter(|_| began.elapsed() < PATIENCE) {
                        Some(pause) => tokio::time::sleep(*pause).await,
                        None => return Err(StoreError::Unavailable(why)),
                    }
                }
                Err(Failed::Refused(status, why)) => return Err(refused(status, why)),
            }
        }
    }

    /// See [`super::Store::read`].
    pub async fn read(
        &self,
        stream: &StreamId,
        start: Start,
        follow: bool,
    ) -> Result<Reading, StoreError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| too_many())?;
        let query = match (start, follow) {
            (Start::At(seq_num), true) => format!("?seq_num={seq_num}&clamp=true"),
            (Start::At(seq_num), false) => format!("?seq_num={seq_num}&clamp=true&wait=0"),
            (Start::Latest, true) => "?tail_offset=0&clamp=true".to_owned(),
            (Start::Latest, false) => "?tail_offset=0&clamp=true&wait=0".to_owned(),
        };
        let request = self.of_stream(Method::GET, stream, &query);
        let request = request.header("accept", "text/event-stream");
        let mut response = match self.ask(request).await {
            Ok(response) => response,
            Err(Failed::Later(why)) => return Err(StoreError::Unavailable(why)),
            Err(Failed::Refused(status, why)) => return Err(refused(status, why)),
        };
        let (send, receive) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _place = place;
            let mut sayings = Sayings::default();
            loop {
                let piece = tokio::select! {
                    piece = response.chunk() => piece,
                    () = send.closed() => return,
                };
                let piece = match piece {
                    Ok(Some(piece)) => piece,
                    Ok(None) => Bytes::new(),
                    Err(error) => {
                        let _ = send.send(Err(StoreError::Unavailable(plainly(&error)))).await;
                        return;
                    }
                };
                if piece.is_empty() {
                    let error = StoreError::Unavailable("the S2 ended a read".to_owned());
                    let _ = send.send(Err(error)).await;
                    return;
                }
                sayings.push(&piece);
                loop {
                    let said = match sayings.next() {
                        Ok(None) => break,
                        Ok(Some(Said::Batches(batches))) => {
                            for batch in batches {
                                let event = Event::Batch(Arc::new(batch));
                                if send.send(Ok(event)).await.is_err() {
                                    return;
                                }
                            }
                            continue;
                        }
                        Ok(Some(Said::Tail(tail))) => Ok(Event::Tail(tail)),
                        // A read that follows has no end.
                        Ok(Some(Said::Done)) if !follow => {
                            let _ = send.send(Ok(Event::End)).await;
                            return;
                        }
                        Ok(Some(Said::Done)) => Err("the S2 ended a tail".to_owned()),
                        Err(why) => Err(why),
                    };
                    let said = said.map_err(StoreError::Unavailable);
                    let ends = said.is_err();
                    if send.send(said).await.is_err() || ends {
                        return;
                    }
                }
            }
        });
        Ok(receive)
    }

    /// A token for writers in this basin, for names behind this prefix, until then (4.3).
    pub async fn issue(
        &self,
        basin: &str,
        prefix: &str,
        until: SystemTime,
    ) -> Result<String, StoreError> {
        let _place = self.places.try_acquire().map_err(|_| too_many())?;
        let id: (u128,) = (rand::random(),);
        let body = json!({
            "id": format!("{:032x}", id.0),
            "scope": {
                "basins": { "exact": basin },
                "ops": ["append", "create-stream", "trim"],
                "streams": { "prefix": prefix },
            },
            "expires_at": humantime::format_rfc3339_millis(until).to_string(),
            "auto_prefix_streams": true,
        });
        let request = self.client.post(format!("{}/access-tokens", self.settings.account));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = match self.ask(self.authorized(request)).await {
            Ok(response) => response,
            Err(Failed::Later(why)) => return Err(StoreError::Unavailable(why)),
            Err(Failed::Refused(_, why)) => return Err(StoreError::Refused(why)),
        };
        let answer: Value = serde_json::from_slice(&whole(response).await).unwrap_or_default();
        let token = answer["access_token"].as_str().filter(|token| !token.is_empty());
        let none = || StoreError::Unavailable("the S2 answered without a token".to_owned());
        token.map(str::to_owned).ok_or_else(none)
    }

    /// What is wrong with it, as of the last request.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Asks whether it answers, if nobody has asked it anything for a while.
    pub async fn probe(&self) {
        let now = Instant::now();
        let rested = |asked: Option<Instant>| asked.is_none_or(|at| now - at > PROBE);
        if rested(*self.asked.lock()) {
            // Any answer will do: what its token does not open is not needed.
            let url = format!("{}/basins?limit=1", self.settings.account);
            let _ = self.ask(self.authorized(self.client.get(url))).await;
        }
    }

    fn of_stream(&self, method: Method, stream: &StreamId, query: &str) -> RequestBuilder {
        let base = self.settings.basin.replace("{basin}", &stream.basin);
        let name = utf8_percent_encode(&stream.name, NON_ALPHANUMERIC);
        let url = format!("{base}/streams/{name}/records{query}");
        let request = self.client.request(method, url).header("s2-format", "raw");
        let request = match self.settings.names_basin {
            true => request.header("s2-basin", &*stream.basin),
            false => request,
        };
        self.authorized(request)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.settings.token {
            Some(Token(token)) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The answer's beginning, if it is a good one. What is wrong is kept for those who ask.
    async fn ask(&self, request: RequestBuilder) -> Result<Response, Failed> {
        *self.asked.lock() = Some(Instant::now());
        let answer = tokio::time::timeout(PATIENCE, request.send()).await;
        let failed = match answer {
            Err(_) => Failed::Later("the S2 did not answer in time".to_owned()),
            Ok(Err(error)) => Failed::Later(plainly(&error)),
            Ok(Ok(response)) if response.status().is_success() => {
                self.note(None);
                return Ok(response);
            }
            Ok(Ok(response)) => {
                let status = response.status();
                let text = whole(response).await;
                let why = format!("the S2 answered {status}: {}", message(&text));
                if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
                        .contains(&status)
                {
                    Failed::Later(why)
                } else {
                    Failed::Refused(status, why)
                }
            }
        };
        self.note(match &failed {
            Failed::Later(why) => Some(why),
            Failed::Refused(StatusCode::UNAUTHORIZED, why) => Some(why),
            Failed::Refused(_, why) => {
                tracing::debug!(why, "the S2 refused a request");
                None
            }
        });
        Err(failed)
    }

    fn note(&self, why: Option<&String>) {
        let mut trouble = self.trouble.lock();
        match (&*trouble, why) {
            (None, Some(why)) => tracing::warn!(why, "the stream store does not answer"),
            (Some(_), None) => tracing::info!("the stream store answers again"),
            _ => {}
        }
        if trouble.as_ref() != why {
            *trouble = why.cloned();
        }
    }
}

/// What it refuses is the caller's fault only where that can be: names, sizes, conditions. A basin that
/// is not there, or a token that does not do, is the operator's, and may be mended.
fn refused(status: StatusCode, why: String) -> StoreError {
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => StoreError::Refused(why),
        _ => StoreError::Unavailable(why),
    }
}

fn too_many() -> StoreError {
    metrics::counter!(telemetry::LIMIT_REFUSED, "limit" => "s2").increment(1);
    StoreError::Unavailable("too many requests to the S2 are under way".to_owned())
}

/// The error without its URL, which names streams.
fn plainly(error: &reqwest::Error) -> String {
    let mut text = match (error.is_connect(), error.is_timeout()) {
        (true, _) => "the S2 cannot be reached".to_owned(),
        (_, true) => "the S2 fell silent".to_owned(),
        _ => "the S2 broke off".to_owned(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.source().is_none() {
            text = format!("{text}: {cause}");
        }
        source = cause.source();
    }
    text
}

/// The beginning of an answer's body, as far as it is of use.
async fn whole(mut response: Response) -> Vec<u8> {
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = response.chunk().await {
            text.extend_from_slice(&piece[..piece.len().min(MAX_ANSWER - text.len())]);
            if text.len() == MAX_ANSWER {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, read).await;
    text
}

fn message(body: &[u8]) -> String {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = said["message"].as_str().or(said["code"].as_str()).unwrap_or("no reason");
    text.chars().take(200).collect()
}
