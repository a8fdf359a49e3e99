//! What a reader of a v2 stream is sent: S2's own events (`streams-and-sessions.md`, 4.6).

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::batch::Batch;
use super::store::Position;

/// The last event of a stream that ends by itself.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// What one connection has been sent, which its events' ids tell.
#[derive(Debug, Default)]
pub struct Frames {
    records: u64,
    metered: u64,
}

impl Frames {
    /// The pieces of the event for a batch's records from this number on; none if it has none.
    pub fn batch(&mut self, batch: &Batch, from: u64) -> Option<[Bytes; 2]> {
        let part = batch.part(from)?;
        self.records += part.records;
        self.metered += part.metered;
        let (own, shared) = part.data;
        let own = std::str::from_utf8(own.unwrap_or_default()).unwrap_or_default(); // a literal
        let (last, records, metered) = (batch.last(), self.records, self.metered);
        let head = format!("event: batch\nid: {last},{records},{metered}\n{own}");
        Some([Bytes::from(head), shared])
    }
}

/// The event that shows a reader who has everything that the stream lives.
pub fn ping(tail: Position) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let Position { seq_num, timestamp } = tail;
    Bytes::from(format!(
        "event: ping\ndata: {{\"timestamp\":{now},\"tail\":{{\"seq_num\":{seq_num},\"timestamp\":{timestamp}}}}}\n\n"
    ))
}
