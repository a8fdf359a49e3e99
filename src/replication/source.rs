//! Reads the stream for as long as the process lives: connects, hands on, confirms, and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgwire_replication::ReplicationEvent;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::assembler::Assembler;
use super::change::{Event, Marks, Reset};
use super::feedback::Feedback;
use super::setup::{SetupError, connect, prepare};
use super::slot::{AttachError, Attachment, Start, attach, drop_named, sqlstate};
use super::status::Status;
use crate::postgres::Lsn;

/// The first pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often positions are confirmed and the connection's life is looked at.
const TICK: Duration = Duration::from_millis(250);
/// A connection that brings nothing while the server's log grows is given up after this long.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a graceful end of the stream may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The reader of one database's stream.
#[derive(Debug)]
pub struct Source {
    settings: Settings,
    status: Arc<Status>,
}

/// How far the stream has been handed on, and in which history.
#[derive(Clone, Copy, Debug)]
struct Progress {
    epoch: u64,
    delivered: Lsn,
}

enum Ended {
    /// We were asked to stop.
    Stopped,
    /// The connection is gone; what it was, in words.
    Lost(String),
    /// The slot can never be read again.
    SlotUnusable(String),
}

impl Source {
    /// Checks the server and makes the publication. A server that does not answer is no error: it
    /// is waited for once the source runs.
    pub async fn new(settings: Settings) -> Result<Self, SetupError> {
        match prepare(&settings).await {
            Err(error @ SetupError::Wrong(_)) => return Err(error),
            Err(error) => tracing::warn!(%error, "waiting for the database"),
            Ok(_) => {}
        }
        Ok(Source { settings, status: Arc::default() })
    }

    /// How it stands.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Reads on a thread of its own until `stop`. `sink` is called there, in the stream's order; the
    /// connection is kept alive also while it is busy, but nothing more is read.
    pub fn spawn(
        self,
        marks: Arc<Marks>,
        stop: CancellationToken,
        sink: impl FnMut(Event) + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("replication".to_owned())
            .spawn(move || runtime.block_on(self.run(&marks, &stop, sink)))
    }

    async fn run(self, marks: &Marks, stop: &CancellationToken, mut sink: impl FnMut(Event)) {
        let mut progress = None;
        let mut backoff = BACKOFF.0;
        let mut outage = false;
        while !stop.is_cancelled() {
            let attached = tokio::select! {
                attached = self.attach(progress) => attached,
                () = stop.cancelled() => break,
            };
            let reason = match attached {
                Ok(attachment) => {
                    if std::mem::take(&mut outage) {
                        tracing::info!(slot = attachment.slot, "the stream is back");
                    }
                    backoff = BACKOFF.0;
                    match self.read(attachment, &mut progress, marks, stop, &mut sink).await {
                        Ended::Stopped => break,
                        Ended::Lost(reason) => reason,
                        Ended::SlotUnusable(reason) => {
                            self.discard_slot().await;
                            reason
                        }
                    }
                }
                Err(error) => error.to_string(),
            };
            // Once per outage, not per try.
            if !std::mem::replace(&mut outage, true) {
                tracing::warn!(reason, "the stream is lost; connecting anew");
            }
            self.status.detach(reason);
            tokio::select! {
                () = tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = stop.cancelled() => break,
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        self.status.detach("stopped".to_owned());
    }

    async fn attach(&self, progress: Option<Progress>) -> Result<Attachment, AttachError> {
        let server = prepare(&self.settings).await?;
        attach(&self.settings, server, progress.map_or(Lsn(0), |progress| progress.delivered)).await
    }

    /// A slot that is older than its publication can decode nothing for good.
    async fn discard_slot(&self) {
        if let Ok(mut sql) = connect(&self.settings).await {
            let _ = drop_named(&mut sql, &self.settings.slot).await;
        }
    }

    async fn read(
        &self,
        attachment: Attachment,
        progress: &mut Option<Progress>,
        marks: &Marks,
        stop: &CancellationToken,
        sink: &mut impl FnMut(Event),
    ) -> Ended {
        let Attachment { mut client, slot, permanent, start, epoch, server_lsn, safe_bytes } =
            attachment;
        tracing::info!(slot, permanent, "the stream is attached");
        let from = begin(&start, epoch, server_lsn, *progress, sink, start_past(&start));
        let mut assembler = Assembler::new(from, self.settings.max_tx_bytes);
        *progress = Some(Progress { epoch, delivered: from });
        let mut feedback = if permanent {
            Feedback::trailing(self.settings.trail, safe_bytes)
        } else {
            Feedback::at_once()
        };
        self.status.attach(&slot);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let _ = tokio::time::timeout(GOODBYE, client.shutdown()).await;
                    return Ended::Stopped;
                }
                _ = tick.tick() => {
                    let confirmed = feedback.confirm(Instant::now(), assembler.delivered(), marks.settled());
                    client.update_applied_lsn(pgwire_replication::Lsn::from_u64(confirmed.0));
                    if heard.elapsed() > SILENCE && marks.server() > assembler.delivered() {
                        client.abort();
                        return Ended::Lost("the connection is silent while the server's log grows".into());
                    }
                    continue;
                }
                event = client.recv() => event,
            };
            heard = Instant::now();
            match event {
                Ok(Some(event)) => {
                    // We report every second, so a server that asks for a report is shutting down
                    // and waits until everything that it sent is confirmed.
                    let asked =
                        matches!(event, ReplicationEvent::KeepAlive { reply_requested: true, .. });
                    match assembler.take(event) {
                        Ok(Some(event)) => sink(event),
                        Ok(None) => {}
                        Err(error) => {
                            client.abort();
                            return Ended::Lost(format!("unreadable message: {error}"));
                        }
                    }
                    *progress = Some(Progress { epoch, delivered: assembler.delivered() });
                    if asked {
                        let received = pgwire_replication::Lsn::from_u64(assembler.delivered().0);
                        client.update_applied_lsn(received);
                    }
                }
                Ok(None) => return Ended::Lost("the server ended the stream".into()),
                // An undefined object: the publication did not exist where the slot stands.
                Err(error) if permanent && sqlstate(&error) == Some("42704") => {
                    return Ended::SlotUnusable(error.to_string());
                }
                Err(error) => return Ended::Lost(error.to_string()),
            }
        }
    }
}

fn start_past(start: &Start) -> Option<crate::postgres::Snapshot> {
    match start {
        Start::Created { past, .. } => Some(past.clone()),
        Start::Resumed { .. } => None,
    }
}

/// Tells the sink whether the stream goes on or starts anew, and gives where it begins.
fn begin(
    start: &Start,
    epoch: u64,
    server_lsn: Lsn,
    progress: Option<Progress>,
    sink: &mut impl FnMut(Event),
    past: Option<crate::postgres::Snapshot>,
) -> Lsn {
    let floor = match start {
        Start::Created { floor, .. } => *floor,
        Start::Resumed { confirmed } => *confirmed,
    };
    if let (Some(progress), Start::Resumed { .. }) = (progress, start) {
        let same_history = progress.epoch == epoch && server_lsn >= progress.delivered;
        if same_history && floor <= progress.delivered {
            sink(Event::Resumed { server: server_lsn });
            return progress.delivered;
        }
    }
    sink(Event::Reset(Reset { epoch, floor, server: server_lsn, past }));
    floor
}
