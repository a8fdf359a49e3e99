//! How long a client may take to send the head of a request, apart from how long it may be silent.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use super::listen::{Patience, Peer};

/// The timer that hyper asks for when it begins to wait for a request, and drops when it has one. The
/// wait that hyper has in mind is for silence; once the client has begun to speak, `head` counts.
///
/// Most requests come whole, so there is a real timer only for one that does not. Silence is noted, and
/// looked after by [`silence`], with one timer for all requests that hyper waits for.
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
        self.peer.silence.begin(deadline);
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
        self.timer.peer.silence.end();
    }
}

impl Sleep for HeadSleep {}

/// Until when a client may say nothing, while a request is waited for. It is written twice for each
/// request and hardly ever read, so it is no lock.
#[derive(Debug, Default)]
pub struct Silence {
    /// In milliseconds since the start; 0 while nothing is waited for.
    until: AtomicU64,
}

/// What times are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Silence {
    fn begin(&self, until: Instant) {
        // Rounded up, and never 0.
        let until = until.saturating_duration_since(*START).as_millis() as u64 + 1;
        self.until.store(until, Ordering::Relaxed);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Relaxed);
    }

    fn until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Relaxed);
        (until > 0).then(|| *START + Duration::from_millis(until))
    }
}

/// Returns when a client has been silent between requests for as long as it may, by `Patience::idle`.
pub async fn silence(peer: &Peer, patience: &Patience) {
    let mut look = Instant::now() + patience.idle;
    loop {
        tokio::time::sleep_until(look.into()).await;
        let now = Instant::now();
        look = match peer.silence.until() {
            Some(end) if end <= now => return,
            Some(end) => end,
            // It has been asked something. Should it be silent from now on, it may be so until then.
            None => now + patience.idle,
        };
    }
}
