//! R1: making a stream ready to be written (`streams-and-sessions.md`, 4.2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri};

use super::writers::credentials;
use super::{find, json_response, owner, require_v2};
use crate::http::App;
use crate::http::error::HttpError;

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
        let headers = credentials(&app.streams, &caller, &run, &key, &headers, &uri).await?;
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
