//! One subscriber, whatever carries its polls: what it has seen, and what it does with an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::answer::{Head, rows};
use crate::layout::Target;
use crate::ledger::{Answer, Ledger};
use crate::poll::Cursor;

/// How often a subscriber connects anew or comes again after a refusal before it gives up.
const TRIES: u32 = 200;
/// How long it waits before it does.
pub const PAUSE: Duration = Duration::from_millis(100);
/// How an answer ends that brings a client up to date.
pub const UP_TO_DATE: &[u8] = br#"{"headers":{"control":"up-to-date"}}]"#;

/// What all subscribers of a trial share.
pub struct Crowd {
    /// The server.
    pub address: SocketAddr,
    /// Where deliveries are entered.
    pub ledger: Arc<Ledger>,
    /// How many may be on their way to their first live poll at once.
    pub admission: Semaphore,
    /// How many runs each must have seen by then, at least.
    pub runs: usize,
}

/// What to do after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll again.
    Poll,
    /// Wait for [`PAUSE`] before that.
    Pause,
}

/// A subscriber's place in its feed.
pub struct Subscriber<'a> {
    /// What it asks for.
    pub target: Target,
    /// What its next poll says.
    pub cursor: Cursor,
    crowd: &'a Crowd,
    /// The runs that it has seen, sorted, with the version of each.
    seen: Vec<(u32, u64)>,
    tries: u32,
    /// Held until the first live poll is out.
    admitted: Option<SemaphorePermit<'a>>,
}

impl<'a> Subscriber<'a> {
    /// Waits for admission, so that a server is asked by no more at once than the trial wants.
    pub async fn admitted(crowd: &'a Crowd, target: Target) -> Result<Subscriber<'a>> {
        let admitted = crowd.admission.acquire().await.context("admission closed")?;
        Ok(Subscriber { admitted: Some(admitted), ..Subscriber::new(crowd, target) })
    }

    fn new(crowd: &'a Crowd, target: Target) -> Subscriber<'a> {
        let cursor = Cursor::start();
        Subscriber { target, cursor, crowd, seen: Vec::new(), tries: 0, admitted: None }
    }

    /// A poll has been sent.
    pub fn sent(&mut self) {
        if self.cursor.live && self.admitted.take().is_some() {
            self.crowd.ledger.is_live();
        }
    }

    /// A whole answer has been read. An error is a reason to give up.
    pub fn take(&mut self, head: &Head, body: &[u8]) -> Result<Next> {
        match head.status {
            200 => {
                self.tries = 0;
                self.enter(body);
                self.cursor.follow(head);
                // Once up to date a client stays so until it is told to start over.
                self.cursor.live |= body.ends_with(UP_TO_DATE);
                let (seen, runs) = (self.seen.len(), self.crowd.runs);
                ensure!(
                    !self.cursor.live || seen >= runs,
                    "a list of {seen} runs instead of {runs}"
                );
                return Ok(Next::Poll);
            }
            409 => {
                self.cursor.restart(head);
                self.crowd.ledger.fault(|faults| faults.refetches += 1);
            }
            429 | 503 => self.crowd.ledger.fault(|faults| faults.refusals += 1),
            status => {
                let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
                bail!("status {status}: {text}");
            }
        }
        self.try_again(|| format!("status {}", head.status))?;
        Ok(Next::Pause)
    }

    /// The connection ended before the answer did, or was not to be had.
    pub fn disconnected(&mut self) -> Result<()> {
        self.crowd.ledger.fault(|faults| faults.disconnects += 1);
        self.try_again(|| "no connection".to_owned())
    }

    fn try_again(&mut self, what: impl FnOnce() -> String) -> Result<()> {
        self.tries += 1;
        ensure!(self.tries <= TRIES, "{TRIES} times {}", what());
        Ok(())
    }

    fn enter(&mut self, body: &[u8]) {
        let answer = if self.cursor.live { Answer::Live } else { Answer::Snapshot };
        let now = Instant::now();
        let mut any = false;
        for (run, version) in rows(body) {
            any = true;
            match self.seen.binary_search_by_key(&run, |(run, _)| *run) {
                Ok(at) => {
                    let last = Some(self.seen[at].1);
                    self.seen[at].1 = self.crowd.ledger.enter(answer, run, version, last, now);
                }
                Err(at) => {
                    // A run that comes into a list later is news; a snapshot is not.
                    let last = (answer == Answer::Live).then(|| version.saturating_sub(1));
                    let version = self.crowd.ledger.enter(answer, run, version, last, now);
                    self.seen.insert(at, (run, version));
                }
            }
        }
        if !any && answer == Answer::Live {
            self.crowd.ledger.held_out();
        }
    }
}

/// Enters why a subscriber gave up, if it did.
pub fn conclude(ledger: &Ledger, result: Result<()>) {
    if let Err(error) = result {
        ledger.fault(|faults| {
            faults.failed += 1;
            faults.first_failure.get_or_insert_with(|| format!("{error:#}"));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Framing;
    use crate::runs;

    fn head(status: u16) -> Head<'static> {
        Head {
            status,
            body_start: 0,
            framing: Framing::Length(0),
            handle: Some(b"h"),
            offset: Some(b"1_0"),
            cursor: None,
        }
    }

    fn body(changes: &[(usize, u64)], end: &str) -> Vec<u8> {
        let rows = changes.iter().map(|(run, version)| {
            let id = runs::internal_id(*run);
            format!(r#"{{"key":"\"public\".\"TaskRun\"/\"{id}\"","value":"{{\"v\":{version}}}"}},"#)
        });
        format!("[{}{end}", rows.collect::<String>()).into_bytes()
    }

    #[tokio::test]
    async fn every_run_of_a_list_is_followed_by_itself() {
        let ledger = Ledger::new();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let admission = Semaphore::new(1);
        let crowd = Crowd { address, ledger: Arc::clone(&ledger), admission, runs: 2 };
        let mut subscriber = Subscriber::admitted(&crowd, Target::tag(0)).await.unwrap();
        let end = std::str::from_utf8(UP_TO_DATE).unwrap();

        let chunk = body(&[(3, 10)], r#"{"headers":{}}]"#);
        assert_eq!(subscriber.take(&head(200), &chunk).unwrap(), Next::Poll);
        assert!(!subscriber.cursor.live, "a chunk that others follow is not the end");
        subscriber.take(&head(200), &body(&[(1, 20)], end)).unwrap();
        assert!(subscriber.cursor.live);
        subscriber.take(&head(200), &body(&[(1, 21), (3, 11)], end)).unwrap();
        subscriber.take(&head(200), &body(&[(3, 14), (1, 21)], end)).unwrap();
        subscriber.take(&head(200), &body(&[], end)).unwrap();
        assert_eq!(subscriber.take(&head(409), b"[]").unwrap(), Next::Pause);
        assert!(!subscriber.cursor.live);
        let mut other = Subscriber::new(&crowd, Target::tag(0));
        assert!(other.take(&head(200), &body(&[(3, 14)], end)).is_err(), "a run is missing");
        assert!(subscriber.take(&head(403), b"no").is_err());

        subscriber.take(&head(200), &body(&[(5, 70)], "]")).unwrap();
        assert_eq!(ledger.progress(), 1 + 1 + 3, "what a snapshot brings is no news");
        let faults = ledger.faults();
        assert_eq!((faults.skipped, faults.repeated, faults.refetches), (2, 1, 1));
        assert_eq!(ledger.polls_held_out(), 1);
    }
}
