//! One statement for all who ask before it is sent.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

/// Answers shared by those who asked before the statement was sent; whoever comes while it is under
/// way shares the next.
#[derive(Debug)]
pub(super) struct SharedRead<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    unsent: Mutex<Option<watch::Receiver<Option<T>>>>,
    turn: Semaphore,
}

impl<T: Clone + Send + Sync + 'static> SharedRead<T> {
    pub fn new() -> Self {
        SharedRead(Arc::new(Shared { unsent: Mutex::new(None), turn: Semaphore::new(1) }))
    }

    /// The result of `read`, or of another caller's that has not begun yet. `None` only if the task
    /// that reads is gone, as at the end of the process.
    pub async fn get(&self, read: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let mut answer = self.0.unsent.lock().get_or_insert_with(|| self.start(read)).clone();
        answer.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Reads in a task of its own, so that nobody who goes away takes the others' answer along.
    fn start(&self, read: impl Future<Output = T> + Send + 'static) -> watch::Receiver<Option<T>> {
        let (send, answer) = watch::channel(None);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let _turn = shared.turn.acquire().await;
            *shared.unsent.lock() = None;
            let result = read.await;
            send.send_replace(Some(result));
        });
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_ask_while_one_is_under_way_share_the_next() {
        let shared = Arc::new(SharedRead::new());
        let (begun, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let ask = |number: u32| {
            let (shared, begun, release) = (shared.clone(), begun.clone(), release.clone());
            async move {
                let read = async move {
                    begun.add_permits(1);
                    release.acquire().await.unwrap().forget();
                    number
                };
                shared.get(read).await
            }
        };
        let first = tokio::spawn(ask(1));
        begun.acquire().await.unwrap().forget();
        let (second, third) = (tokio::spawn(ask(2)), tokio::spawn(ask(3)));
        // Both are polled before this task is again: a runtime of one thread goes in turns.
        tokio::task::yield_now().await;
        assert!(shared.0.unsent.lock().is_some());
        first.abort();
        release.add_permits(2);
        assert_eq!(second.await.unwrap(), Some(2));
        assert_eq!(third.await.unwrap(), Some(2));
    }
}
