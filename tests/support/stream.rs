//! The replication stream alone, without a gateway: a source whose events are collected.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use runwire::postgres::{ConnectionUrl, Lsn};
use runwire::replication::change::{Change, Event, Marks, Reset, Tx};
use runwire::replication::{Settings, Source, Status};
use runwire::runs::columns::Column;
use runwire::runs::tuple::Tuple;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gateway::PATIENCE;

/// The settings that a source has by default, but for the slot's name, which a cluster has once.
pub fn settings(url: &str, slot: &str) -> Settings {
    let url = ConnectionUrl::parse(url).expect("a URL");
    Settings::new(url, slot.to_owned(), "runwire".to_owned())
}

/// A running source.
pub struct Stream {
    /// What the source is told.
    pub marks: Arc<Marks>,
    /// What it says.
    pub status: Arc<Status>,
    events: watch::Receiver<Vec<Event>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts one, and waits until its slot is attached.
    pub async fn start(settings: Settings) -> Stream {
        Stream::start_with(settings, |_| {}).await
    }

    /// Starts one without waiting.
    pub async fn start_unattached(settings: Settings) -> Stream {
        Stream::spawn(settings, |_| {}).await
    }

    /// Starts one whose consumer first does something with each event.
    pub async fn start_with(
        settings: Settings,
        consume: impl FnMut(&Event) + Send + 'static,
    ) -> Stream {
        let stream = Stream::spawn(settings, consume).await;
        stream.until("the slot to be attached", |events| !events.is_empty()).await;
        stream
    }

    async fn spawn(settings: Settings, mut consume: impl FnMut(&Event) + Send + 'static) -> Stream {
        let source = Source::new(settings).await.expect("a server that can be streamed from");
        let (marks, status) = (Marks::new(), source.status());
        let stop = CancellationToken::new();
        let (sink, events) = watch::channel(Vec::new());
        let collect = move |event| {
            consume(&event);
            sink.send_modify(|events| events.push(event));
        };
        let thread = source.spawn(Arc::clone(&marks), stop.clone(), collect).expect("a thread");
        Stream { marks, status, events, stop, thread: Some(thread) }
    }

    /// Waits until the events so far are as wanted.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Event]) -> bool) {
        let mut events = self.events.clone();
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        tokio::select! {
            seen = events.wait_for(|events| holds(events)) => {
                seen.expect("the source to live");
            }
            () = deadline => {
                let status = self.status.reason();
                let events = self.events.borrow();
                let tail = &events[events.len().saturating_sub(5)..];
                panic!("waited in vain for {what}; status {status:?}, last events {tail:?}");
            }
        }
    }

    /// Looks at the events so far.
    pub fn look<R>(&self, look: impl FnOnce(&[Event]) -> R) -> R {
        look(&self.events.borrow())
    }

    /// How far the stream has come.
    pub fn head(&self) -> Lsn {
        self.look(head)
    }

    /// Stops it as a gateway does.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let thread = self.thread.take().expect("not stopped yet");
        let began = Instant::now();
        tokio::task::spawn_blocking(move || thread.join()).await.expect("join").expect("no panic");
        assert!(began.elapsed() < PATIENCE, "the source took {:?} to stop", began.elapsed());
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The transactions among the events.
pub fn transactions(events: &[Event]) -> impl Iterator<Item = &Tx> {
    events.iter().filter_map(|event| match event {
        Event::Tx(tx) => Some(tx),
        _ => None,
    })
}

/// The starts anew among the events.
pub fn resets(events: &[Event]) -> Vec<&Reset> {
    let resets = events.iter().filter_map(|event| match event {
        Event::Reset(reset) => Some(reset),
        _ => None,
    });
    resets.collect()
}

/// The versions of a run in the stream's order.
pub fn versions<'a>(events: &'a [Event], id: &str) -> Vec<&'a Tuple> {
    let changes = transactions(events).flat_map(|tx| &tx.changes);
    changes
        .filter_map(|change| match change {
            Change::RunInserted(new) | Change::RunUpdated { new, .. } => Some(new),
            _ => None,
        })
        .filter(|tuple| tuple.text(Column::Id) == Some(id))
        .collect()
}

/// A run's column in each of its versions.
pub fn texts(events: &[Event], id: &str, column: Column) -> Vec<String> {
    let text = |tuple: &Tuple| tuple.text(column).unwrap_or_default().to_owned();
    versions(events, id).into_iter().map(text).collect()
}

/// How far these events bring the stream.
pub fn head(events: &[Event]) -> Lsn {
    events.iter().fold(Lsn(0), |head, event| match event {
        Event::Tx(tx) => head.max(tx.end_lsn),
        Event::Progress(lsn) => head.max(*lsn),
        Event::Reset(reset) => reset.floor,
        Event::Resumed { .. } => head,
    })
}

/// Fails unless no position is below one before it: not a commit's, not the head's.
pub fn assert_in_order(events: &[Event]) {
    let mut at = Lsn(0);
    for event in events {
        let (begin, end) = match event {
            Event::Tx(tx) => (tx.commit_lsn, tx.end_lsn),
            Event::Progress(lsn) => (*lsn, *lsn),
            Event::Reset(reset) => (reset.floor, reset.floor),
            Event::Resumed { .. } => continue,
        };
        assert!(begin >= at, "{event:?} comes after {at}");
        assert!(end >= begin, "{event:?}");
        at = end;
    }
    let commits: Vec<Lsn> = transactions(events).map(|tx| tx.commit_lsn).collect();
    assert!(commits.is_sorted_by(|a, b| a < b), "strictly rising: {commits:?}");
}
