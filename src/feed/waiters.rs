//! Who waits on which topic.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::topic::Topic;

/// The wake lists. A topic that nobody waits on takes no memory.
#[derive(Debug, Default)]
pub struct Waiters {
    topics: DashMap<Topic, Waited>,
}

#[derive(Debug)]
struct Waited {
    waiting: usize,
    wake: Arc<Notify>,
}

/// A place on a topic's wake list, given up when dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    topic: Topic,
    wake: Arc<Notify>,
}

impl Waiters {
    /// Takes a place on the topic's list.
    pub fn join(self: &Arc<Self>, topic: Topic) -> Waiter {
        let mut waited =
            self.topics.entry(topic).or_insert_with(|| Waited { waiting: 0, wake: Arc::default() });
        waited.waiting += 1;
        Waiter { waiters: Arc::clone(self), topic, wake: Arc::clone(&waited.wake) }
    }

    /// Wakes everybody on the topic's list.
    pub fn wake(&self, topic: Topic) {
        // The lock on the map's shard is given back before the wakes, which may be many.
        let wake = self.topics.get(&topic).map(|waited| Arc::clone(&waited.wake));
        if let Some(wake) = wake {
            wake.notify_waiters();
        }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.topics.iter().map(|waited| Arc::clone(&waited.wake)).collect();
        all.iter().for_each(|wake| wake.notify_waiters());
    }

    /// How many topics are waited on.
    pub fn len(&self) -> usize {
        self.topics.len()
    }
}

impl Waiter {
    /// Ends at the first wake after this call, also if that comes before it is first polled. So:
    /// call this, then look for news, then await it.
    pub fn woken(&self) -> Notified<'_> {
        self.wake.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.topics.remove_if_mut(&self.topic, |_, waited| {
            waited.waiting -= 1;
            waited.waiting == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::topic::Topics;
    use super::*;

    #[tokio::test]
    async fn a_wake_between_asking_and_awaiting_is_not_lost() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().run("env", "run");
        let waiter = waiters.join(topic);
        let woken = waiter.woken();
        waiters.wake(topic);
        woken.await;
    }

    #[test]
    fn the_last_to_leave_removes_the_list() {
        let waiters = Arc::new(Waiters::default());
        let topic = Topics::default().run("env", "run");
        let (a, b) = (waiters.join(topic), waiters.join(topic));
        drop(a);
        assert_eq!(waiters.len(), 1);
        drop(b);
        assert_eq!(waiters.len(), 0);
    }
}
