//! A task that answers like a model: word by word, through the route that `streams.append` uses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use axum::http::{Method, Request};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::World;

/// The stream's key.
pub(crate) const KEY: &str = "answer";

const TEXT: &str = "A change commits in Postgres, its log says so, and everybody who watches that run \
    is told, once, in the order in which it happened. What you read here came another way: each word \
    was appended to a stream of the run, made durable, and sent on to you.";

/// Between two words, and between two answers.
const WORD: Duration = Duration::from_millis(120);
const REST: Duration = Duration::from_secs(3);

/// Keeps answering on this run of the gateway's, until the engine stops.
pub(super) async fn speak(world: World, gateway: SocketAddr, run: String) {
    // Else its streams would be in a Redis. With the key, so that no subscriber sees it come.
    let v2 = r#"UPDATE "TaskRun" SET "realtimeStreamsVersion" = 'v2', "realtimeStreams" = ARRAY[$2]
        WHERE "friendlyId" = $1"#;
    if let Err(error) = sqlx::query(v2).bind(&run).bind(KEY).execute(&world.pool).await {
        tracing::debug!(%error, "the example run cannot stream");
        return;
    }
    loop {
        if let Err(error) = answer(&world, gateway, &run).await {
            tracing::debug!(%error, "the example run's answer broke off");
        }
        if !world.wait(REST).await {
            return;
        }
    }
}

async fn answer(world: &World, gateway: SocketAddr, run: &str) -> io::Result<()> {
    let socket = TokioIo::new(TcpStream::connect(gateway).await?);
    let (mut client, connection) = http1::handshake(socket).await.map_err(io::Error::other)?;
    let talk = async {
        for word in TEXT.split_inclusive(' ') {
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("/realtime/v1/streams/{run}/self/{KEY}/append"))
                .header(HOST, gateway.to_string())
                .header(AUTHORIZATION, format!("Bearer {}", world.environment.secret_key))
                .header(CONTENT_LENGTH, word.len())
                .body(Body::from(word));
            let sent = client.send_request(request.map_err(io::Error::other)?);
            let response = sent.await.map_err(io::Error::other)?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            let read = axum::body::to_bytes(Body::new(response.into_body()), 16 << 10).await;
            read.map_err(io::Error::other)?;
            if !status.is_success() {
                return Err(io::Error::other(format!("the gateway answers {status}")));
            }
            if !world.wait(WORD).await {
                return Ok(());
            }
        }
        Ok(())
    };
    tokio::select! {
        told = talk => told,
        ended = connection => ended.map_err(io::Error::other),
    }
}
