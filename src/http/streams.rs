//! `/realtime/v1/streams/…`: a run's streams, made and appended to by tasks, read by clients
//! (`streams-and-sessions.md`, 1, 2 and 4).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use serde_json::json;

use super::error::HttpError;
use super::stream_events::events;
use super::subscribe::may_read_run;
use super::{App, body, cors};
use crate::auth::{Ability, Caller, Refusal};
use crate::feed::Facts;
use crate::runs::streams::{Lookup, StreamRun, StreamRuns, StreamRunsError, Target};
use crate::streams::access::Issuer;
use crate::streams::{
    Hub, RemoteSettings, Secret, ServiceTokens, Start, Store, StoreError, StoreSettings, StreamId,
    WriterTokens,
};

/// The longest body that becomes a chunk.
const MAX_CHUNK_BYTES: usize = 512 << 10;
/// The most that S2 takes as one record, as it counts.
const MAX_RECORD: usize = 1 << 20;
/// The longest name of a stream, in bytes.
const MAX_NAME: usize = 512;
const BAD_KEY: &str = "Invalid stream key";
/// The longest time that a reader may ask to wait for a chunk, in seconds.
const MAX_WAIT: i64 = 600;

/// How streams work.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The basin of runs that have none of their own.
    pub basin: Arc<str>,
    /// How long writers' tokens live.
    pub token_lifetime: Duration,
    /// For how long writers collect chunks, in milliseconds.
    pub linger_ms: u64,
    /// For how long readers wait for a chunk where they do not say.
    pub wait: Duration,
    /// Where writers reach S2's routes; else it is made of what they asked.
    pub endpoint: Option<String>,
    /// What signs tokens; else one is kept in `data`.
    pub secret: Option<Secret>,
    /// What signed them before.
    pub former: Vec<Secret>,
    /// What a webapp presents that keeps its streams here.
    pub service: ServiceTokens,
    /// Where what must not be lost is kept.
    pub data: PathBuf,
    /// The S2 that keeps the chunks, if it is not the store in this process.
    pub remote: Option<RemoteSettings>,
    /// The store in this process.
    pub store: StoreSettings,
    /// Memory for recent chunks, in bytes.
    pub recent: usize,
}

impl StreamSettings {
    /// The usual ones, with everything that is kept in this directory.
    pub fn of(data: &std::path::Path) -> StreamSettings {
        StreamSettings {
            basin: "trigger-realtime".into(),
            token_lifetime: Duration::from_secs(24 * 60 * 60),
            linger_ms: 10,
            wait: Duration::from_secs(60),
            endpoint: None,
            secret: None,
            former: Vec::new(),
            service: ServiceTokens::default(),
            data: data.to_owned(),
            remote: None,
            store: StoreSettings {
                directory: data.join("streams"),
                flush: Duration::from_millis(5),
            },
            recent: 128 << 20,
        }
    }
}

/// What the routes of streams work with.
#[derive(Debug)]
pub struct Streams {
    settings: StreamSettings,
    issuer: OnceLock<Issuer>,
    hub: Hub,
    runs: StreamRuns,
    /// What an S2 elsewhere has issued.
    tokens: WriterTokens,
}

impl Streams {
    /// On this store, for runs that are found here.
    pub fn new(settings: StreamSettings, store: Store, runs: StreamRuns) -> Streams {
        let hub = Hub::new(store, settings.recent);
        let tokens = WriterTokens::new(settings.token_lifetime);
        Streams { settings, issuer: OnceLock::new(), hub, runs, tokens }
    }

    /// The store.
    pub(super) fn store(&self) -> &Store {
        self.hub.store()
    }

    /// Who may ask for tokens for others.
    pub(super) fn service(&self) -> &ServiceTokens {
        &self.settings.service
    }

    /// The basin of runs that have none of their own.
    pub(super) fn basin(&self) -> &str {
        &self.settings.basin
    }

