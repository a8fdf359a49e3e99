//! What an answer that lasts rests on, and how whoever gives it is told that it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Good until it is ended, once and for all. A clone is the same lease.
///
/// Who ends it leaves a code that says why; it means something to them alone.
#[derive(Clone, Debug, Default)]
pub struct Lease(Arc<AtomicU8>);

impl Lease {
    /// Whether it was ended, and the code that was left.
    pub fn over(&self) -> Option<u8> {
        match self.0.load(Ordering::Acquire) {
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
        let _ = self.0.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }
}
