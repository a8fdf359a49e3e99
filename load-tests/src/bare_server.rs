//! The bare server: what hyper alone costs for the same answers. No authentication, no database, no
//! window; a poll parks on one wake and is answered from one prepared answer per version.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

use crate::answer::number;
use crate::layout::number_in_request;
use crate::prepared::{Prepared, Template};
use crate::runs::{self, FIRST_VERSION};

/// What Runwire asks of the kernel: connections that wait, unsent bytes of answers.
const BACKLOG: u32 = 8_192;
const SOCKET_BUFFER: u32 = 64 * 1024;
/// What Runwire allows an HTTP/2 connection: streams at once, bytes of bodies, unsent bytes of an answer.
const MAX_STREAMS: u32 = 1_000;
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 16 * 1024;

/// A feed: its newest answer and those who wait for the next.
struct Topic {
    newest: RwLock<Arc<Prepared>>,
    wake: Notify,
}

struct Bare {
    template: Template,
    /// Run `r` is in topic `r % topics`.
    topics: Vec<Topic>,
}

/// What the bare server is told.
#[derive(Args)]
pub struct Settings {
    #[arg(long)]
    listen: SocketAddr,
    /// The recorded answer
    #[arg(long)]
    answer: PathBuf,
    #[arg(long)]
    feeds: usize,
    /// Speak HTTP/2, which the client is expected to know beforehand
    #[arg(long)]
    http2: bool,
}

/// Serves until standard input ends, so that it cannot outlive the process that started it.
pub fn serve(settings: &Settings) -> Result<()> {
    let recorded = std::fs::read(&settings.answer).context("reading the recorded answer")?;
    let bare = Bare::new(Template::read(&recorded)?, settings.feeds);
    let (listen, http2) = (settings.listen, settings.http2);

    // As many workers as the cores this process may run on, as Runwire's own runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (closed, until_closed) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whether it ends well or not makes no difference.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(closed);
    });
    runtime.block_on(async {
        let listener = bind(listen).context("listening")?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        // On a worker, as every connection; the main thread only waits for the end.
        tokio::spawn(accept(listener, bare, http2));
        let _ = until_closed.await;
        Ok(())
    })
}

/// Listens as Runwire does.
pub fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

impl Bare {
    fn new(template: Template, feeds: usize) -> Arc<Bare> {
        // Shared, so that a feed takes no memory of its own before its first change.
        let first = Arc::new(template.prepare(0, FIRST_VERSION, FIRST_VERSION));
        let topic = |_| Topic { newest: RwLock::new(first.clone()), wake: Notify::new() };
        Arc::new(Bare { topics: (0..feeds).map(topic).collect(), template })
    }
}

async fn accept(listener: TcpListener, bare: Arc<Bare>, http2: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: some may be free again soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A connection without it still works, only slower.
        let _ = stream.set_nodelay(true);
        let (stream, dated) = (TokioIo::new(stream), bare.template.dated);
        let bare = bare.clone();
        let service = service_fn(move |request| answer(bare.clone(), request));
        // A connection that breaks is the client's affair.
        if http2 {
            tokio::spawn(async move {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .max_concurrent_streams(MAX_STREAMS)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_send_buf_size(SEND_BUFFER)
                    .auto_date_header(dated);
                let _ = builder.serve_connection(stream, service).await;
            });
        } else {
            tokio::spawn(async move {
                let mut builder = http1::Builder::new();
                builder.auto_date_header(dated);
                let _ = builder.serve_connection(stream, service).await;
            });
        }
    }
}

