//! How fast the decoder and the window take in a recorded stream while nobody listens.

use std::time::Duration;

use anyhow::Result;
use runwire::feed::{Feed, Limits};
use runwire::postgres::{Lsn, Snapshot};
use runwire::replication::change::{Event, Reset, Tx};
use runwire::replication::pgoutput::Decoder;

use crate::process::cpu;
use crate::recorded::{Recorded, Transaction};

/// Taken in before the clock starts, so that the window is full and evicts as it does in the long run.
const WARM_UP: usize = 300_000;
/// Changes between two notes of a finished query, of which Runwire makes one a second.
const SETTLE_EVERY: usize = 50_000;
/// The defaults of `RUNWIRE_WINDOW` and `RUNWIRE_WINDOW_BYTES`.
const LIMITS: Limits = Limits { age: Duration::from_secs(120), bodies: 1 << 20, bytes: 256 << 20 };

/// What was found.
pub struct Intake {
    /// How many changes.
    pub changes: usize,
    /// How many bytes their messages had.
    pub bytes: usize,
    /// CPU time for decoding alone.
    pub decoding: Duration,
    /// CPU time for decoding and taking in.
    pub whole: Duration,
}

/// Takes in `changes` changes on the calling thread, while the process does nothing else: its CPU time
/// is taken, so that a neighbour on the same core does not count.
pub fn measure(changes: usize) -> Result<Intake> {
    let recorded = Recorded::new();
    let own = std::process::id();

    let mut decoder = Decoder::default();
    decoder.decode(recorded.relation.clone(), &mut Vec::new())?;
    let mut bytes = 0;
    let before = cpu(own)?;
    for transaction in recorded.transactions().take(changes) {
        bytes += transaction.update.len();
        std::hint::black_box(decode(&mut decoder, transaction)?);
    }
    let decoding = cpu(own)?.saturating_sub(before);

    let feed = Feed::new(LIMITS);
    let xid = recorded.transactions().next().map_or(0, |first| u64::from(first.xid));
    feed.apply(Event::Reset(Reset { epoch: 1, floor: Lsn(0), server: Lsn(0), past: None }));
    let mut before = cpu(own)?;
    for (number, transaction) in recorded.transactions().take(WARM_UP + changes).enumerate() {
        if number == WARM_UP {
            before = cpu(own)?;
        }
        feed.apply(Event::Tx(decode(&mut decoder, transaction)?));
        if number % SETTLE_EVERY == 0 {
            // A query that shows everything up to here.
            let next = xid + number as u64 + 1;
            feed.settle(Snapshot { xmin: next, xmax: next, xip: Vec::new() });
        }
    }
    Ok(Intake { changes, bytes, decoding, whole: cpu(own)?.saturating_sub(before) })
}

fn decode(decoder: &mut Decoder, transaction: Transaction) -> Result<Tx> {
    let mut changes = Vec::with_capacity(1);
    decoder.decode(transaction.update, &mut changes)?;
    Ok(Tx {
        xid: transaction.xid,
        commit_lsn: Lsn(transaction.commit_lsn),
        end_lsn: Lsn(transaction.end_lsn),
        commit_time: transaction.commit_time,
        changes,
    })
}