    /// What makes and reads tokens. The secret is looked for with the first use, and again after it
    /// was not there.
    pub(super) fn issuer(&self) -> Result<&Issuer, HttpError> {
        if let Some(issuer) = self.issuer.get() {
            return Ok(issuer);
        }
        let secret = match &self.settings.secret {
            Some(secret) => secret.clone(),
            None => Secret::kept_in(&self.settings.data).map_err(|error| {
                tracing::warn!(%error, "there is no secret for stream tokens");
                HttpError::Unavailable
            })?,
        };
        let lifetime = self.settings.token_lifetime;
        let issuer = Issuer::new(secret, self.settings.former.clone(), lifetime);
        Ok(self.issuer.get_or_init(|| issuer))
    }

    /// The basin of a run's organization, if it has one.
    fn own_basin<'r>(&self, run: &'r StreamRun) -> Option<&'r str> {
        run.basin.as_deref().filter(|basin| *basin != &*self.settings.basin)
    }

    /// What the names of an environment's streams begin with (4.1).
    fn tenant(&self, environment: &str, run: &StreamRun) -> String {
        let StreamRun { organization, environment_slug: slug, .. } = run;
        match self.own_basin(run) {
            None => format!("org/{organization}/env/{slug}/{environment}"),
            Some(_) => format!("env/{slug}/{environment}"),
        }
    }

    /// The same for a run.
    fn prefix(&self, environment: &str, run: &StreamRun) -> String {
        format!("{}/runs/{}/", self.tenant(environment, run), run.friendly_id)
    }

    fn stream(&self, environment: &str, run: &StreamRun, key: &str) -> Result<StreamId, HttpError> {
        let basin = self.own_basin(run).map_or_else(|| Arc::clone(&self.settings.basin), Arc::from);
        let name = format!("{}{key}", self.prefix(environment, run));
        if key.contains('\0') || name.len() > MAX_NAME {
            return Err(HttpError::Text(StatusCode::BAD_REQUEST, BAD_KEY.into()));
        }
        Ok(StreamId { basin, name: name.into() })
    }
}

