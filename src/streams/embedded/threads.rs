//! The threads that the store runs on.

use thread_priority::{ThreadPriority, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};

use super::FILES;

/// Threads for the files of those who catch up.
const PAST_FILES: usize = 4;

/// Two kinds: appends, tails and all upkeep run on some, and what those need who catch up on others, to
/// which the system gives what is left.
#[derive(Debug)]
pub(super) struct Threads {
    present: Runtime,
    past: Runtime,
}

impl Threads {
    /// Starts them.
    pub fn start() -> std::io::Result<Threads> {
        // Half of the cores: the run feeds have the other half for themselves, whatever happens here.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut present = Builder::new_multi_thread();
        present.worker_threads((cores / 2).max(1)).max_blocking_threads(FILES);
        let mut past = Builder::new_multi_thread();
        past.worker_threads(1).max_blocking_threads(PAST_FILES).on_thread_start(give_way);
        let present = present.thread_name("streams").enable_all().build()?;
        match past.thread_name("streams-past").enable_all().build() {
            Ok(past) => Ok(Threads { present, past }),
            Err(error) => {
                // Dropped here it would be waited for, which no task may.
                present.shutdown_background();
                Err(error)
            }
        }
    }

    /// Those for all else.
    pub fn present(&self) -> &Handle {
        self.present.handle()
    }

    /// Those for what is read by who catches up.
    pub fn past(&self) -> &Handle {
        self.past.handle()
    }

    /// Ends them, and with them all that still runs on them. Not waited for: a file may be stuck.
    pub fn end(self) {
        self.past.shutdown_background();
        self.present.shutdown_background();
    }
}

/// Makes the calling thread one that gives way to all others.
fn give_way() {
    // Elsewhere it would be the whole process.
    if cfg!(target_os = "linux")
        && let Err(error) = set_current_thread_priority(ThreadPriority::Min)
    {
        // Then the system shares its cores among them, as it does elsewhere.
        tracing::debug!(?error, "a thread has no lower priority");
    }
}
