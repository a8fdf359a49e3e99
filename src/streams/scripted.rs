//! A store in memory, for tests: it is written, trimmed, and broken when they say so.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::batch::{Batch, BatchBuilder};
use super::store::{Event, Position, Reading, Start, StoreError};

/// One stream, whatever it is called.
#[derive(Debug)]
pub struct Scripted {
    state: watch::Sender<Written>,
    /// Records of a batch of a read that does not follow.
    page: usize,
    /// Bytes of a record.
    size: usize,
    asked: Mutex<Asked>,
}

/// What is in the stream: everything from `trimmed` up to `next`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub trimmed: u64,
    pub next: u64,
    broken: bool,
    /// Reads that do not follow end without a word.
    cut: bool,
    /// Such reads that began in an earlier one fail.
    era: u64,
}

/// What it was asked for by those who are behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub reads: usize,
    pub pages: usize,
}

impl Scripted {
    pub fn new(page: usize, size: usize) -> Arc<Scripted> {
        let state = watch::channel(Written::default()).0;
        Arc::new(Scripted { state, page, size, asked: Mutex::default() })
    }

    pub fn append(&self, records: u64) {
        self.state.send_modify(|written| written.next += records);
    }

    /// Takes away what is before this number.
    pub fn trim(&self, before: u64) {
        self.state.send_modify(|w| w.trimmed = w.trimmed.max(before.min(w.next)));
    }

    /// Answers nothing but errors from now on.
    pub fn fail(&self) {
        self.state.send_modify(|written| written.broken = true);
    }

    /// Has reads that do not follow end before they have shown what there is.
    pub fn cut(&self) {
        self.state.send_modify(|written| written.cut = true);
    }

    /// Has those fail that are under way.
    pub fn fail_open_reads(&self) {
        self.state.send_modify(|written| written.era += 1);
    }

    pub fn written(&self) -> Written {
        *self.state.borrow()
    }

    pub fn asked(&self) -> Asked {
        *self.asked.lock()
    }

    /// See [`super::Store::read`].
    pub fn read(self: &Arc<Scripted>, start: Start, follow: bool) -> Reading {
        let (send, receive) = mpsc::channel(2);
        let mut state = self.state.subscribe();
        let Written { next, era, .. } = *state.borrow();
        let mut at = match start {
            Start::At(seq_num) => seq_num.min(next),
            Start::Latest => next,
        };
        if !follow {
            self.asked.lock().reads += 1;
        }
        let store = Arc::clone(self);
        tokio::spawn(async move {
            if follow && send.send(Ok(Event::Tail(position(at)))).await.is_err() {
                return;
            }
            loop {
                let written = *state.borrow_and_update();
                if written.cut && !follow {
                    return;
                }
                let event = if written.broken || (!follow && written.era != era) {
                    Err(StoreError::Unavailable("it is broken".to_owned()))
                } else if at < written.next {
                    let first = if follow { at } else { at.max(written.trimmed) };
                    let last = if follow { written.next } else { first + store.page as u64 };
                    let last = last.min(written.next);
                    at = last.max(at + 1);
                    if first == last {
                        continue;
                    }
                    if !follow {
                        store.asked.lock().pages += 1;
                    }
                    Ok(Event::Batch(Arc::new(store.batch(first, last, follow))))
                } else if !follow {
                    let _ = send.send(Ok(Event::End)).await;
                    return;
                } else {
                    tokio::select! {
                        changed = state.changed() => if changed.is_err() { return },
                        () = send.closed() => return,
                    }
                    continue;
                };
                let ends = event.is_err();
                if send.send(event).await.is_err() || ends {
                    return;
                }
            }
        });
        receive
    }

    fn batch(&self, first: u64, end: u64, follow: bool) -> Batch {
        let mut builder = BatchBuilder::new(0, 0);
        for n in first..end {
            let body = format!("{n}:{}", "x".repeat(self.size));
            builder.push(position(n), std::iter::empty(), body.as_bytes(), body.len());
        }
        builder.build(follow.then(|| position(end))).expect("records")
    }
}

fn position(seq_num: u64) -> Position {
    Position { seq_num, timestamp: 0 }
}
