//! A balancer that gives every request to another gateway than the one before.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{HeaderName, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::npm::Target;

/// It ends with this value.
pub struct Balancer {
    url: String,
    task: JoinHandle<()>,
}

struct Gateways {
    urls: Vec<String>,
    next: AtomicUsize,
    client: reqwest::Client,
}

impl Balancer {
    /// Starts one in front of these gateways, in turn.
    pub async fn start(urls: &[&str]) -> Balancer {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let gateways = Arc::new(Gateways { urls, next: AtomicUsize::new(0), client });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&gateways)));
            }
        });
        Balancer { url, task }
    }

    /// Where a client connects, with this credential.
    pub fn target(&self, access_token: &str) -> Target {
        Target { base_url: self.url.clone(), access_token: access_token.to_owned() }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: TcpStream, gateways: Arc<Gateways>) {
    let answer = service_fn(move |request| {
        let gateways = Arc::clone(&gateways);
        async move { Ok::<_, Infallible>(gateways.pass(request).await) }
    });
    // A client that goes away is none of the test's concern.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
}

impl Gateways {
    async fn pass(&self, request: Request<Incoming>) -> Response<Body> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let (head, _) = request.into_parts();
        let path = head.uri.path_and_query().expect("a path");
        let url = format!("{}{path}", self.urls[nth % self.urls.len()]);
        let mut headers = head.headers;
        headers.remove(header::HOST);
        let sent = self.client.request(head.method, url).headers(headers).send().await;
        let found = sent.expect("an answer");
        let (status, headers) = (found.status(), found.headers().clone());
        let mut answer = Response::new(Body::from(found.bytes().await.expect("a body")));
        *answer.status_mut() = status;
        let of_the_hop =
            |name: &HeaderName| [header::CONNECTION, header::TRANSFER_ENCODING].contains(name);
        let kept = headers.into_iter().filter_map(|(name, value)| Some((name?, value)));
        answer.headers_mut().extend(kept.filter(|(name, _)| !of_the_hop(name)));
        answer
    }
}
