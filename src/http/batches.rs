//! `GET /realtime/v1/batches/{batchId}` (`runs-and-auth.md`, 2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::Response;

use super::App;
use super::error::HttpError;
use super::subscribe::{Asked, Route, Subscriber, feed, id_of};
use crate::auth::Resource;
use crate::feed::{FeedKey, Runs};

/// The feed of a batch's runs.
pub async fn batch(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let id = id_of(id, request.uri());
    feed(app, Route::Batch(id), request.into_parts().0, None).await
}

pub(super) async fn ask(
    app: &App,
    subscriber: Subscriber<'_>,
    batch: Arc<str>,
) -> Result<Asked, HttpError> {
    let environment = subscriber.environment();
    let internal = app.feeds.batch_id(&environment, &batch).await;
    let Some(internal) = internal.map_err(|_| HttpError::Unavailable)? else {
        return Err(HttpError::NotFound { retry: true });
    };
    subscriber.may_read(&[Resource::one("batch", &batch), Resource::all("runs")])?;
    Ok(subscriber.ask(app, FeedKey::new(environment, Runs::OfBatch(internal))))
}
