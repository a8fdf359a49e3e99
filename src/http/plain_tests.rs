//! Against hyper's reading of the same bytes, and with clients on real sockets.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use futures_util::stream;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::http::listen::{self, Limits, Patience};

const SOON: Duration = Duration::from_secs(20);

/// What hyper reads of a request, and passes on.
fn read_by_hyper(bytes: &[u8]) -> Option<Request<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seen = parking_lot::Mutex::new(None);
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let service = service_fn(|request: Request<Incoming>| {
            seen.lock().get_or_insert(request.map(drop));
            async { Ok::<_, Infallible>(Response::new(Body::empty())) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.half_close(true).serve_connection(TokioIo::new(server), service).await;
    });
    seen.into_inner()
}

/// One line of a head; most are well-formed.
fn field() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(vec![
            "host", "Authorization", "accept", "ACCEPT-ENCODING", "x-trigger-api-version", "origin", "cookie",
        ]).prop_map(str::to_owned),
        1 => prop::sample::select(vec![
            "connection", "content-length", "transfer-encoding", "expect", "upgrade",
        ]).prop_map(str::to_owned),
        1 => "[a-zA-Z!#$%&'*+.^_`|~0-9-]{1,12}",
        1 => "[ -~]{0,6}",
    ];
    let value = prop_oneof![
        4 => "[!-~]{1,20}( [!-~]{1,5})?",
        1 => prop::sample::select(vec!["keep-alive", "close", "0", "chunked"]).prop_map(str::to_owned),
        1 => "[\\x00-\\x7fäß]{0,6}",
    ];
    (name, prop::sample::select(vec![":", ": ", ":  ", " : ", ":\t"]), value)
        .prop_map(|(name, colon, value)| format!("{name}{colon}{value}\r\n"))
}

fn head() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec!["GET", "GET", "GET", "OPTIONS", "HEAD", "get"]);
    let target = prop_oneof![
        4 => "/[a-z0-9/]{0,8}(\\?[a-z0-9=&%_.-]{0,20})?",
        1 => "/[!-~]{0,10}",
        1 => "[ -~]{0,10}",
    ];
    let version = prop::sample::select(vec!["1.1", "1.1", "1.1", "1.0", "2.0"]);
    (method, target, version, prop::collection::vec(field(), 0..6)).prop_map(
        |(method, target, version, fields)| {
            format!("{method} {target} HTTP/{version}\r\n{}\r\n", fields.concat())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_read_here_is_what_hyper_reads(head in head(), more in "(GET / HTTP/1.1\r\n)?") {
        let text = format!("{head}{more}");
        if let Some((request, len)) = request(text.as_bytes()) {
            let hyper = read_by_hyper(&text.as_bytes()[..len]).expect("hyper reads it as well");
            prop_assert_eq!(request.method(), hyper.method());
            prop_assert_eq!(request.uri(), hyper.uri());
            prop_assert_eq!(request.version(), hyper.version());
            prop_assert_eq!(request.headers(), hyper.headers());
        }
    }
}

#[test]
fn only_a_whole_request_that_has_no_body_and_wants_nothing_of_its_connection_is_plain() {
    let plain = |line: &str, fields: &str| {
        let text = format!("{line}\r\nhost: x\r\n{fields}\r\n");
        let whole = request(text.as_bytes()).is_some();
        assert!((0..text.len()).all(|len| request(&text.as_bytes()[..len]).is_none()), "{text}");
        whole
    };
    let get = "GET /realtime/v1/runs?tags=a HTTP/1.1";
    assert!(plain(get, "") && plain(get, "Connection: Keep-Alive\r\nAuthorization: Bearer x\r\n"));
    assert!(plain("OPTIONS /realtime/v1/runs HTTP/1.1", "origin: http://x\r\n"));
    for field in ["connection: close", "expect: 100-continue", "upgrade: h2c", "bad header: x"] {
        assert!(!plain(get, &format!("{field}\r\n")), "{field}");
    }
    for field in ["content-length: 2", "content-length: 0", "transfer-encoding: chunked"] {
        assert!(!plain(get, &format!("{field}\r\n")), "{field}");
    }
    let lines = ["GET / HTTP/1.0", "POST / HTTP/1.1", "HEAD / HTTP/1.1", "GET http://x/ HTTP/1.1"];
    assert!(!lines.iter().any(|line| plain(line, "")));
}

/// The word, and places for those who wait for it.
type Held = Arc<(Notify, Semaphore)>;
const PLACES: usize = 10;

async fn hold(State(held): State<Held>) {
    let _place = held.1.acquire().await;
    held.0.notified().await;
}

/// A server whose `/held` waits for a word, and the end of whose serving can be waited for.
struct Server {
    address: SocketAddr,
    held: Held,
    drain: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

async fn server() -> Server {
    let held = Arc::new((Notify::new(), Semaphore::new(PLACES)));
    let pieces = || Body::from_stream(stream::iter(["a", "", "bc"].map(Ok::<_, Infallible>)));
    let routes = Router::new()
        .route("/whole", get(async |uri: Uri| uri.query().unwrap_or_default().to_owned()))
        .route("/pieces", get(async move || pieces()))
        .route("/none", get(async || axum::http::StatusCode::NO_CONTENT))
        .route("/body", post(async |body: String| body))
        .route("/held", get(hold))
        .with_state(Arc::clone(&held));
    let listener = listen::bind((Ipv4Addr::LOCALHOST, 0).into(), SOON).unwrap();
    let address = listener.local_addr().unwrap();
    let patience = Patience { write: SOON, head: SOON, idle: 10 * SOON };
    let limits = Limits { places: Arc::new(Semaphore::new(100)), patience };
    let drain = CancellationToken::new();
    let served = listen::serve("test", listener, routes, None, limits, drain.clone());
    Server { address, held, drain, served: tokio::spawn(served) }
}

impl Server {
    /// Waits until it holds so many.
    async fn holds(&self, number: usize) {
        while PLACES - self.held.1.available_permits() != number {
            tokio::task::yield_now().await;
        }
    }
}

async fn read_all(client: &mut TcpStream) -> String {
    let mut read = String::new();
    tokio::time::timeout(SOON, client.read_to_string(&mut read)).await.expect("an end").unwrap();
    read
}

/// Reads until this is the last that it has.
async fn read_to(client: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            assert_ne!(client.read_buf(&mut read).await.unwrap(), 0, "no {end}");
        }
    };
    let in_time = tokio::time::timeout(SOON, reading).await.is_ok();
    assert!(in_time, "no {end} in {} bytes", read.len());
    String::from_utf8(read).unwrap()
}

