//! Real answers of Runwire's, for the bare server to give.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::answer::Head;
use crate::http1::{Requests, read_answer};
use crate::layout::Target;
use crate::poll::Cursor;
use crate::runs;
use crate::subscriber::PAUSE;

/// Which answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That to a live poll which brings a change.
    Change,
    /// That to a poll which is not live and finds nothing new.
    NothingNew,
}

/// How many changes are waited for: the first may bring the whole row, as no later one does.
const CHANGES: usize = 2;
const LIMIT: Duration = Duration::from_secs(30);

/// Follows a feed through two changes, which `change` makes, and returns the wanted answer as it was on
/// the wire, head and body.
pub async fn record<F: Future<Output = Result<()>>>(
    address: SocketAddr,
    target: &Target,
    wanted: Wanted,
    mut change: impl FnMut() -> F,
) -> Result<Vec<u8>> {
    let mut requests = Requests::new(address, runs::SECRET_KEY);
    let mut cursor = Cursor::start();
    let mut stream = TcpStream::connect(address).await?;
    let mut buffer = Vec::new();
    // The first answer is the snapshot.
    for answer in 0..=CHANGES {
        let poll = exchange(&mut stream, &mut requests, target, &mut cursor, &mut buffer);
        let change = async {
            if answer > 0 {
                // The poll is held first, as those of the trials are.
                tokio::time::sleep(PAUSE).await;
                change().await?;
            }
            anyhow::Ok(())
        };
        let (polled, changed) = tokio::join!(poll, change);
        changed?;
        polled?;
        cursor.live = true;
    }
    if wanted == Wanted::NothingNew {
        cursor.live = false;
        exchange(&mut stream, &mut requests, target, &mut cursor, &mut buffer).await?;
    }
    Ok(buffer)
}

async fn exchange(
    stream: &mut TcpStream,
    requests: &mut Requests,
    target: &Target,
    cursor: &mut Cursor,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let exchange = async {
        stream.write_all(requests.poll(target, cursor)).await?;
        let take = |head: &Head, _: &[u8]| {
            cursor.follow(head);
            Ok(head.status)
        };
        let status = read_answer(stream, buffer, take).await?;
        ensure!(status == Some(200), "the answer to record was {status:?}");
        Ok(())
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer to record")?
}
