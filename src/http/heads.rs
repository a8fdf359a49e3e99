//! How long a client may take to send the head of a request, apart from how long it may be silent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use super::listen::{Patience, Peer};

/// The timer that hyper asks for when it begins to wait for a request, and drops when it has one. The
/// wait that hyper has in mind is for silence; once the client has begun to speak, `head` counts.
///
/// Most requests come whole, so there is a real timer only for one that does not. Silence is noted, and
/// looked after by [`silence`], with one timer for all requests of a connection.
#[derive(Clone, Debug)]
pub struct HeadTimer {
    /// For how long the rest of a head may take.
    pub head: Duration,
    /// Whom we listen to.
    pub peer: Arc<Peer>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.peer.heard.store(false, Ordering::Relaxed);
        *self.peer.silent_until.lock() = Some(deadline);
        Box::pin(HeadSleep { timer: self.clone(), rest: None })
    }
}

/// Polled whenever what has been read is no whole head.
struct HeadSleep {
    timer: HeadTimer,
    /// The end of the head, once it has begun.
    rest: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let HeadSleep { timer, rest } = &mut *self;
        if rest.is_none() && timer.peer.heard.load(Ordering::Relaxed) {
            *rest = Some(Box::pin(tokio::time::sleep(timer.head)));
        }
        match rest {
            Some(rest) => rest.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Drop for HeadSleep {
    fn drop(&mut self) {
        *self.timer.peer.silent_until.lock() = None;
    }
}

impl Sleep for HeadSleep {}

/// Returns when a client has been silent between requests for as long as it may, by `Patience::idle`.
pub async fn silence(peer: &Peer, patience: &Patience) {
    let mut look = Instant::now() + patience.idle;
    loop {
        tokio::time::sleep_until(look.into()).await;
        let now = Instant::now();
        look = match *peer.silent_until.lock() {
            Some(end) if end <= now => return,
            Some(end) => end,
            // It has been asked something. Should it be silent from now on, it may be so until then.
            None => now + patience.idle,
        };
    }
}
