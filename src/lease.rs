//! What an answer that lasts rests on, and how whoever gives it is told that it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

/// Good until it is ended, once and for all. A clone is the same lease.
///
/// Who ends it leaves a code that says why; it means something to them alone.
#[derive(Clone, Debug, Default)]
pub struct Lease(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    code: AtomicU8,
    ended: Notify,
}

impl Lease {
    /// Whether it was ended, and the code that was left.
    pub fn over(&self) -> Option<u8> {
        match self.0.code.load(Ordering::Acquire) {
            0 => None,
            code => Some(code),
        }
    }

    /// Whether anybody has a clone of it.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Ends it. The first code stays; 0 is none.
    pub fn end(&self, code: u8) {
        debug_assert!(code > 0);
        let _ = self.0.code.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        self.0.ended.notify_waiters();
    }

    /// Returns once it is over.
    pub async fn ended(&self) {
        loop {
            // First listened, then looked: who ends it in between is heard.
            let ended = self.0.ended.notified();
            if self.over().is_some() {
                return;
            }
            ended.await;
        }
    }
}
