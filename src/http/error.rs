//! The only place where an error becomes a status, a body and headers (`runs-and-auth.md`, 15).

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};

use crate::auth::Refusal;

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
    /// The stream, the database or a place is not there now; clients retry this by themselves.
    Unavailable,
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        HttpError::Refused(refusal)
    }
}

impl HttpError {
    /// The answer, still without what CORS adds.
    pub fn response(&self) -> Response<Body> {
        let (status, body) = match self {
            HttpError::Refused(Refusal::Unavailable) | HttpError::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, error_body("Service Unavailable"))
            }
            HttpError::Refused(Refusal::Forbidden) | HttpError::Forbidden => {
                (StatusCode::FORBIDDEN, FORBIDDEN.to_owned())
            }
            HttpError::Refused(refusal) => {
                (StatusCode::UNAUTHORIZED, error_body(refusal.message()))
            }
            HttpError::InvalidTag(tag) => (StatusCode::BAD_REQUEST, invalid_tag(tag)),
            HttpError::NotFound { .. } | HttpError::NoRoute => {
                (StatusCode::NOT_FOUND, error_body("Not found"))
            }
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        if let HttpError::NotFound { retry } = self {
            let hint = if *retry { "true" } else { "false" };
            headers.insert("x-should-retry", HeaderValue::from_static(hint));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // Spread out, so that those who obey do not come back together.
            headers.insert(RETRY_AFTER, HeaderValue::from(rand::random_range(1u16..=5)));
        }
        response
    }
}

const FORBIDDEN: &str = r#"{"error":"Unauthorized","code":"unauthorized","param":"access_token","type":"authorization"}"#;

fn invalid_tag(tag: &str) -> String {
    let message = format!("Invalid tag: {}", serde_json::json!(tag));
    // Written out, since the order of members is upstream's.
    let message = serde_json::json!(message);
    format!(
        r#"{{"error":"Query Error","details":[{{"code":"custom","message":{message},"path":["tags"]}}]}}"#
    )
}

fn error_body(message: &str) -> String {
    serde_json::json!({ "error": message }).to_string()
}
