//! Which core runs what, and how many descriptors a process may have.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// Keeps the calling thread, and every thread and process that it starts from now on, on one core.
pub fn pin_this_thread(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core} cannot be named"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("no core {core} here"))
}

/// Runs `start` on a thread that is pinned to `core`, so that the process it starts is born there.
pub fn on_core<T: Send>(core: usize, start: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin_this_thread(core)?;
            start()
        });
        thread.join().unwrap_or_else(|_| anyhow::bail!("the starting thread panicked"))
    })
}

/// Raises the soft limit of descriptors to the hard one, for this process and those it starts.
pub fn allow_all_descriptors() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the descriptor limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the descriptor limit")?;
    Ok(hard)
}
