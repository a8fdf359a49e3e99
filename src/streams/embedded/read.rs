//! Reading a stream, and rendering what it holds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use s2_common::basin::BasinName;
use s2_common::config::OptionalStreamConfig;
use s2_common::record::{MeteredSize as _, SequencedRecord, StreamPosition};
use s2_common::stream::{ReadEnd, ReadFrom, ReadSessionOutput, ReadStart, StreamName};
use s2_lite::backend::Backend;
use s2_lite::backend::error::ReadError;
use tokio::sync::mpsc;

use super::{AHEAD, ATTEMPTS, Embedded, names};
use crate::streams::batch::{Batch, BatchBuilder, PAGE};
use crate::streams::store::{Event, Position, Reading, Start, StoreError, StreamId};

impl Embedded {
    /// See [`crate::streams::Store::read`].
    pub async fn read(
        &self,
        stream: &StreamId,
        start: Start,
        follow: bool,
    ) -> Result<Reading, StoreError> {
        let (basin, name) = names(stream)?;
        let opened = self.in_basin(&basin).await?;
        let from = match start {
            Start::At(seq_num) => ReadFrom::SeqNum(seq_num),
            Start::Latest => ReadFrom::TailOffset(0),
        };
        let start = ReadStart { from, clamp: true };
        let end = ReadEnd { wait: (!follow).then_some(Duration::ZERO), ..ReadEnd::default() };
        let (send, receive) = mpsc::channel(AHEAD);
        let threads = if follow { self.handle()? } else { self.past_handle()? };
        // Opened on the threads of all else, as what the store starts with it may be for others too.
        let work = async move {
            let session = open_read(&opened.backend, &basin, &name, start, end).await?;
            // For as long as somebody listens.
            threads.spawn(async move {
                let mut session = std::pin::pin!(session);
                loop {
                    let output = tokio::select! {
                        output = session.next() => output,
                        () = send.closed() => return,
                    };
                    let batch = match output {
                        None => {
                            let _ = send.send(Ok(Event::End)).await;
                            return;
                        }
                        Some(Ok(ReadSessionOutput::Batch(batch))) => batch,
                        Some(Ok(ReadSessionOutput::Heartbeat(tail))) => {
                            if send.send(Ok(Event::Tail(position(tail)))).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        Some(Err(error)) => {
                            let error = StoreError::Unavailable(error.to_string());
                            let _ = send.send(Err(error)).await;
                            return;
                        }
                    };
                    let mut left = &batch.records[..];
                    while let Some(batch) = render(&mut left, batch.tail) {
                        if send.send(Ok(Event::Batch(Arc::new(batch)))).await.is_err() {
                            return;
                        }
                    }
                }
            });
            Ok::<_, ReadError>(())
        };
        let done = self.patiently(work).await?;
        done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(receive)
    }
}

async fn open_read(
    backend: &Backend,
    basin: &BasinName,
    name: &StreamName,
    start: ReadStart,
    end: ReadEnd,
) -> Result<impl futures_util::Stream<Item = Result<ReadSessionOutput, ReadError>> + use<>, ReadError>
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        let config = OptionalStreamConfig::default();
        match backend.open_for_read(basin, name, None, config).await {
            Err(ReadError::TransactionConflict(_)) if attempt < ATTEMPTS => {}
            stream => return stream?.read(start, end).await,
        }
    }
}

fn position(position: StreamPosition) -> Position {
    Position { seq_num: position.seq_num, timestamp: position.timestamp }
}

/// Renders these records: all of a tail's, which came together, and else as many as make a page.
fn render(left: &mut &[SequencedRecord], tail: Option<StreamPosition>) -> Option<Batch> {
    let metered: usize = left.iter().map(|record| record.metered_size()).sum();
    let mut builder = BatchBuilder::new(metered.min(PAGE), left.len());
    while let Some((record, rest)) = left.split_first() {
        *left = rest;
        let (headers, body) = record.inner().clone().into_parts();
        let pairs = headers.iter().map(|header| (&header.name[..], &header.value[..]));
        builder.push(position(*record.position()), pairs, &body, record.metered_size());
        if tail.is_none() && builder.is_page() {
            break;
        }
    }
    builder.build(tail.map(position))
}
