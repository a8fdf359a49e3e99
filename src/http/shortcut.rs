//! The way of a poll past the router, which would take more memory per held poll than the poll does.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, Request};
use futures_util::FutureExt as _;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tower::ServiceExt as _;

use super::listen::Answers;
use super::{App, runs};

/// Answers as `routes` would: a plain GET of a run by its route itself, all else by the router.
pub fn to_runs(app: Arc<App>, routes: Router) -> impl Answers {
    service_fn(move |request: Request<Incoming>| match run_asked_for(&request) {
        Some(run) => {
            let (app, path) = (State(Arc::clone(&app)), Path(run.to_owned()));
            let answer = runs::run(app, path, request.map(|_| Body::empty()));
            Either::Left(answer.map(Ok::<_, Infallible>))
        }
        None => Either::Right(Box::pin(routes.clone().oneshot(request))),
    })
}

/// The run's id, where it needs no decoding.
fn run_asked_for<B>(request: &Request<B>) -> Option<&str> {
    let run = request.uri().path().strip_prefix("/realtime/v1/runs/")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let plain = !run.is_empty() && run.bytes().all(is_plain);
    (plain && request.method() == Method::GET).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_gets_of_a_run_take_it() {
        let asked = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            run_asked_for(&request).map(str::to_owned)
        };
        assert_eq!(asked("GET", "/realtime/v1/runs/run_1?offset=-1").as_deref(), Some("run_1"));
        let others = ["/realtime/v1/runs/", "/realtime/v1/runs/a/", "/realtime/v1/runs/%61", "/"];
        assert!(others.iter().all(|path| asked("GET", path).is_none()));
        assert_eq!(asked("HEAD", "/realtime/v1/runs/run_1"), None);
        assert_eq!(asked("OPTIONS", "/realtime/v1/runs/run_1"), None);
    }
}
