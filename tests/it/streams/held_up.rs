//! A gateway that does not come to read for a moment, while sessions go on writing small chunks.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s2_api::v1::stream::proto::{AppendInput, AppendRecord};
use s2_api::v1::stream::s2s::{CompressionAlgorithm, FrameDecoder, SessionMessage};
use tokio_util::codec::Decoder as _;

use crate::support::cluster::fresh_database;
use crate::support::process::signal;
use crate::support::program::Serving;
use crate::support::streams::{SOON, run, scratch};

const SESSIONS: usize = 4;
const CHUNKS: usize = 200;

#[tokio::test]
async fn many_small_chunks_that_wait_to_be_read_do_not_cost_a_writer_its_connection() {
    let (database, data) = (fresh_database().await, scratch());
    let directory = format!("--data-dir={}", data.0.display());
    let gateway = Serving::start_ready(&database.url, &[&directory]).await;
    let run = run(&database).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = format!("{}/realtime/v1/streams/{run}/self/ai", gateway.url);
    let leave = client.put(path).bearer_auth(database.seeded.production.secret_key).send().await;
    let leave = leave.unwrap().headers().clone();
    let header = |name: &str| leave[name].to_str().unwrap();

    let address = gateway.url.strip_prefix("http://").unwrap();
    let socket = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
    let (mut writer, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    let mut sessions = Vec::new();
    for session in 0..SESSIONS {
        let (frames, mut next) = tokio::sync::mpsc::channel::<Bytes>(CHUNKS);
        let body = async_stream::stream! {
            while let Some(frame) = next.recv().await {
                yield Ok::<Bytes, std::io::Error>(frame);
            }
        };
        let stream = format!("{}{session}", header("x-s2-stream-name")).replace('/', "%2F");
        let request =
            Request::post(format!("{}/streams/{stream}/records", header("x-s2-endpoint")))
                .header("authorization", format!("Bearer {}", header("x-s2-access-token")))
                .header("s2-basin", header("x-s2-basin"))
                .header("content-type", "s2s/proto")
                .header("accept", "application/protobuf")
                .body(Body::from_stream(body));
        let answer = writer.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        sessions.push((frames, Body::new(answer.into_body()).into_data_stream()));
    }

    signal(gateway.pid(), "STOP");
    for _ in 0..CHUNKS {
        for (frames, _) in &sessions {
            let record = AppendRecord { body: "a".into(), ..AppendRecord::default() };
            let input = AppendInput { records: vec![record], ..AppendInput::default() };
            let frame = SessionMessage::regular(CompressionAlgorithm::None, &input);
            frames.send(frame.unwrap().encode()).await.unwrap();
        }
    }
    // Until the kernel has them; fewer would show less.
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(gateway.pid(), "CONT");

    for (_frames, mut answers) in sessions {
        let (mut unread, mut acknowledged) = (BytesMut::new(), 0);
        while acknowledged < CHUNKS {
            let piece = tokio::time::timeout(SOON, answers.next()).await.expect("an answer");
            unread.extend_from_slice(&piece.expect("it goes on").expect("the connection stays"));
            while let Some(message) = FrameDecoder.decode(&mut unread).unwrap() {
                assert!(matches!(message, SessionMessage::Regular(_)), "{message:?}");
                acknowledged += 1;
            }
        }
    }
    gateway.stop().await;
}
