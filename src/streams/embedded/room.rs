//! Whether there is room on its disk. Appends are refused before there is none, so that what is kept can
//! still be read, and the store need not be closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use crate::streams::store::StoreError;
use crate::telemetry;

/// How often the disk is looked at. What is written meanwhile is little beside what is kept free.
const LOOK: Duration = Duration::from_millis(250);

/// What there is more than the mark when appends are taken again, at most, in bytes.
const MORE: u64 = 64 << 20;

/// Looks at the disk for as long as it lives.
#[derive(Clone)]
pub(super) struct Room {
    full: watch::Receiver<bool>,
    refused: Counter,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Room {
    /// Has been looked at once when it returns. `least` is what appends leave free, in bytes.
    pub fn watch(directory: PathBuf, least: u64) -> Room {
        let (tell, full) = watch::channel(false);
        let bytes = metrics::gauge!(telemetry::STREAM_FREE_BYTES);
        look(&directory, least, &bytes, &tell);
        let task = async move {
            let mut looks = tokio::time::interval(LOOK);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                // It may take as long as the disk does.
                tokio::task::block_in_place(|| look(&directory, least, &bytes, &tell));
            }
        };
        let refused = metrics::counter!(telemetry::LIMIT_REFUSED, "limit" => "stream-disk");
        Room { full, refused, _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(task))) }
    }

    /// Refuses an append while there is none.
    pub fn require(&self) -> Result<(), StoreError> {
        if *self.full.borrow() {
            self.refused.increment(1);
            return Err(StoreError::Full);
        }
        Ok(())
    }

    /// Waits until there is none.
    pub async fn used_up(&self) {
        let mut full = self.full.clone();
        if full.wait_for(|full| *full).await.is_err() {
            // Nobody looks any more: the store is closed, of which others tell.
            std::future::pending().await
        }
    }
}

fn look(directory: &Path, least: u64, bytes: &Gauge, tell: &watch::Sender<bool>) {
    let Some(free) = free(directory) else { return };
    bytes.set(free as f64);
    tell.send_if_modified(|full| {
        let before = std::mem::replace(full, is_full(*full, free, least));
        match (before, *full) {
            (false, true) => {
                tracing::error!(
                    free,
                    least,
                    "the disk of the stream store is full: appends are refused"
                );
            }
            (true, false) => tracing::info!(free, "the disk of the stream store has room again"),
            _ => {}
        }
        before != *full
    });
}

/// What may be used of the disk, in bytes; `None` if it does not say.
fn free(directory: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(directory).ok()?;
    #[allow(clippy::unnecessary_cast, reason = "what they are differs by platform")]
    let (blocks, size) = (disk.blocks_available() as u64, disk.fragment_size() as u64);
    Some(blocks.saturating_mul(size))
}

/// Once full, it is so until there is a little more: otherwise writers would come and go at the mark.
fn is_full(before: bool, free: u64, least: u64) -> bool {
    free < if before { least.saturating_add(MORE.min(least / 16)) } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_below_the_mark_until_there_is_a_little_more() {
        assert!(!is_full(false, 1_600, 1_600) && is_full(false, 1_599, 1_600));
        assert!(is_full(true, 1_699, 1_600) && !is_full(true, 1_700, 1_600));
        let (mark, more) = (1 << 40, MORE);
        assert!(is_full(true, mark + more - 1, mark) && !is_full(true, mark + more, mark));
        assert!(!is_full(false, 0, 0) && !is_full(true, 0, 0));
        assert!(free(&std::env::temp_dir()).is_some_and(|free| free > 0));
    }
}
