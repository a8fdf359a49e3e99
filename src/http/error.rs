//! The only place where an error becomes a status, a body and headers (`runs-and-auth.md`, 15).

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};

use serde_json::{Value, json};

use crate::auth::{MintError, Refusal};

/// Everything that a route can refuse with.
#[derive(Debug)]
pub enum HttpError {
    /// The credential was refused.
    Refused(Refusal),
    /// The run is not there. `retry` is what its hint header says.
    NotFound {
        /// Whether asking again may help.
        retry: bool,
    },
    /// A tag that no run can be asked for by.
    InvalidTag(String),
    /// No route has this path.
    NoRoute,
    /// The scopes do not cover the resource.
    Forbidden,
    /// A body that is no JSON, or the issues of one that says the wrong thing.
    BadBody(Option<Value>),
    /// The body is longer than any that is meant.
    BodyTooLarge,
    /// The body did not come in time.
    BodyTimeout,
    /// An expiry that names no time.
    InvalidExpiration,
    /// The token that was asked for is not made.
    NotMinted(MintError),
    /// The environment has as much live as it may.
    TooManyLive,
    /// An address or a credential asks too often; so long it is to wait.
    TooManyRequests(Duration),
    /// The path and query are longer than any that is meant.
    UriTooLong,
    /// The headers are larger than any that are meant.
    HeadersTooLarge,
    /// The stream, the database or a place is not there now; clients retry this by themselves.
    Unavailable,
    /// A plain text, where the contract has one.
    Text(StatusCode, Cow<'static, str>),
    /// A JSON body of the routes that answer `{"ok":true}`.
    NotOk(StatusCode, String),
    /// A stream's target that is none.
    BadTarget,
    /// The run's streams are in a Redis, and there is none.
    StreamsNeedRedis,
    /// The operator has to change something, which is said here; asking again is of no use.
    Misconfigured(String),
    /// What upstream fails at as well.
    Internal,
    /// A refusal in S2's own form.
    S2 {
        /// Its status.
        status: StatusCode,
        /// S2's name for it.
        code: &'static str,
        /// What it is.
        message: &'static str,
    },
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        HttpError::Refused(refusal)
    }
}

impl From<MintError> for HttpError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Refused(refusal) => HttpError::Refused(refusal),
            other => HttpError::NotMinted(other),
        }
    }
}

