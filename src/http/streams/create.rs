//! R1: making a stream ready to be written (`streams-and-sessions.md`, 4.2).

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};

use super::{BAD_KEY, Streams, find, json_response, owner, require_v2};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::HttpError;
use crate::runs::streams::StreamRun;
use crate::streams::StreamId;
use crate::streams::access::{Grant, Operation};

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
        let headers = credentials(&app.streams, &caller, &run, &key, &headers, &uri)?;
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

/// The headers that tell a writer where to go and let it in there.
fn credentials(
    streams: &Streams,
    caller: &Caller,
    run: &StreamRun,
    key: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<HeaderMap, HttpError> {
    let issuer = streams.issuer()?;
    let StreamId { basin, name } = streams.stream(&caller.environment_id, run, key)?;
    let (_, prefix) = streams.place(&caller.environment_id, run);
    let end = SystemTime::now() + issuer.lifetime;
    let grant = Grant {
        environment: caller.environment_id.to_string(),
        basin: basin.to_string(),
        prefix,
        operations: vec![Operation::Append, Operation::CreateStream],
        expires_at: caller.expires_at.map_or(end, |expiry| expiry.min(end)),
    };
    let token = issuer.issue(&grant).ok_or(HttpError::Internal)?;
    let settings = &streams.settings;
    let endpoint = match &settings.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let authority = uri.authority().map(|authority| authority.as_str());
            let host = authority.or(host).ok_or(HttpError::NoRoute)?;
            format!("{}://{host}/s2/v1", uri.scheme_str().unwrap_or("http"))
        }
    };
    let unfit = || HttpError::Text(StatusCode::BAD_REQUEST, BAD_KEY.into());
    let text = |text: &str| HeaderValue::from_str(text).map_err(|_| unfit());
    // Clients read headers as Latin-1, and upstream cannot send what is more than that.
    let latin: Result<Vec<u8>, _> = name.chars().map(u8::try_from).collect();
    let latin = latin.ok().and_then(|name| HeaderValue::from_bytes(&name).ok());
    let all = [
        ("x-s2-access-token", text(&token)?),
        ("x-s2-stream-name", latin.ok_or_else(unfit)?),
        ("x-s2-basin", text(&basin)?),
        ("x-s2-flush-interval-ms", HeaderValue::from(settings.linger_ms)),
        ("x-s2-max-retries", HeaderValue::from_static("10")),
        ("x-s2-endpoint", text(&endpoint)?),
    ];
    Ok(all.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)).collect())
}
