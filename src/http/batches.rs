//! `GET /realtime/v1/batches/{batchId}` (`runs-and-auth.md`, 2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::Response;
use axum::http::request::Parts;

use super::App;
use super::error::HttpError;
use super::subscribe::{Asked, Reply, Subscriber};
use crate::auth::Resource;
use crate::feed::{FeedKey, Runs};

/// The feed of a batch's runs.
pub async fn batch(
    State(app): State<Arc<App>>,
    Path(batch_id): Path<String>,
    request: Request,
) -> Response<Body> {
    let (head, _) = request.into_parts();
    let reply = Reply::to(&head.headers);
    match Box::pin(admit(Arc::clone(&app), batch_id, head)).await {
        Ok(asked) => {
            let metrics = app.metrics.batch.clone();
            reply.serve(app, asked, &metrics, HttpError::NotFound { retry: true }).await
        }
        Err(error) => reply.refuse(&error),
    }
}

async fn admit(app: Arc<App>, batch_id: String, head: Parts) -> Result<Asked, HttpError> {
    let subscriber = Subscriber::admit(&app, &head).await?;
    let (environment, batch) = (subscriber.environment(), Arc::<str>::from(batch_id));
    let internal = app.feeds.batch_id(&environment, &batch).await;
    let Some(internal) = internal.map_err(|_| HttpError::Unavailable)? else {
        return Err(HttpError::NotFound { retry: true });
    };
    subscriber.may_read(&[Resource::one("batch", &batch), Resource::all("runs")])?;
    Ok(subscriber.ask(&app, FeedKey { environment, runs: Runs::OfBatch(internal) }))
}
