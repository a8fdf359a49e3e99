//! Reads the stream for as long as the process lives: connects, hands on, confirms, and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use pgwire_replication::ReplicationEvent;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::assembler::Assembler;
use super::change::{Event, Marks, Reset};
use super::feedback::Feedback;
use super::session::{AttachError, Attachment, Progress, Start, sqlstate};
use super::setup::{SetupError, connect, prepare};
use super::slot::{attach, drop_named, is_read};
use super::status::Status;
use crate::postgres::Lsn;

/// The first pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lasts for this long is back; one that is lost sooner goes on failing.
const STEADY: Duration = Duration::from_secs(1);
/// How often positions are confirmed and the connection's life is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long a graceful end of the stream may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The reader of one database's stream.
#[derive(Debug)]
pub struct Source {
    settings: Settings,
    status: Arc<Status>,
    /// Whether the publication was missing when the source was made.
    published_now: bool,
}

/// Tries that fail one after the other: told once, and made at growing intervals.
#[derive(Debug, Default)]
struct Outage {
    failures: u32,
}

impl Outage {
    fn is_on(&self) -> bool {
        self.failures > 0
    }

    /// Another try has failed; gives the pause before the next.
    fn failed(&mut self, reason: &str) -> Duration {
        if !self.is_on() {
            tracing::warn!(reason, "the stream is lost; connecting anew");
        }
        let pause = BACKOFF.0.saturating_mul(1 << self.failures.min(16)).min(BACKOFF.1);
        self.failures += 1;
        pause.mul_f64(rand::random_range(0.5..1.0))
    }

    fn over(&mut self, slot: &str) {
        if self.is_on() {
            tracing::info!(slot, "the stream is back");
        }
        self.failures = 0;
    }
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
        let published_now = match prepare(&settings).await {
            Err(error @ SetupError::Wrong(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "waiting for the database");
                false
            }
            Ok(server) => server.published_now,
        };
        Ok(Source { settings, status: Arc::default(), published_now })
    }

    /// How it stands.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Reads on a thread of its own until `stop`. `sink` is called there, in the stream's order, and
    /// must not wait for anybody: between two calls keepalives are answered and positions reported.
    /// A thread between the two was tried and made a change cost 51 instead of 37 µs.
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
        let mut outage = Outage::default();
        while !stop.is_cancelled() {
            let attached = tokio::select! {
                attached = self.attach(progress) => attached,
                () = stop.cancelled() => break,
            };
            let reason = match attached {
                Ok(attachment) => {
                    let read =
                        self.read(attachment, &mut progress, &mut outage, marks, stop, &mut sink);
                    match read.await {
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
            let pause = outage.failed(&reason);
            self.status.detach(reason);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.status.detach("stopped".to_owned());
    }

    async fn attach(&self, progress: Option<Progress>) -> Result<Attachment, AttachError> {
        let mut server = prepare(&self.settings).await?;
        server.published_now |= self.published_now && progress.is_none();
        attach(&self.settings, server, progress).await
    }

    /// What such a slot holds can never be read; what it would have brought is read anew by everybody.
    async fn discard_slot(&self) {
        if let Ok(mut sql) = connect(&self.settings).await {
            let _ = drop_named(&mut sql, &self.settings.slot).await;
        }
    }

    async fn read(
        &self,
        attachment: Attachment,
        progress: &mut Option<Progress>,
        outage: &mut Outage,
        marks: &Marks,
        stop: &CancellationToken,
        sink: &mut impl FnMut(Event),
    ) -> Ended {
        let Attachment { mut client, slot, permanent, start, epoch, server_lsn, safe_bytes } =
            attachment;
        if !outage.is_on() {
            tracing::info!(slot, permanent, "the stream is attached");
        }
        let from = begin(start, epoch, server_lsn, *progress, sink);
        let mut assembler = Assembler::new(from, self.settings.max_tx_bytes);
        *progress = Some(Progress { epoch, delivered: from });
        let mut feedback = if permanent {
            Feedback::trailing(self.settings.trail, safe_bytes)
        } else {
            Feedback::at_once()
        };
        self.status.attach(&slot);
        let began = Instant::now();
        let (mut heard, mut ticked) = (began, began - TICK);
        loop {
            if ticked.elapsed() >= TICK {
                // Under load as well the socket gets its turn, to report and to answer keepalives.
                tokio::task::yield_now().await;
                ticked = Instant::now();
                if began.elapsed() >= STEADY {
                    outage.over(&slot);
                }
                let confirmed = feedback.confirm(ticked, assembler.delivered(), marks.settled());
                client.update_applied_lsn(pgwire_replication::Lsn::from_u64(confirmed.0));
                let behind = marks.server() > assembler.delivered();
                if behind && heard.elapsed() > self.settings.silence {
                    if !is_read(&self.settings, &slot).await {
                        client.abort();
                        let reason = "the connection is silent while the server's log grows";
                        return Ended::Lost(reason.into());
                    }
                    heard = Instant::now();
                }
            }
            if stop.is_cancelled() {
                let _ = tokio::time::timeout(GOODBYE, client.shutdown()).await;
                return Ended::Stopped;
            }
            let event = match client.recv().now_or_never() {
                Some(event) => event,
                None => tokio::select! {
                    () = stop.cancelled() => continue,
                    () = tokio::time::sleep(TICK) => continue,
                    event = client.recv() => event,
                },
            };
            heard = Instant::now();
            match event {
                Ok(Some(event)) => {
                    // We report before it would ask, so a server that asks for a report is shutting down
                    // and waits until everything that it sent is confirmed.
                    let asked =
                        matches!(event, ReplicationEvent::KeepAlive { reply_requested: true, .. });
                    match assembler.take(event) {
                        Ok(Some(event)) => sink(event),
                        Ok(None) => {}
                        Err(error) => {
                            client.abort();
                            // It would come again for as long as the slot stands before it.
                            let reason = format!("unreadable message: {error}");
                            return if permanent {
                                Ended::SlotUnusable(reason)
                            } else {
                                Ended::Lost(reason)
                            };
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

/// Tells the sink whether the stream goes on or starts anew, and gives where it begins.
fn begin(
    start: Start,
    epoch: u64,
    server: Lsn,
    progress: Option<Progress>,
    sink: &mut impl FnMut(Event),
) -> Lsn {
    let (floor, past) = match start {
        Start::Created { floor, past } => (floor, Some(past)),
        Start::Resumed { confirmed } => (confirmed, None),
    };
    if let Some(progress) = progress
        && past.is_none()
        && progress.continues_on(epoch, server)
        && floor <= progress.delivered
    {
        sink(Event::Resumed { server });
        return progress.delivered;
    }
    sink(Event::Reset(Reset { epoch, floor, server, past }));
    floor
}
