//! What browsers need on every answer, errors included (`runs-and-auth.md`, 16).

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, VARY,
};
use axum::http::{Response, StatusCode};

/// The answer to any OPTIONS of a realtime route: no authentication, no work.
pub fn preflight(request: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::from("{}"));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    let methods = HeaderValue::from_static("GET,HEAD,PUT,PATCH,POST,DELETE");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("300"));
    headers.insert(VARY, HeaderValue::from_static("Origin, Access-Control-Request-Headers"));
    if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    if let Some(origin) = request.get(ORIGIN) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    response
}

/// On every answer that is no feed: the origin echoed, and upstream's two headers exposed; beyond
/// upstream, also when to come back, which the newer clients obey.
pub fn on_refusal(origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    let exposed = match headers.contains_key(RETRY_AFTER) {
        true => HeaderValue::from_static("x-trigger-jwt,x-trigger-jwt-claims,retry-after"),
        false => HeaderValue::from_static("x-trigger-jwt,x-trigger-jwt-claims"),
    };
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
}

/// On a stream: browsers must see which version its events are of, and old ones know no `*`.
pub fn on_stream(origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    let exposed = "*, x-stream-version, x-trigger-jwt, x-trigger-jwt-claims";
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
}

/// On every answer of a feed, a 409 included: browsers see no shape header otherwise.
pub fn on_feed(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
}
