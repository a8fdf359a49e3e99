//! Clients on a thread of their own, which gives way to everybody else on its core: where what is to be
//! seen is how the server treats others, not how busy the clients are.

use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use tokio::sync::oneshot;

/// They end when this is dropped.
pub struct Aside(Option<oneshot::Sender<()>>, Option<JoinHandle<Result<()>>>);

impl Aside {
    /// Runs this there; it is to end when it is told to stop.
    pub fn start<F>(work: F) -> Result<Aside>
    where
        F: AsyncFnOnce(oneshot::Receiver<()>) + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            let own = nix::unistd::gettid().to_string();
            let renice = Command::new("renice").args(["-n", "19", "-p", &own]).output();
            ensure!(renice.is_ok_and(|done| done.status.success()), "renice failed");
            runtime.block_on(work(stopped));
            Ok(())
        });
        Ok(Aside(Some(stop), Some(thread)))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        drop(self.0.take());
        if let Some(Ok(Err(error))) = self.1.take().map(JoinHandle::join) {
            eprintln!("the thread of those aside: {error:#}");
        }
    }
}
