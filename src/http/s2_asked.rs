//! What a request of S2's routes wants (`streams-and-sessions.md`, 9), and the request that the store
//! is given for it, made anew of what was looked at.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::HttpError;
use super::s2::refuse;
use crate::streams::access::Operation;

pub(super) const BASIN: HeaderName = HeaderName::from_static("s2-basin");
/// What of a request the store is shown. A stream's settings (`s2-stream-config`) are not for those who
/// write it.
const PASSED_ON: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_ENCODING,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    BASIN,
    HeaderName::from_static("s2-format"),
    HeaderName::from_static("last-event-id"),
];

/// What a request wants. Whatever is not named here nobody gets.
pub(super) enum Asked {
    /// Something of a stream, of this decoded name.
    Stream { operation: Operation, name: String, suffix: &'static str },
    /// To make a basin or to look after its settings, by this path.
    Basin(String),
    /// A token for others.
    Token,
}

impl Asked {
    /// `None`: something that nobody may.
    pub fn of(request: &Request) -> Result<Option<Asked>, HttpError> {
        let Some(path) = request.uri().path().strip_prefix("/s2/v1/") else { return Ok(None) };
        let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
        let (name, suffix) = rest.split_once('/').unwrap_or((rest, ""));
        let method = request.method();
        match (kind, method) {
            ("access-tokens", &Method::POST) if rest.is_empty() => return Ok(Some(Asked::Token)),
            ("basins", &Method::POST) if rest.is_empty() => {
                return Ok(Some(Asked::Basin("/basins".to_owned())));
            }
            ("basins", &(Method::PUT | Method::GET | Method::PATCH))
                if suffix.is_empty() && !name.is_empty() =>
            {
                let name = utf8_percent_encode(&decoded(name)?, NON_ALPHANUMERIC).to_string();
                // What a basin's name may hold needs no encoding.
                return Ok(Some(Asked::Basin(format!("/basins/{}", name.replace("%2D", "-")))));
            }
            ("streams", _) => {}
            _ => return Ok(None),
        }
        let (operation, suffix) = match (method, suffix) {
            (&Method::POST, "records") => (Operation::Append, "/records"),
            (&Method::GET, "records") => (Operation::Read, "/records"),
            (&Method::GET, "records/tail") => (Operation::Read, "/records/tail"),
            (&Method::PUT, "") => (Operation::CreateStream, ""),
            _ => return Ok(None),
        };
        Ok(Some(Asked::Stream { operation, name: decoded(name)?, suffix }))
    }

    /// The request as the store gets it.
    pub fn passed_on(&self, request: Request, basin: &str) -> Result<Request, HttpError> {
        let (mut head, body) = request.into_parts();
        let path = match self {
            Asked::Stream { name, suffix, .. } => {
                format!("/streams/{}{suffix}", utf8_percent_encode(name, NON_ALPHANUMERIC))
            }
            Asked::Basin(path) => path.clone(),
            Asked::Token => return Err(HttpError::NoRoute),
        };
        let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let uri: Result<Uri, _> = format!("{path}{query}").parse();
        let bad = || refuse(StatusCode::BAD_REQUEST, "bad_path", "the path cannot be read");
        head.uri = uri.map_err(|_| bad())?;
        let mut headers = HeaderMap::new();
        for name in PASSED_ON {
            if let Some(value) = head.headers.remove(&name) {
                headers.insert(name, value);
            }
        }
        headers.insert(BASIN, HeaderValue::try_from(basin).map_err(|_| bad())?);
        if let Asked::Stream { operation: Operation::CreateStream, .. } = self {
            return Ok(created(headers, head.uri));
        }
        head.headers = headers;
        // It is past the door, and what our router noted of its path is not for the store's.
        head.extensions.clear();
        Ok(Request::from_parts(head, body))
    }
}

/// A new stream has the basin's settings, whatever was asked for.
fn created(mut headers: HeaderMap, uri: Uri) -> Request {
    headers.remove(CONTENT_LENGTH);
    headers.remove(CONTENT_ENCODING);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut request = Request::new(Body::from("{}"));
    *request.method_mut() = Method::PUT;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

fn decoded(name: &str) -> Result<String, HttpError> {
    let name = percent_decode_str(name).decode_utf8();
    let bad = |_| refuse(StatusCode::BAD_REQUEST, "bad_path", "the name is no UTF-8");
    Ok(name.map_err(bad)?.into_owned())
}
