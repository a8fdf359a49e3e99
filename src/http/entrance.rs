//! What every request of a public address passes before its route, in this order: it is counted,
//! measured, answered at once if it is a preflight, and held against its address' rate. Then comes
//! its route, which authenticates it first ([`App::caller`]).

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, ORIGIN};
use axum::http::{HeaderMap, Method, Request, Response};
use futures_util::future::{Either, ready};

use super::error::HttpError;
use super::listen::Answers;
use super::proxy::site;
use super::shortcut::feed_asked_for;
use super::streams::is_for_browsers;
use super::subscribe::feed;
use super::{App, cors};
use crate::limits::Admitted;

/// The most that a request's path and query may take, in bytes. Trigger.dev's own servers take 16 KiB
/// for a request's whole head.
const MAX_URL: usize = 16 * 1024;
/// The most that a request's headers may take, in bytes. [`super::connection::MAX_HEAD`] bounds what
/// is read of a head at all.
const MAX_HEADERS: usize = 24 * 1024;
/// The most that a body may take that says its length, in bytes; its route may allow less.
const MAX_BODY: u64 = 2 * 1024 * 1024;

/// The way in to the feeds and all other routes.
#[derive(Clone, Debug)]
pub struct Entrance {
    app: Arc<App>,
    routes: Router,
}

impl Entrance {
    /// Before these routes.
    pub fn new(app: Arc<App>, routes: Router) -> Entrance {
        Entrance { app, routes }
    }

    fn pass(&self, peer: IpAddr, request: &Request<Body>) -> Result<Admitted, HttpError> {
        let limits = &self.app.limits;
        let admitted = limits.admission.enter().ok_or(HttpError::Unavailable)?;
        measure(request)?;
        if let Some(addresses) = &limits.addresses
            && !is_preflight(request)
        {
            let client = self.app.proxies.client(peer, request.headers());
            addresses.count(&site(client)).map_err(HttpError::TooManyRequests)?;
        }
        Ok(admitted)
    }
}

impl Answers for Entrance {
    fn answer(
        &self,
        peer: IpAddr,
        mut request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        if is_probe(&request) {
            return Either::Right(Either::Right(Box::pin(self.routes.answer(peer, request))));
        }
        let admitted = match self.pass(peer, &request) {
            Ok(_) if is_preflight(&request) => {
                return Either::Left(ready(cors::preflight(request.headers())));
            }
            Ok(admitted) => admitted,
            Err(error) => {
                let mut response = error.response();
                let origin = request.headers().get(ORIGIN).cloned();
                cors::on_refusal(origin, response.headers_mut());
                return Either::Left(ready(response));
            }
        };
        Either::Right(match feed_asked_for(&request) {
            // Past the router, which would take more memory per held poll than the poll does.
            Some(route) => {
                let (head, _) = request.into_parts();
                Either::Left(feed(Arc::clone(&self.app), route, head, Some(admitted)))
            }
            None => {
                // It is at the door for as long as its route keeps its head.
                request.extensions_mut().insert(Arc::new(admitted));
                Either::Right(Box::pin(self.routes.answer(peer, request)))
            }
        })
    }
}

fn measure<B>(request: &Request<B>) -> Result<(), HttpError> {
    if request.uri().path_and_query().is_some_and(|url| url.as_str().len() > MAX_URL) {
        return Err(HttpError::UriTooLong);
    }
    let headers = request.headers();
    let size = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        name.as_str().len() + value.len()
    };
    if headers.iter().map(size).sum::<usize>() > MAX_HEADERS {
        return Err(HttpError::HeadersTooLarge);
    }
    if content_length(headers).is_some_and(|length| length > MAX_BODY) {
        return Err(HttpError::BodyTooLarge);
    }
    Ok(())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Browsers send about one per poll (`runs-and-auth.md`, 16), and take any answer that is no success
/// for a broken network.
fn is_preflight<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    request.method() == Method::OPTIONS && path.starts_with("/realtime/") && is_for_browsers(path)
}

/// Who asks whether we live is told so however full the door is; all of a balancer's probes come from
/// one address.
fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(request.uri().path(), "/healthz" | "/readyz")
}
