//! `/realtime/v1/streams/…`: a run's streams, made and appended to by tasks, read by clients
//! (`streams-and-sessions.md`, 1, 2 and 4).

mod append;
mod create;
mod read;
mod writers;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};

pub use self::append::append;
pub use self::create::create;
pub use self::read::read;
use super::App;
use super::error::HttpError;
use crate::auth::{Ability, Caller, Refusal};
use crate::runs::streams::{Lookup, StreamRun, StreamRuns, StreamRunsError, Target};
use crate::streams::access::Issuer;
use crate::streams::{
    Hub, RemoteSettings, Secret, ServiceTokens, Store, StoreError, StoreSettings, StreamId,
    WriterTokens,
};

/// The longest name of a stream, in bytes.
const MAX_NAME: usize = 512;
const BAD_KEY: &str = "Invalid stream key";

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
                min_free: 0,
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
            StoreError::Unavailable(_) | StoreError::Full => HttpError::Unavailable,
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

fn json_response(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_and_inputs_are_for_browsers() {
        for (path, expected) in [
            ("/realtime/v1/runs/run_1", true),
            ("/realtime/v1/streams/run_1/key", true),
            ("/realtime/v1/streams/run_1/input", true),
            ("/realtime/v1/streams/run_1/input/approval", true),
            ("/realtime/v1/streams/run_1/self/key", false),
            ("/realtime/v1/streams/run_1/self/key/append", false),
        ] {
            assert_eq!(is_for_browsers(path), expected, "{path}");
        }
    }
}
