//! `POST /s2/v1/access-tokens`: tokens for the writers of a webapp that keeps its streams here
//! (`streams-and-sessions.md`, 4.3).

use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::error::HttpError;
use super::s2::refuse;
use super::{App, body};
use crate::streams::access::{Authority, Grant, Operation};

/// The longest body that is read.
const MAX_BODY_BYTES: usize = 16 << 10;
/// The longest time that a token may live.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The longest name and id, in bytes, as S2 has them.
const MAX_NAME: usize = 512;
const MAX_ID: usize = 96;

/// A token for others, on the word of the service token of this fingerprint.
pub(super) async fn mint(
    app: &App,
    fingerprint: &str,
    request: Request,
) -> Result<Response<Body>, HttpError> {
    let body = body::read(app, "service", request.into_body(), MAX_BODY_BYTES).await?;
    let bad = |_| refuse(StatusCode::BAD_REQUEST, "bad_json", "the body is no JSON");
    let asked: Value = serde_json::from_slice(&body).map_err(bad)?;
    let issuer = app.streams.issuer()?;
    let authority = Authority::Service(fingerprint.to_owned());
    let grant = grant(&asked, authority, issuer.lifetime, SystemTime::now())
        .map_err(|why| refuse(StatusCode::UNPROCESSABLE_ENTITY, "invalid", why))?;
    let token = issuer.issue(&grant).ok_or(HttpError::Internal)?;
    let mut response = Response::new(Body::from(json!({ "access_token": token }).to_string()));
    *response.status_mut() = StatusCode::CREATED;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// What is asked for, which must be one basin, one prefix of names, and operations by name: what else
/// S2 has is not made, rather than made wider or narrower than it says.
fn grant(
    asked: &Value,
    authority: Authority,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Grant, &'static str> {
    let id = asked["id"].as_str().unwrap_or_default();
    if id.is_empty() || id.len() > MAX_ID {
        return Err("id must have 1 to 96 bytes");
    }
    let scope = &asked["scope"];
    let basin = scope["basins"]["exact"].as_str().filter(|basin| !basin.is_empty());
    let basin = basin.ok_or("scope.basins must name one basin: {\"exact\":…}")?;
    if basin.len() > MAX_NAME || !basin.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err("scope.basins names no basin");
    }
    let prefix = scope["streams"]["prefix"].as_str().filter(|prefix| *prefix != "/");
    let prefix = prefix.filter(|prefix| !prefix.is_empty() && prefix.len() < MAX_NAME);
    let prefix = prefix.ok_or("scope.streams must name a prefix: {\"prefix\":…}")?;
    if !scope["access_tokens"].is_null() && scope["access_tokens"] != json!({ "exact": "" }) {
        return Err("tokens that make tokens are not made");
    }
    if any_true(&scope["op_groups"]) {
        return Err("scope.op_groups is not known here: name the operations in scope.ops");
    }
    let mut operations = Vec::new();
    for operation in scope["ops"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let operation = match operation.as_str() {
            // A record that trims or fences is a record, and appended like any.
            Some("append") => Operation::Append,
            Some("trim" | "fence") => continue,
            Some("create-stream") => Operation::CreateStream,
            Some("read" | "check-tail") => Operation::Read,
            _ => {
                return Err(
                    "scope.ops may be append, trim, fence, create-stream, read, check-tail",
                );
            }
        };
        if !operations.contains(&operation) {
            operations.push(operation);
        }
    }
    let expires_at = match &asked["expires_at"] {
        Value::Null => now + lifetime,
        Value::String(text) => humantime::parse_rfc3339(text)
            .map_err(|_| "expires_at must be a time such as 2026-01-31T12:00:00Z")?,
        _ => return Err("expires_at must be a text"),
    };
    if expires_at <= now || expires_at > now + LONGEST {
        return Err("expires_at must lie within the next 30 days");
    }
    let auto_prefix = match &asked["auto_prefix_streams"] {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some(prefix.to_owned()),
        _ => return Err("auto_prefix_streams must be true or false"),
    };
    // `…/env_1` and what is in it, but not `…/env_10`.
    let prefix = format!("{}/", prefix.strip_suffix('/').unwrap_or(prefix));
    // Upstream's prefixes end with the environment.
    let environment = prefix.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    Ok(Grant {
        authority,
        environment: environment.to_owned(),
        basin: basin.to_owned(),
        prefix,
        auto_prefix,
        operations,
        expires_at,
    })
}

