//! Turns of those who catch up, so that whoever waits for the next chunk is never behind more than one
//! page of theirs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::limits::queue::{FairQueue, Pushed, Ticket};

/// How many may wait. Who finds no room goes on without a turn.
const WAITING: usize = 100_000;
/// A worker that never runs out of other work hands on a turn this often all the same.
const AT_LEAST: Duration = Duration::from_millis(5);

/// Hands out turns one by one, fair by who owns the stream. A turn is leave to send one page, and nothing
/// that is held: a client that takes nothing keeps nobody else waiting. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    waiting: FairQueue<oneshot::Sender<()>>,
    /// Whether somebody hands them out.
    turning: bool,
}

impl Default for State {
    fn default() -> State {
        State { waiting: FairQueue::new(WAITING), turning: false }
    }
}

impl Turns {
    /// Waits for this owner's turn.
    pub async fn turn(&self, owner: &str) {
        let (send, receive) = oneshot::channel();
        let ticket = {
            let mut state = self.0.lock();
            let ticket = match state.waiting.push(owner, send) {
                Pushed::In(ticket) | Pushed::InsteadOf(ticket, _) => ticket,
                Pushed::Refused(_) => return,
            };
            if !std::mem::replace(&mut state.turning, true) {
                tokio::spawn(hand_out(self.clone()));
            }
            ticket
        };
        let _waits = Waits { turns: self, owner, ticket };
        // An error is that of somebody whose place was needed, who goes on without.
        let _ = receive.await;
    }
}

/// A place in the queue, given up when the reader goes away.
struct Waits<'a> {
    turns: &'a Turns,
    owner: &'a str,
    ticket: Ticket,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.turns.0.lock().waiting.remove(self.owner, self.ticket);
    }
}

/// Goes on for as long as somebody waits.
async fn hand_out(turns: Turns) {
    loop {
        let next = {
            let mut state = turns.0.lock();
            let next = state.waiting.pop();
            state.turning = next.is_some();
            next
        };
        let Some((_, _, turn)) = next else { return };
        if turn.send(()).is_ok() {
            behind_all_others().await;
        }
    }
}

/// Waits until this worker has run all that can run, what the sockets have brought included. The reader
/// that was woken just before is part of it.
async fn behind_all_others() {
    // Other threads first: the store's may have what somebody waits for, and this one is never idle while
    // many catch up.
    std::thread::yield_now();
    tokio::select! {
        biased;
        () = tokio::task::yield_now() => {}
        () = tokio::time::sleep(AT_LEAST) => {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn taken(order: &Mutex<Vec<&'static str>>) -> Vec<&'static str> {
        order.lock().clone()
    }

    #[tokio::test]
    async fn owners_take_turns_however_many_readers_each_has() {
        let (turns, order) = (Turns::default(), Mutex::new(Vec::new()));
        let owners = ["many", "many", "many", "many", "few", "many", "few"];
        join_all(owners.map(|owner| {
            let (turns, order) = (&turns, &order);
            async move {
                turns.turn(owner).await;
                order.lock().push(owner);
            }
        }))
        .await;
        let expected = ["many", "few", "many", "few", "many", "many", "many"];
        assert_eq!(taken(&order), expected);
    }

    #[tokio::test]
    async fn between_two_turns_all_run_that_can() {
        let (turns, order) = (Turns::default(), Arc::new(Mutex::new(Vec::new())));
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let live = {
            let order = Arc::clone(&order);
            tokio::spawn(async move {
                while receive.recv().await.is_some() {
                    order.lock().push("live");
                }
            })
        };
        let behind: Vec<_> = (0..3)
            .map(|_| {
                let (turns, order, send) = (turns.clone(), Arc::clone(&order), send.clone());
                tokio::spawn(async move {
                    for _ in 0..3 {
                        turns.turn("a").await;
                        order.lock().push("turn");
                        send.send(()).unwrap();
                    }
                })
            })
            .collect();
        join_all(behind).await;
        drop(send);
        live.await.unwrap();
        assert_eq!(taken(&order), ["turn", "live"].repeat(9));
    }

    #[tokio::test]
    async fn a_turn_that_is_not_used_is_nobody_else_s_loss() {
        let turns = Turns::default();
        let mut stuck = Box::pin(turns.turn("a"));
        assert!(futures_util::poll!(&mut stuck).is_pending());
        let gone = Box::pin(turns.turn("a"));
        drop(gone);
        let others = join_all((0..10).map(|_| turns.turn("a")));
        tokio::time::timeout(Duration::from_secs(20), others).await.expect("they have theirs");
    }

    #[tokio::test]
    async fn a_worker_that_never_rests_hands_them_on_all_the_same() {
        let turns = Turns::default();
        let busy = tokio::spawn(async {
            loop {
                // Unlike `yield_now`: it can run again at once.
                let mut again = true;
                std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    match std::mem::take(&mut again) {
                        true => std::task::Poll::Pending,
                        false => std::task::Poll::Ready(()),
                    }
                })
                .await;
            }
        });
        let others = join_all((0..10).map(|_| turns.turn("a")));
        tokio::time::timeout(Duration::from_secs(20), others).await.expect("they have theirs");
        busy.abort();
    }
}