async fn answer(
    bare: Arc<Bare>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri();
    if let Some((run, version)) = publication(uri.path()) {
        bare.publish(run, version);
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let has = uri.query().map_or(0, sequence_in_offset);
    let number = number_in_request(uri.path(), uri.query());
    drop(request);
    let Some(number) = number else { return Ok(empty(StatusCode::NOT_FOUND)) };
    let topic = &bare.topics[number % bare.topics.len()];
    let prepared = match bare.template.has_news() {
        true => topic.newer_than(has).await,
        false => topic.newest.read().clone(),
    };
    let mut response = Response::new(Full::new(prepared.body.clone()));
    *response.headers_mut() = prepared.headers.clone();
    Ok(response)
}

impl Bare {
    fn publish(&self, run: usize, version: u64) {
        let topic = &self.topics[run % self.topics.len()];
        let mut newest = topic.newest.write();
        *newest = Arc::new(self.template.prepare(run, version, newest.sequence + 1));
        drop(newest);
        topic.wake.notify_waiters();
    }
}

impl Topic {
    async fn newer_than(&self, sequence: u64) -> Arc<Prepared> {
        loop {
            {
                let newest = self.newest.read();
                if newest.sequence > sequence {
                    return newest.clone();
                }
            }
            // Registered before the second look, so that no wake falls between.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            if self.newest.read().sequence > sequence {
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

/// The sequence number that the poll's offset names; 0 for `-1` and for none.
fn sequence_in_offset(query: &str) -> u64 {
    let offset = query.split('&').find_map(|pair| pair.strip_prefix("offset="));
    offset.and_then(|offset| number(offset.as_bytes())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::ledger::Ledger;
    use crate::record::Wanted;
    use crate::subscriber::Crowd;
    use crate::writer::Writer;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A bare server of four runs with two tags, twenty subscribers of the tags, all live.
    async fn held(http2: bool) -> (SocketAddr, Arc<Ledger>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let template = Template::read(&crate::prepared::sample(Wanted::Change)).unwrap();
        let layout = Layout::tags(2, 4);
        tokio::spawn(accept(listener, Bare::new(template, layout.feeds), http2));
        let ledger = Ledger::new();
        let admission = tokio::sync::Semaphore::new(4);
        let crowd = Arc::new(Crowd { address, ledger: ledger.clone(), admission, runs: 1 });
        for index in 0..20 {
            let target = layout.target(index % 2);
            if http2 {
                let connection = crate::http2::Late::new(address);
                tokio::spawn(crate::http2::subscribe(crowd.clone(), target, connection));
            } else {
                tokio::spawn(crate::http1::subscribe(crowd.clone(), target));
            }
        }
        assert!(ledger.all_live(20, LIMIT).await, "{:?}", ledger.faults());
        (address, ledger)
    }

    #[tokio::test]
    async fn every_subscriber_of_a_tag_sees_every_version_of_its_runs_once() {
        let (address, ledger) = held(false).await;
        let writer = Writer::bare(address);
        for step in 0..20 {
            let (run, version) = (step % 4, FIRST_VERSION + 1 + step as u64 / 4);
            writer.change(&[(run, version)]).await.unwrap();
            let goal = (step as u64 + 1) * 10;
            assert!(ledger.reach(goal, LIMIT).await, "{:?}", ledger.faults());
        }
        let deliveries = ledger.take_deliveries();
        assert_eq!(deliveries.len(), 200);
        assert_eq!(deliveries.iter().filter(|d| d.run == 3).count(), 50);
        let faults = ledger.faults();
        assert_eq!(faults.skipped + faults.repeated + faults.backward + faults.disconnects, 0);
    }

    #[tokio::test]
    async fn polls_are_held_over_http_2_as_well() {
        let (_, ledger) = held(true).await;
        assert_eq!(ledger.polls_held_out(), 0);
        assert_eq!(ledger.faults().failed, 0);
    }

    #[test]
    fn a_publication_names_its_run_and_version() {
        assert_eq!(publication(&publication_path(3, 1_000_004)), Some((3, 1_000_004)));
        assert_eq!(publication("/realtime/v1/runs/x"), None);
    }

    #[test]
    fn an_offset_names_the_answer_that_the_poller_has() {
        assert_eq!(sequence_in_offset("cursor=1&live=true&offset=01000003_1"), 1_000_003);
        assert_eq!(sequence_in_offset("log=full&offset=-1"), 0);
    }
}
