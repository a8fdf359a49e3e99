//! What a writer is told: where to write a run's stream, and with what (`streams-and-sessions.md`, 4.2
//! and 4.3).

use std::time::SystemTime;

use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};

use super::{BAD_KEY, HttpError, Streams};
use crate::auth::Caller;
use crate::runs::streams::StreamRun;
use crate::streams::access::{Authority, Grant, Operation};
use crate::streams::{Remote, RemoteSettings, Store, StoreError, StreamId};

/// What stands for a token where nobody asks for one.
const SKIPPED: &str = "s2-skip-access-tokens";

/// What lets a writer in.
struct Access {
    token: String,
    /// The stream as its holder calls it.
    name: String,
    /// Where that is; `None` for S2's own service.
    endpoint: Option<String>,
}

/// The headers that tell a writer where to go and let it in there.
pub(super) async fn credentials(
    streams: &Streams,
    caller: &Caller,
    run: &StreamRun,
    key: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<HeaderMap, HttpError> {
    let stream = streams.stream(&caller.environment_id, run, key)?;
    let access = match streams.store() {
        Store::Remote(remote) => {
            let settings = remote.settings();
            let mut access = match settings.skip {
                true => skipped(settings, &stream),
                false => {
                    let tenant = streams.tenant(&caller.environment_id, run);
                    let (token, name) = issued(streams, remote, caller, &stream, &tenant).await?;
                    Access { token, name, endpoint: settings.endpoint.clone() }
                }
            };
            if let Some(endpoint) = &streams.settings.endpoint {
                access.endpoint = Some(endpoint.clone());
            }
            access
        }
        _ => own(streams, caller, run, &stream, headers, uri)?,
    };
    let unfit = || HttpError::Text(StatusCode::BAD_REQUEST, BAD_KEY.into());
    let text = |text: &str| HeaderValue::from_str(text).map_err(|_| unfit());
    // Clients read headers as Latin-1, and upstream cannot send what is more than that.
    let latin: Result<Vec<u8>, _> = access.name.chars().map(u8::try_from).collect();
    let latin = latin.ok().and_then(|name| HeaderValue::from_bytes(&name).ok());
    let mut all = HeaderMap::new();
    all.insert("x-s2-access-token", text(&access.token)?);
    all.insert("x-s2-stream-name", latin.ok_or_else(unfit)?);
    all.insert("x-s2-basin", text(&stream.basin)?);
    all.insert("x-s2-flush-interval-ms", HeaderValue::from(streams.settings.linger_ms));
    all.insert("x-s2-max-retries", HeaderValue::from_static("10"));
    if let Some(endpoint) = &access.endpoint {
        all.insert("x-s2-endpoint", text(endpoint)?);
    }
    Ok(all)
}

/// This gateway's own routes, by a token for this run.
fn own(
    streams: &Streams,
    caller: &Caller,
    run: &StreamRun,
    stream: &StreamId,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Access, HttpError> {
    let issuer = streams.issuer()?;
    let end = SystemTime::now() + issuer.lifetime;
    let basis = caller.basis.as_deref().ok_or(HttpError::Forbidden)?;
    let grant = Grant {
        authority: Authority::Key(basis.to_owned()),
        environment: caller.environment_id.to_string(),
        basin: stream.basin.to_string(),
        prefix: streams.prefix(&caller.environment_id, run),
        auto_prefix: None,
        operations: vec![Operation::Append, Operation::CreateStream],
        expires_at: caller.expires_at.map_or(end, |expiry| expiry.min(end)),
    };
    let token = issuer.issue(&grant).ok_or(HttpError::Internal)?;
    let endpoint = match &streams.settings.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let authority = uri.authority().map(|authority| authority.as_str());
            let host = authority.or(host).ok_or(HttpError::NoRoute)?;
            format!("{}://{host}/s2/v1", uri.scheme_str().unwrap_or("http"))
        }
    };
    Ok(Access { token, name: stream.name.to_string(), endpoint: Some(endpoint) })
}

/// An S2 elsewhere that issues no tokens.
fn skipped(settings: &RemoteSettings, stream: &StreamId) -> Access {
    let token = settings.token.as_ref().map_or(SKIPPED, |token| &token.0);
    let (token, name) = (token.to_owned(), stream.name.to_string());
    Access { token, name, endpoint: settings.endpoint.clone() }
}

/// A token of an S2 elsewhere, for all streams of the environment, and the name that it puts the
/// environment before.
async fn issued(
    streams: &Streams,
    remote: &Remote,
    caller: &Caller,
    stream: &StreamId,
    tenant: &str,
) -> Result<(String, String), HttpError> {
    let place = (&*stream.basin, tenant);
    let token = streams.tokens.get(remote, place, caller.expires_at).await;
    let token = token.map_err(|error| match error {
        StoreError::Unavailable(_) | StoreError::Full => HttpError::Unavailable,
        StoreError::Refused(why) => HttpError::Misconfigured(format!(
            "{why}. It has to issue access tokens; for one that does not set REALTIME_STREAMS_S2_SKIP_ACCESS_TOKENS=true"
        )),
    })?;
    let name = stream.name.strip_prefix(tenant).ok_or(HttpError::Internal)?;
    Ok((token, name.to_owned()))
}
