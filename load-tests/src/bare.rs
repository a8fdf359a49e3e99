//! The bare server: what hyper alone costs for the same answers. No authentication, no database, no
//! window; a poll parks on one wake and is answered from one prepared answer per version.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::answer::number;
use crate::prepared::{Prepared, Template};
use crate::runs::{self, FIRST_VERSION};

/// A run: its newest answer and those who wait for the next.
struct Topic {
    newest: RwLock<Arc<Prepared>>,
    wake: Notify,
}

struct Bare {
    template: Template,
    topics: Vec<Topic>,
}

/// Serves until standard input ends, so that it cannot outlive the process that started it.
pub fn serve(listen: SocketAddr, answer: &Path, count: usize) -> Result<()> {
    let recorded = std::fs::read(answer).context("reading the recorded answer")?;
    let bare = Bare::new(Template::read(&recorded)?, count);

    // As many workers as the cores this process may run on, as Runwire's own runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (closed, until_closed) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whether it ends well or not makes no difference.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(closed);
    });
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.context("listening")?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        // On a worker, as every connection; the main thread only waits for the end.
        tokio::spawn(accept(listener, bare));
        let _ = until_closed.await;
        Ok(())
    })
}

impl Bare {
    fn new(template: Template, count: usize) -> Arc<Bare> {
        let first = Arc::new(template.prepare(FIRST_VERSION));
        let topic = |_| Topic { newest: RwLock::new(first.clone()), wake: Notify::new() };
        Arc::new(Bare { topics: (0..count).map(topic).collect(), template })
    }
}

async fn accept(listener: TcpListener, bare: Arc<Bare>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: some may be free again soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A connection without it still works, only slower.
        let _ = stream.set_nodelay(true);
        let bare = bare.clone();
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            builder.auto_date_header(bare.template.dated);
            let service = service_fn(move |request| answer(bare.clone(), request));
            // A connection that breaks is the client's affair.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    bare: Arc<Bare>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri();
    if let Some((run, version)) = publication(uri.path()) {
        let status = match bare.topics.get(run) {
            Some(topic) => {
                *topic.newest.write() = Arc::new(bare.template.prepare(version));
                topic.wake.notify_waiters();
                StatusCode::NO_CONTENT
            }
            None => StatusCode::NOT_FOUND,
        };
        return Ok(empty(status));
    }
    let has = uri.query().map_or(0, version_in_offset);
    let run = runs::of_path(uri.path());
    drop(request);
    let Some(topic) = run.and_then(|run| bare.topics.get(run)) else {
        return Ok(empty(StatusCode::NOT_FOUND));
    };
    let prepared = topic.newer_than(has).await;
    let mut response = Response::new(Full::new(prepared.body.clone()));
    *response.headers_mut() = prepared.headers.clone();
    Ok(response)
}

impl Topic {
    async fn newer_than(&self, version: u64) -> Arc<Prepared> {
        loop {
            {
                let newest = self.newest.read();
                if newest.version > version {
                    return newest.clone();
                }
            }
            // Registered before the second look, so that no wake falls between.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            if self.newest.read().version > version {
                continue;
            }
            woken.await;
        }
    }
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// The path by which the writer makes the bare server know a version.
pub fn publication_path(run: usize, version: u64) -> String {
    format!("/publish/{version}/{}", runs::friendly_id(run))
}

fn publication(path: &str) -> Option<(usize, u64)> {
    let rest = path.strip_prefix("/publish/")?;
    Some((runs::of_path(rest)?, number(rest.as_bytes())?))
}

/// The version that the poll's offset names; 0 for `-1` and for none.
fn version_in_offset(query: &str) -> u64 {
    let offset = query.split('&').find_map(|pair| pair.strip_prefix("offset="));
    offset.and_then(|offset| number(offset.as_bytes())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::subscriber::{Crowd, subscribe};
    use crate::writer::Writer;

    #[tokio::test]
    async fn every_subscriber_sees_every_version_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let template = Template::read(&crate::prepared::sample()).unwrap();
        tokio::spawn(accept(listener, Bare::new(template, 2)));

        let ledger = Ledger::new();
        let admission = tokio::sync::Semaphore::new(4);
        let crowd = Arc::new(Crowd { address, ledger: ledger.clone(), admission });
        for index in 0..20 {
            tokio::spawn(subscribe(crowd.clone(), index % 2));
        }
        let limit = Duration::from_secs(20);
        assert!(ledger.all_live(20, limit).await);
        let writer = Writer::bare(address);
        for step in 1..=5 {
            for run in 0..2 {
                writer.change(run, FIRST_VERSION + step).await.unwrap();
            }
            assert!(ledger.reach(step * 20, limit).await, "{:?}", ledger.faults());
        }
        let deliveries = ledger.take_deliveries();
        assert_eq!(deliveries.len(), 100);
        assert_eq!(deliveries.iter().filter(|d| d.run == 1).count(), 50);
        let faults = ledger.faults();
        assert_eq!(faults.skipped + faults.repeated + faults.backward + faults.disconnects, 0);
    }

    #[test]
    fn a_publication_names_its_run_and_version() {
        assert_eq!(publication(&publication_path(3, 1_000_004)), Some((3, 1_000_004)));
        assert_eq!(publication("/realtime/v1/runs/x"), None);
    }

    #[test]
    fn an_offset_names_the_version_that_the_poller_has() {
        assert_eq!(version_in_offset("cursor=1&live=true&offset=01000003_1"), 1_000_003);
        assert_eq!(version_in_offset("log=full&offset=-1"), 0);
    }
}