impl From<StreamRunsError> for HttpError {
    fn from(error: StreamRunsError) -> HttpError {
        match error {
            StreamRunsError::Unavailable => HttpError::Unavailable,
            StreamRunsError::MissingGrant => HttpError::Misconfigured(error.to_string()),
        }
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> HttpError {
        match error {
            StoreError::Unavailable(_) => HttpError::Unavailable,
            StoreError::Refused(why) => HttpError::Text(StatusCode::BAD_REQUEST, why.into()),
        }
    }
}

/// Browsers may read streams and write inputs; all else is for servers alone, and a preflight to it is
/// no different from any request.
pub(super) fn is_for_browsers(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/realtime/v1/streams/") else { return true };
    let mut segments = rest.split('/').skip(1);
    segments.next() == Some("input") || segments.next().is_none()
}

/// R1: makes a stream ready to be written, and says where and with what.
pub async fn create(
    State(app): State<Arc<App>>,
    Path((run, target, key)): Path<(String, String, String)>,
    headers: HeaderMap,
    uri: Uri,
) -> Response<Body> {
    let made = async {
        let caller = owner(&app, &headers).await?;
        let on = "Cannot initialize a realtime stream on a completed run";
        let run = find(&app, &caller, &run, &target, on).await?;
        require_v2(&run)?;
        // All that may fail by itself comes before the row is touched.
        let headers =
            writers::credentials(&app.streams, &caller, &run, &key, &headers, &uri).await?;
        app.streams.runs.push_key(&caller.environment_id, &run, &key).await?;
        Ok(headers)
    };
    match made.await {
        Ok(headers) => {
            let mut response = json_response(StatusCode::ACCEPTED, r#"{"version":"v2"}"#);
            response.headers_mut().extend(headers);
            response
        }
        Err(error) => HttpError::response(&error),
    }
}

/// R5: appends the body as one chunk.
pub async fn append(
    State(app): State<Arc<App>>,
    Path((run, target, key)): Path<(String, String, String)>,
    request: Request,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let appended = async {
        let head = head;
        let caller = owner(&app, &head.headers).await?;
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.parse::<usize>().ok());
        if length.is_none_or(|length| length > MAX_CHUNK_BYTES) {
            return Err(HttpError::BodyTooLarge);
        }
        let on = "Cannot append to a realtime stream on a completed run";
        let run = find(&app, &caller, &run, &target, on).await?;
        require_v2(&run)?;
        let stream = app.streams.stream(&caller.environment_id, &run, &key)?;
        app.streams.runs.push_key(&caller.environment_id, &run, &key).await?;
        let part = head.headers.get("x-part-id").and_then(|id| id.to_str().ok());
        let part = part.map(str::to_owned);
        drop(head);
        let body = body::read(&app, &caller.environment_id, body, MAX_CHUNK_BYTES).await?;
        let record = record(&body, part.as_deref())?;
        match app.streams.store().append(&stream, record).await {
            Ok(()) => Ok(()),
            Err(StoreError::Unavailable(_)) => Err(HttpError::Unavailable),
            Err(StoreError::Refused(why)) => {
                Err(HttpError::NotOk(StatusCode::INTERNAL_SERVER_ERROR, why))
            }
        }
    };
    match appended.await {
        Ok(()) => json_response(StatusCode::OK, r#"{"ok":true}"#),
        Err(error) => error.response(),
    }
}

/// R6: the stream as server-sent events.
pub async fn read(
    State(app): State<Arc<App>>,
    Path((run, key)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    let origin = request.headers().get(ORIGIN).cloned();
    let (head, _) = request.into_parts();
    let opened = async {
        // A HEAD would hold a place for a body that nobody reads.
        if head.method != Method::GET {
            return Err(HttpError::NoRoute);
        }
        let caller = app.caller(&head.headers).await?;
        let environment = &caller.environment_id;
        let Lookup::Found(run) = app.streams.runs.find(environment, &run, Target::Own).await?
        else {
            return Err(HttpError::NotFound { retry: false });
        };
        let facts = Facts {
            task: run.task.clone(),
            tags: run.tags.clone(),
            batch: run.batch.as_deref().map(Arc::from),
        };
        if !may_read_run(&caller.ability, &run.friendly_id, &facts) {
            return Err(HttpError::Forbidden);
        }
        let wait = wait(&head.headers, app.streams.settings.wait)?;
        require_v2(&run)?;
        let Some(live) = app.limits.live.enter(environment) else {
            return Err(HttpError::TooManyLive);
        };
        let stream = app.streams.stream(environment, &run, &key)?;
        let reader = app.streams.hub.read(stream, start(&head.headers)).await?;
        Ok(events(reader, wait, caller, app.drain.clone(), live))
    };
    match opened.await {
        Ok(mut response) => {
            cors::on_stream(origin, response.headers_mut());
            response
        }
        Err(error) => {
            let mut response = error.response();
            cors::on_refusal(origin, response.headers_mut());
            response
        }
    }
}

/// R2: chunks of a v1 run, which are kept in Redis.
pub async fn ingest(
    State(app): State<Arc<App>>,
    Path((run, target, _)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    v1_only(&app, &headers, &run, &target).await.response()
}

/// R3: how far a writer of a v1 run has come.
pub async fn last(
    State(app): State<Arc<App>>,
    Path((run, target, _)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    v1_only(&app, &headers, &run, &target).await.response()
}

/// R4.
pub async fn not_here(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let refused = match owner(&app, &headers).await {
        Ok(_) => {
            let text = "Only HEAD requests are allowed for this endpoint";
            HttpError::Text(StatusCode::METHOD_NOT_ALLOWED, text.into())
        }
        Err(error) => error,
    };
    refused.response()
}

async fn v1_only(app: &App, headers: &HeaderMap, run: &str, target: &str) -> HttpError {
    let asked = async {
        let caller = owner(app, headers).await?;
        let run = lookup(app, &caller, run, target).await?;
        // Upstream has no such thing for v2, and fails.
        let wants_v2 = headers.get("x-stream-version").is_some_and(|version| version == "v2");
        if wants_v2 || run.version == "v2" { Err(HttpError::Internal) } else { require_v2(&run) }
    };
    asked.await.err().unwrap_or(HttpError::Internal)
}

/// Whoever holds a key without bounds: no scope covers what tasks do.
async fn owner(app: &App, headers: &HeaderMap) -> Result<Caller, HttpError> {
    let caller = match app.door.admit_key(headers).await {
        Err(Refusal::InvalidKey) if no_bearer(headers) => return Err(Refusal::MissingKey.into()),
        admitted => admitted?,
    };
    app.count(headers)?;
    if *caller.ability == Ability::Full { Ok(caller) } else { Err(HttpError::Forbidden) }
}

fn no_bearer(headers: &HeaderMap) -> bool {
    !headers.contains_key(axum::http::header::AUTHORIZATION)
}

async fn lookup(
    app: &App,
    caller: &Caller,
    run: &str,
    target: &str,
) -> Result<StreamRun, HttpError> {
    let target = match target {
        "self" => Target::Own,
        "parent" => Target::Parent,
        "root" => Target::Root,
        _ => return Err(HttpError::BadTarget),
    };
    let not_found = |text: &'static str| HttpError::Text(StatusCode::NOT_FOUND, text.into());
    match app.streams.runs.find(&caller.environment_id, run, target).await? {
        Lookup::Found(run) => Ok(*run),
        Lookup::NoRun => Err(not_found("Run not found")),
        Lookup::NoTarget => Err(not_found("Target not found")),
    }
}

async fn find(
    app: &App,
    caller: &Caller,
    run: &str,
    target: &str,
    on_completed: &'static str,
) -> Result<StreamRun, HttpError> {
    let run = lookup(app, caller, run, target).await?;
    if run.completed {
        return Err(HttpError::Text(StatusCode::BAD_REQUEST, on_completed.into()));
    }
    Ok(run)
}

/// A run's streams are where its own version says, and never silently elsewhere.
fn require_v2(run: &StreamRun) -> Result<(), HttpError> {
    if run.version == "v2" { Ok(()) } else { Err(HttpError::StreamsNeedRedis) }
}

/// A server's append: the body as a text, under the id that it came with (4.5).
fn record(body: &[u8], part: Option<&str>) -> Result<Bytes, HttpError> {
    let text = json!(String::from_utf8_lossy(body));
    let id = part.map_or_else(|| json!(part_id()), |part| json!(part));
    let record = format!(r#"{{"data":{text},"id":{id}}}"#);
    let metered = 8 + record.len();
    if metered > MAX_RECORD {
        let why = format!(
            "Record metered size {metered} bytes exceeds the S2 per-record limit of {MAX_RECORD} bytes. Reduce tool-output size or split into smaller parts."
        );
        return Err(HttpError::NotOk(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    Ok(Bytes::from(record))
}

/// Seven characters, as the SDK's own.
fn part_id() -> String {
    const LETTERS: &[u8; 64] = b"useandom-26T198340PX75pxJACKVERYMINDBUSHWOLF_GQZbfghjklqvwyzrict";
    rand::random::<[u8; 7]>()
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte & 63)]))
        .collect()
}

/// The table of 4.6, for run streams: JavaScript's `parseInt`, of which no number is an error later on.
fn wait(headers: &HeaderMap, otherwise: Duration) -> Result<Duration, HttpError> {
    let text = headers.get("timeout-seconds").map(|value| value.to_str().unwrap_or("?"));
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(otherwise) };
    let text = text.trim_start();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = &digits[..digits.bytes().take_while(u8::is_ascii_digit).count()];
    if digits.is_empty() {
        return Err(HttpError::Internal);
    }
    let number = digits.parse::<i64>().unwrap_or(i64::MAX);
    let refuse = |text: &'static str| Err(HttpError::Text(StatusCode::BAD_REQUEST, text.into()));
    match number {
        1.. if text.starts_with('-') => refuse("Timeout seconds must be greater than 0"),
        number if number > MAX_WAIT => refuse("Timeout seconds must be less than 600"),
        number => Ok(Duration::from_secs(number.unsigned_abs())),
    }
}

/// Where a reader begins: after the record that it had last, whose number is all that is looked at, so
/// that the ids of our own events do as well as the SDK's.
fn start(headers: &HeaderMap) -> Start {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(last) = text("last-event-id").filter(|last| !last.is_empty()) {
        let digits = last.bytes().take_while(u8::is_ascii_digit).count();
        // What is no number begins at the beginning.
        return Start::At(last[..digits].parse::<u64>().map_or(0, |last| last.saturating_add(1)));
    }
    match text("x-trigger-stream-start") {
        Some("latest") => Start::Latest,
        _ => Start::At(0),
    }
}

fn json_response(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

mod writers;

#[cfg(test)]
mod tests;
