//! Answering requests of S2's own routes.

use axum::body::{Body, HttpBody as _};
use axum::http::{Request, Response};
use futures_util::StreamExt as _;
use s2_common::basin::BasinName;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::{AHEAD, Embedded, refused, unavailable};
use crate::streams::store::StoreError;

impl Embedded {
    /// See [`crate::streams::Store::serve`].
    pub async fn serve(
        &self,
        basin: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, StoreError> {
        let basin: BasinName = basin.parse().map_err(refused)?;
        let opened = self.in_basin(&basin).await?;
        let answer = async move {
            let Ok(response) = opened.routes.oneshot(request).await;
            response
        };
        // No deadline: a read may wait for a minute. Who goes away ends it.
        let answer = self.on_runtime(answer)?;
        let response = answer.await.map_err(|_| unavailable("it gave up on a request"))?;
        if response.body().size_hint().exact().is_some() {
            return Ok(response);
        }
        // A session is worked at wherever its answer is asked for, so it is asked for on these threads.
        let (head, body) = response.into_parts();
        let (send, mut receive) = mpsc::channel(AHEAD);
        let pump = self.on_runtime(async move {
            let mut body = body.into_data_stream();
            loop {
                let next = tokio::select! {
                    next = body.next() => next,
                    () = send.closed() => return,
                };
                let Some(next) = next else { return };
                if send.send(next).await.is_err() {
                    return;
                }
            }
        })?;
        let body = async_stream::stream! {
            let mut pump = pump;
            while let Some(piece) = receive.recv().await {
                yield piece;
            }
            // A clean end is only one if it came to it.
            if (&mut pump).await.is_err() {
                yield Err(axum::Error::new(unavailable("it gave up on a session")));
            }
        };
        Ok(Response::from_parts(head, Body::from_stream(body)))
    }
}