/// The answers without their dates.
fn undated(answers: &str) -> String {
    let lines = answers.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
    lines.collect()
}

#[tokio::test]
async fn requests_of_all_kinds_are_answered_in_their_order_however_they_are_cut() {
    let server = server().await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let text = "content-type: text/plain; charset=utf-8\r\n";
    for _ in 0..60 {
        let (mut asked, mut expected) = (String::new(), String::new());
        for number in 0..random.random_range(1..12) {
            let padding = "x".repeat(random.random_range(0..2) * random.random_range(1..9_000));
            let fields = format!("host: x\r\ncookie: {padding}\r\n");
            let (request, answer) = match random.random_range(0..6) {
                0 | 1 => (
                    format!("GET /whole?{number} HTTP/1.1\r\n{fields}\r\n"),
                    format!(
                        "200 OK\r\n{text}content-length: {}\r\n\r\n{number}",
                        number.to_string().len()
                    ),
                ),
                2 => (
                    format!("GET /pieces HTTP/1.1\r\n{fields}\r\n"),
                    "200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
                ),
                3 => (
                    format!("GET /none HTTP/1.1\r\n{fields}\r\n"),
                    "204 No Content\r\n\r\n".to_owned(),
                ),
                4 => (
                    format!("POST /body HTTP/1.1\r\n{fields}content-length: 4\r\n\r\nGET "),
                    format!("200 OK\r\n{text}content-length: 4\r\n\r\nGET "),
                ),
                _ => (
                    format!("GET /nowhere HTTP/1.1\r\n{fields}content-length: 0\r\n\r\n"),
                    "404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
                ),
            };
            asked += &request;
            expected += &format!("HTTP/1.1 {answer}");
        }
        asked += "GET /whole HTTP/1.1\r\nconnection: close\r\n\r\n";
        expected +=
            &format!("HTTP/1.1 200 OK\r\n{text}connection: close\r\ncontent-length: 0\r\n\r\n");
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut rest = asked.as_bytes();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(1..=rest.len()));
            client.write_all(now).await.unwrap();
            tokio::task::yield_now().await;
            rest = later;
        }
        assert_eq!(undated(&read_all(&mut client).await), expected);
    }
}

#[tokio::test]
async fn what_waits_ends_with_its_client() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GET /held HTTP/1.1\r\n\r\n").await.unwrap();
    server.holds(1).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "");
    server.holds(0).await;
}

#[tokio::test]
async fn who_asks_twice_and_says_that_it_has_no_more_is_answered_twice() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let asked = b"GET /held HTTP/1.1\r\n\r\nGET /whole?next HTTP/1.1\r\n\r\n";
    client.write_all(asked).await.unwrap();
    client.shutdown().await.unwrap();
    server.holds(1).await;
    // By when another has been answered, its end has been noticed.
    let mut other = TcpStream::connect(server.address).await.unwrap();
    other.write_all(b"GET /whole?other HTTP/1.1\r\n\r\n").await.unwrap();
    read_to(&mut other, "\r\n\r\nother").await;
    server.held.0.notify_one();
    let answers = read_all(&mut client).await;
    assert!(answers.matches("HTTP/1.1 200 OK").count() == 2 && answers.ends_with("next"));
}

#[tokio::test]
async fn a_drain_ends_who_waits_for_nothing_and_lets_others_have_their_answer() {
    let mut server = server().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut used = TcpStream::connect(server.address).await.unwrap();
    used.write_all(b"GET /whole?used HTTP/1.1\r\n\r\n").await.unwrap();
    read_to(&mut used, "\r\n\r\nused").await;
    let mut held = TcpStream::connect(server.address).await.unwrap();
    // Nothing is answered after what is said to be the last.
    let asked = ["/whole?first", "/held", "/whole?late"];
    let asked = asked.map(|path| format!("GET {path} HTTP/1.1\r\n\r\n"));
    held.write_all(asked.concat().as_bytes()).await.unwrap();
    read_to(&mut held, "\r\n\r\nfirst").await;
    server.drain.cancel();
    assert_eq!(read_all(&mut idle).await + &read_all(&mut used).await, "");
    assert!(!server.served.is_finished());
    server.held.0.notify_one();
    let answer = undated(&read_all(&mut held).await);
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    tokio::time::timeout(SOON, &mut server.served).await.expect("its end").unwrap();
}

#[tokio::test]
async fn who_has_spoken_http_1_is_held_to_it() {
    let server = server().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GET /whole?1 HTTP/1.1\r\n\r\n").await.unwrap();
    read_to(&mut client, "\r\n\r\n1").await;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert_eq!(undated(&read_all(&mut client).await), "");
}
