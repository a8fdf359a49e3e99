//! A task that answers like a model: word by word, in an append session, as `streams.pipe` writes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::{ANSWER, World};
use crate::dev::append_session::{AppendSession, Leave};

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
    if let Err(error) = sqlx::query(v2).bind(&run).bind(ANSWER).execute(&world.pool).await {
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
    let leave = Leave::ask(gateway, world.environment.secret_key, run, ANSWER).await?;
    let mut session = AppendSession::open(&leave).await?;
    for word in TEXT.split_inclusive(' ') {
        let id = format!("{:016x}", rand::random::<u64>());
        session.append(json!({ "data": word, "id": id }).to_string()).await?;
        if !world.wait(WORD).await {
            break;
        }
    }
    session.close().await
}