impl HttpError {
    /// The answer, still without what CORS adds.
    pub fn response(&self) -> Response<Body> {
        let (status, body) = match self {
            HttpError::Refused(Refusal::Unavailable) | HttpError::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, error_body("Service Unavailable"))
            }
            HttpError::Forbidden => (StatusCode::FORBIDDEN, FORBIDDEN.to_owned()),
            HttpError::Refused(refusal) => {
                (StatusCode::UNAUTHORIZED, error_body(refusal.message()))
            }
            HttpError::InvalidTag(tag) => (StatusCode::BAD_REQUEST, invalid_tag(tag)),
            HttpError::BadBody(issues) => {
                let mut body = json!({ "error": "Invalid request body" });
                if let Some(issues) = issues {
                    body["issues"] = issues.clone();
                }
                (StatusCode::BAD_REQUEST, body.to_string())
            }
            HttpError::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, error_body("Request body too large"))
            }
            HttpError::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, error_body("Request body took too long"))
            }
            HttpError::TooManyLive => {
                (StatusCode::TOO_MANY_REQUESTS, error_body("Too many concurrent requests"))
            }
            HttpError::TooManyRequests(_) => {
                (StatusCode::TOO_MANY_REQUESTS, error_body("Too many requests"))
            }
            HttpError::UriTooLong => (StatusCode::URI_TOO_LONG, error_body("URI too long")),
            HttpError::HeadersTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                error_body("Request headers too large"),
            ),
            HttpError::InvalidExpiration => {
                (StatusCode::BAD_REQUEST, error_body("Invalid expiration time"))
            }
            HttpError::NotMinted(error) => not_minted(error),
            HttpError::NotFound { .. } | HttpError::NoRoute => {
                (StatusCode::NOT_FOUND, error_body("Not found"))
            }
            HttpError::Text(status, text) => (*status, text.clone().into_owned()),
            HttpError::NotOk(status, why) => {
                (*status, format!(r#"{{"ok":false,"error":{}}}"#, json!(why)))
            }
            HttpError::BadTarget => (StatusCode::BAD_REQUEST, BAD_TARGET.to_owned()),
            HttpError::StreamsNeedRedis => {
                (StatusCode::UNPROCESSABLE_ENTITY, error_body(STREAMS_NEED_REDIS))
            }
            HttpError::Misconfigured(what) => (StatusCode::INTERNAL_SERVER_ERROR, error_body(what)),
            HttpError::Internal => (StatusCode::INTERNAL_SERVER_ERROR, error_body(INTERNAL)),
            HttpError::S2 { status, code, message } => {
                (*status, format!(r#"{{"code":"{code}","message":{}}}"#, json!(message)))
            }
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let form = match self {
            HttpError::Text(..) => "text/plain;charset=UTF-8",
            _ => "application/json; charset=utf-8",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(form));
        if let HttpError::Misconfigured(_) = self {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let HttpError::NotFound { retry } = self {
            let hint = if *retry { "true" } else { "false" };
            headers.insert("x-should-retry", HeaderValue::from_static(hint));
        }
        if let Some(wait) = self.wait(status) {
            // Spread out, so that those who obey do not come back together.
            let spread = rand::random_range(1..=wait.div_ceil(4).max(5));
            headers.insert(RETRY_AFTER, HeaderValue::from(wait + spread));
            if let HttpError::TooManyRequests(_) = self {
                // Where the SDK's calls that are no feeds look (`streams-and-sessions.md`, 1.8).
                let then = SystemTime::now() + Duration::from_secs(wait + spread);
                let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                headers.insert("x-ratelimit-reset", HeaderValue::from(then.as_millis() as u64));
            }
        }
        response
    }

    /// How long a client has to wait at least before it is of use to ask again, in seconds.
    fn wait(&self, status: StatusCode) -> Option<u64> {
        match self {
            HttpError::TooManyRequests(wait) => Some(wait.as_secs()),
            _ if status == StatusCode::SERVICE_UNAVAILABLE => Some(0),
            _ if status == StatusCode::TOO_MANY_REQUESTS => Some(0),
            _ => None,
        }
    }
}

const BAD_TARGET: &str = r#"{"error":"Params Error","details":[{"code":"invalid_enum_value","options":["self","parent","root"],"path":["target"],"message":"Invalid enum value. Expected 'self' | 'parent' | 'root'"}]}"#;
const STREAMS_NEED_REDIS: &str = "This run's streams are of version v1, which are kept in Redis, and no Redis is configured for streams. Set REALTIME_STREAMS_REDIS_HOST, or trigger runs with v2 streams";
const INTERNAL: &str = "Internal Server Error";
const FORBIDDEN: &str = r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#;

fn invalid_tag(tag: &str) -> String {
    let message = format!("Invalid tag: {}", json!(tag));
    // Written out, since the order of members is upstream's.
    let message = json!(message);
    format!(
        r#"{{"error":"Query Error","details":[{{"code":"custom","message":{message},"path":["tags"]}}]}}"#
    )
}

fn not_minted(error: &MintError) -> (StatusCode, String) {
    let text = error.to_string();
    match error {
        MintError::Exceeds(scopes) => {
            let code = "scopes_exceed_key_access";
            let (text, scopes) = (json!(text), json!(scopes));
            let body = format!(r#"{{"error":{text},"code":"{code}","deniedScopes":{scopes}}}"#);
            (StatusCode::FORBIDDEN, body)
        }
        MintError::Unsigned => (StatusCode::INTERNAL_SERVER_ERROR, error_body(INTERNAL)),
        _ => (StatusCode::BAD_REQUEST, error_body(&text)),
    }
}

fn error_body(message: &str) -> String {
    json!({ "error": message }).to_string()
}
