//! How long a client may take to send the head of a request, apart from how long it may be silent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use pin_project_lite::pin_project;

use super::listen::Peer;

/// The timer that hyper asks for when it begins to wait for a request, and drops when it has one. The
/// wait that hyper has in mind is for silence; once the client has begun to speak, `head` counts.
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
        let deadline = tokio::time::sleep_until(deadline.into());
        Box::pin(HeadSleep { timer: self.clone(), speaks: false, deadline })
    }
}

pin_project! {
    /// Polled whenever what has been read is no whole head.
    struct HeadSleep {
        timer: HeadTimer,
        speaks: bool,
        #[pin]
        deadline: tokio::time::Sleep,
    }
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !*this.speaks && this.timer.peer.heard.load(Ordering::Relaxed) {
            *this.speaks = true;
            let end = tokio::time::Instant::now() + this.timer.head;
            if end < this.deadline.deadline() {
                this.deadline.as_mut().reset(end);
            }
        }
        this.deadline.poll(cx)
    }
}

impl Sleep for HeadSleep {}
