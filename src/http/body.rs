//! Reading a request's body, within bounds.

use std::time::Duration;

use axum::body::{Body, Bytes};

use super::App;
use super::error::HttpError;

/// For how long a body may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// The whole body, of at most `longest` bytes, for somebody of this environment. Before this is
/// awaited the request's head is to be dropped: it keeps a place at the door, which slow bodies would
/// fill. They have places of their own.
pub(super) async fn read(
    app: &App,
    environment: &str,
    body: Body,
    longest: usize,
) -> Result<Bytes, HttpError> {
    let place = app.limits.bodies.try_enter(environment);
    let _place = place.ok_or(HttpError::Unavailable)?;
    match tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, longest)).await {
        Ok(read) => read.map_err(|_| HttpError::BodyTooLarge),
        Err(_) => Err(HttpError::BodyTimeout),
    }
}
