//! R5: a server's append (`streams-and-sessions.md`, 4.7).

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::{find, json_response, owner, require_v2};
use crate::http::error::HttpError;
use crate::http::{App, body};
use crate::streams::StoreError;

/// The longest body that becomes a chunk.
const MAX_CHUNK_BYTES: usize = 512 << 10;
/// The most that S2 takes as one record, as it counts.
const MAX_RECORD: usize = 1 << 20;

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
            Err(error @ StoreError::Full) => {
                Err(HttpError::NotOk(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_record_is_as_long_as_s2_takes_it_or_refused_with_figures() {
        let built = record(b"{\"i\":0}", Some("part-0")).unwrap();
        assert_eq!(&built[..], br#"{"data":"{\"i\":0}","id":"part-0"}"#);
        let around = r#"{"data":"","id":"p"}"#.len() + 8;
        assert!(record(&vec![b'x'; MAX_RECORD - around], Some("p")).is_ok());
        match record(&vec![b'x'; MAX_RECORD - around + 1], Some("p")) {
            Err(HttpError::NotOk(StatusCode::PAYLOAD_TOO_LARGE, why)) => {
                assert!(why.starts_with("Record metered size 1048577 bytes exceeds"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(part_id().len(), 7);
    }
}
