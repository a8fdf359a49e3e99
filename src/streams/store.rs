//! Where the records are. Everything above this talks of basins, streams and records alone, so that the
//! store in this process and an S2 elsewhere look the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::batch::Batch;
#[cfg(feature = "embedded")]
use super::embedded::Embedded;
use super::remote::{Remote, RemoteError, RemoteSettings};

/// One stream of a basin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    /// The basin, 8 to 48 characters.
    pub basin: Arc<str>,
    /// The stream's whole name, at most 512 bytes.
    pub name: Arc<str>,
}

impl StreamId {
    /// Whose it is: what comes before the run in its name, or all of it.
    pub(super) fn owner(&self) -> &str {
        self.name.split_once("/runs/").map_or(&*self.name, |(owner, _)| owner)
    }
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The number of the record, from 0 on.
    pub seq_num: u64,
    /// When it was taken in, in milliseconds since 1970.
    pub timestamp: u64,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With this record, or at the end if the stream is not that long.
    At(u64),
    /// With what comes next.
    Latest,
}

/// What a store tells a reader.
#[derive(Clone, Debug)]
pub enum Event {
    /// Records, in order.
    Batch(Arc<Batch>),
    /// The reader has all that there is; the next record will be this one.
    Tail(Position),
    /// The last event of a read that was not to follow: it has shown all that there was.
    End,
}

/// A read under way. It ends with an error, or with [`Event::End`] if it was not to follow; dropping it stops it.
/// The store reads ahead by two batches at most.
pub type Reading = mpsc::Receiver<Result<Event, StoreError>>;

/// The store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there at present, and will be tried again.
    #[error("the stream store is not available: {0}")]
    Unavailable(String),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// It takes nothing more until there is room on its disk.
    #[error("the disk of the stream store is full: it has less than RUNWIRE_STREAM_MIN_FREE left")]
    Full,
}

/// How a store in this process works.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Its directory.
    pub directory: PathBuf,
    /// How long records are collected before they are made durable, and with that seen.
    pub flush: Duration,
    /// What appends leave free of its disk, in bytes.
    pub min_free: u64,
}

/// A store of streams. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// In this process, on local disk.
    #[cfg(feature = "embedded")]
    Embedded(Arc<Embedded>),
    /// An S2 elsewhere.
    Remote(Arc<Remote>),
    /// There is none.
    Absent,
    /// One in memory, of which tests say what it does.
    #[cfg(test)]
    Scripted(Arc<super::scripted::Scripted>),
}

impl Store {
    /// The store of this process, if it is built with one. It opens with its first use.
    #[cfg(feature = "embedded")]
    pub fn embedded(settings: StoreSettings) -> Store {
        Store::Embedded(Arc::new(Embedded::new(settings)))
    }

    /// The store of this process, if it is built with one. It opens with its first use.
    #[cfg(not(feature = "embedded"))]
    pub fn embedded(_: StoreSettings) -> Store {
        Store::Absent
    }

    /// An S2 elsewhere.
    pub fn elsewhere(settings: RemoteSettings) -> Result<Store, RemoteError> {
        Ok(Store::Remote(Arc::new(Remote::new(settings)?)))
    }

    /// What is wrong with it, as far as that is known.
    pub fn trouble(&self) -> Option<String> {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.trouble(),
            Store::Remote(store) => store.trouble(),
            Store::Absent => Some("this program is built without a store".to_owned()),
            #[cfg(test)]
            Store::Scripted(_) => None,
        }
    }

    /// Appends one record without headers, and returns once it is durable.
    pub async fn append(&self, stream: &StreamId, body: Bytes) -> Result<(), StoreError> {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.append(stream, body).await,
            Store::Remote(store) => store.append(stream, body).await,
            Store::Absent => absent(stream, body),
            #[cfg(test)]
            Store::Scripted(_) => absent(stream, body),
        }
    }

    /// Reads a stream, which comes to be if it is not there; `follow` goes on with what is appended.
    pub async fn read(
        &self,
        stream: &StreamId,
        start: Start,
        follow: bool,
    ) -> Result<Reading, StoreError> {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.read(stream, start, follow).await,
            Store::Remote(store) => store.read(stream, start, follow).await,
            Store::Absent => absent(stream, (start, follow)),
            #[cfg(test)]
            Store::Scripted(store) => Ok(store.read(start, follow)),
        }
    }

    /// Answers a request of S2's own routes (`/streams/…`), which must be allowed already.
    pub async fn serve(
        &self,
        basin: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, StoreError> {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.serve(basin, request).await,
            // Writers are sent there, and nobody here stands in between.
            Store::Remote(_) => Err(StoreError::Refused("streams are kept elsewhere".to_owned())),
            Store::Absent => absent(basin, request),
            #[cfg(test)]
            Store::Scripted(_) => absent(basin, request),
        }
    }

    /// Opens a store that was there before, so that it looks after its retention also if nobody asks;
    /// asks one elsewhere whether it answers.
    pub async fn wake(&self) {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.wake().await,
            Store::Remote(store) => store.probe().await,
            Store::Absent => {}
            #[cfg(test)]
            Store::Scripted(_) => {}
        }
    }

    /// Closes it for good: what is under way ends with errors.
    pub async fn close(&self) {
        match self {
            #[cfg(feature = "embedded")]
            Store::Embedded(store) => store.close().await,
            Store::Remote(_) | Store::Absent => {}
            #[cfg(test)]
            Store::Scripted(_) => {}
        }
    }
}

fn absent<A, B, T>(_: A, _: B) -> Result<T, StoreError> {
    Err(StoreError::Unavailable("this program is built without one".to_owned()))
}