fn any_true(groups: &Value) -> bool {
    match groups {
        Value::Bool(allowed) => *allowed,
        Value::Object(members) => members.values().any(any_true),
        Value::Null => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn made(asked: &Value) -> Result<Grant, &'static str> {
        let now = humantime::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        grant(asked, Authority::Service("f".to_owned()), HOUR, now)
    }

    /// As upstream asks.
    fn asked() -> Value {
        json!({
            "id": "8f0e", "expires_at": "2026-01-02T00:00:00.123Z", "auto_prefix_streams": true,
            "scope": {
                "basins": { "exact": "basin-one" },
                "ops": ["append", "create-stream", "trim"],
                "streams": { "prefix": "org/o/env/prod/env_1" },
            },
        })
    }

    #[test]
    fn what_upstream_asks_for_is_made_and_closed_by_a_slash() {
        let grant = made(&asked()).unwrap();
        assert_eq!(grant.basin, "basin-one");
        assert_eq!(grant.prefix, "org/o/env/prod/env_1/");
        assert_eq!(grant.environment, "env_1");
        assert_eq!(grant.operations, [Operation::Append, Operation::CreateStream]);
        let end = humantime::format_rfc3339_millis(grant.expires_at).to_string();
        assert_eq!(end, "2026-01-02T00:00:00.123Z");
        let allows = |named: &str| grant.allows(Operation::Append, &grant.stream(named.to_owned()));
        assert!(allows("/runs/run_1/ai"));
        for named in ["0/runs/run_1/ai", "", "/", "runs/run_1/ai"] {
            assert!(!allows(named), "{named}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_made() {
        let with = |pointer: &str, value: Value| {
            let mut asked = asked();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            asked.pointer_mut(parent).unwrap()[last] = value;
            made(&asked)
        };
        for (pointer, value) in [
            ("/id", json!("")),
            ("/id", json!("x".repeat(97))),
            ("/scope/basins", json!({ "prefix": "" })),
            ("/scope/basins", json!({ "exact": "" })),
            ("/scope/basins", json!({ "exact": "a\nb" })),
            ("/scope/basins", Value::Null),
            ("/scope/streams", json!({ "prefix": "" })),
            ("/scope/streams", json!({ "prefix": "/" })),
            ("/scope/streams", json!({ "exact": "x" })),
            ("/scope/streams", Value::Null),
            ("/scope/access_tokens", json!({ "prefix": "" })),
            ("/scope/op_groups", json!({ "stream": { "write": true } })),
            ("/scope/ops", json!(["append", "delete-basin"])),
            ("/expires_at", json!("2025-12-31T23:59:59Z")),
            ("/expires_at", json!("2026-02-01T00:00:00Z")),
            ("/expires_at", json!("tomorrow")),
            ("/expires_at", json!(1)),
            ("/auto_prefix_streams", json!("yes")),
        ] {
            assert!(with(pointer, value.clone()).is_err(), "{pointer} {value}");
        }
        let groups = json!({ "stream": { "read": false }, "basin": null });
        assert!(with("/scope/op_groups", groups).is_ok());
        assert_eq!(with("/scope/ops", Value::Null).unwrap().operations, []);
        let plain = with("/auto_prefix_streams", Value::Null).unwrap();
        assert_eq!(plain.stream("x".to_owned()), "x");
        let end = with("/expires_at", Value::Null).unwrap().expires_at;
        assert_eq!(humantime::format_rfc3339(end).to_string(), "2026-01-01T01:00:00Z");
        assert_eq!(made(&json!([])).err(), Some("id must have 1 to 96 bytes"));
    }
}
