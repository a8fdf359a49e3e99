//! How the replication stands, for probes and metrics.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Written by the source, read by anybody.
#[derive(Debug, Default)]
pub struct Status {
    attached: AtomicBool,
    slot: Mutex<String>,
    reason: Mutex<Option<String>>,
}

impl Status {
    /// Whether the slot is attached and the stream is read.
    pub fn attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// The slot that is read, or was last; empty before the first.
    pub fn slot(&self) -> String {
        self.slot.lock().clone()
    }

    /// Why the slot is not attached, once that is known.
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    pub(super) fn attach(&self, slot: &str) {
        slot.clone_into(&mut self.slot.lock());
        *self.reason.lock() = None;
        self.attached.store(true, Ordering::Relaxed);
    }

    pub(super) fn detach(&self, reason: String) {
        *self.reason.lock() = Some(reason);
        self.attached.store(false, Ordering::Relaxed);
    }
}
