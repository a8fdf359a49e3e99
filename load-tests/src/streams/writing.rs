//! Writers on a thread of their own, so that busy readers do not blur the moment at which a chunk is sent.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::chunk::body;
use super::session::{Leave, Session, connect};

/// How many sessions share a connection, as the SDK's client has it.
const PER_CONNECTION: usize = 100;

/// What is to be written.
#[derive(Clone)]
pub struct Plan {
    /// A stream each.
    pub leaves: Vec<Leave>,
    /// The number of the first chunk in each of them.
    pub first: u64,
    /// How many chunks for each.
    pub chunks: u64,
    /// Chunks of one append.
    pub batch: u64,
    /// The time between two appends to the same stream; streams take turns in it.
    pub every: Duration,
}

/// Writers who are ready.
pub struct Writing {
    begin: oneshot::Sender<()>,
    written: oneshot::Receiver<Result<()>>,
}

/// Opens the plan's sessions.
pub async fn prepare(plan: Plan) -> Result<Writing> {
    let (begin, begun) = oneshot::channel();
    let (opened, ready) = oneshot::channel();
    let (done, mut written) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        // Nobody listens if the trial was given up.
        let _ = done.send(runtime.block_on(write(plan, opened, begun)));
    });
    tokio::select! {
        biased;
        ready = ready => if ready.is_ok() { return Ok(Writing { begin, written }) },
        early = &mut written => early.context("the writers' thread has ended")??,
    }
    written.await.context("the writers' thread has ended")??;
    anyhow::bail!("the writers ended before they began")
}

impl Writing {
    /// Writes, and returns when everything is acknowledged.
    pub async fn go(self) -> Result<()> {
        let gone = "the writers' thread has ended";
        self.begin.send(()).ok().context(gone)?;
        self.written.await.context(gone)?
    }
}

async fn write(
    plan: Plan,
    opened: oneshot::Sender<()>,
    begun: oneshot::Receiver<()>,
) -> Result<()> {
    let mut sessions = Vec::new();
    for leaves in plan.leaves.chunks(PER_CONNECTION) {
        let connection = connect(leaves.first().context("no stream")?).await?;
        let mut opening = JoinSet::new();
        for leave in leaves {
            let (mut connection, leave) = (connection.clone(), leave.clone());
            opening.spawn(async move { Session::open(&mut connection, &leave).await });
        }
        while let Some(session) = opening.join_next().await {
            sessions.push(session??);
        }
    }
    let _ = opened.send(());
    if begun.await.is_err() {
        return Ok(());
    }
    let (began, streams) = (Instant::now(), sessions.len() as u32);
    let mut writers = JoinSet::new();
    for (turn, mut session) in sessions.into_iter().enumerate() {
        let Plan { first, chunks, batch, every, .. } = plan;
        let began = began + every * turn as u32 / streams;
        writers.spawn(async move {
            for (count, at) in (0..chunks).step_by(batch as usize).enumerate() {
                tokio::time::sleep_until(began + every * count as u32).await;
                let numbers = first + at..first + (at + batch).min(chunks);
                session.append(numbers.map(body).collect()).await?;
            }
            session.acknowledged(chunks).await
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}
