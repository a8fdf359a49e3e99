//! How fast the decoder and the window take in a recorded stream while nobody listens.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use runwire::feed::{Feed, Limits};
use runwire::postgres::{Lsn, Snapshot};
use runwire::replication::change::{Event, Reset, Tx};
use runwire::replication::pgoutput::Decoder;

use crate::bench::Bench;
use crate::cores;
use crate::process::cpu;
use crate::report::Report;
use crate::scenarios::recorded::{Recorded, Transaction};
use crate::statistics::{median, middle_and_range};

/// Taken in before the clock starts, so that the window is full and evicts as it does in the long run.
pub const WARM_UP: usize = 300_000;
/// Changes between two notes of a finished query, of which Runwire makes one a second.
pub const SETTLE_EVERY: usize = 50_000;
/// The defaults of `RUNWIRE_WINDOW` and `RUNWIRE_WINDOW_BYTES`.
pub const LIMITS: Limits =
    Limits { age: Duration::from_secs(120), bodies: 1 << 20, bytes: 256 << 20 };

#[derive(Args)]
pub struct Intake {
    /// Measured changes
    #[arg(long, default_value_t = 1_000_000)]
    changes: usize,
}

impl Intake {
    pub fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let mut found = Vec::new();
        for _ in 0..bench.repeat {
            found.push(cores::on_core(bench.server_core, || measure(self.changes))?);
        }
        report
            .heading("Intake: decoder and window on a recorded stream, one core, nobody listening");
        report.table([
            "part",
            "changes per CPU second (min–max)",
            "µs per change",
            "MB per CPU second",
        ]);
        for (name, time) in [
            ("decoder", (|found| found.decoding) as fn(&Found) -> Duration),
            ("decoder and window, postings included", |found| found.whole),
        ] {
            let rate = |found: &Found| found.changes as f64 / time(found).as_secs_f64();
            let bytes = |found: &Found| found.bytes as f64 / 1e6 / time(found).as_secs_f64();
            report.row([
                name.to_owned(),
                middle_and_range(found.iter().map(rate), 0),
                format!("{:.2}", 1e6 / median(found.iter().map(rate))),
                format!("{:.0}", median(found.iter().map(bytes))),
            ]);
        }
        Ok(())
    }
}

/// What was found.
struct Found {
    /// How many changes.
    changes: usize,
    /// How many bytes their messages had.
    bytes: usize,
    /// CPU time for decoding alone.
    decoding: Duration,
    /// CPU time for decoding and taking in.
    whole: Duration,
}

/// Takes in `changes` changes on the calling thread, while the process does nothing else: its CPU time
/// is taken, so that a neighbour on the same core does not count.
fn measure(changes: usize) -> Result<Found> {
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
    Ok(Found { changes, bytes, decoding, whole: cpu(own)?.saturating_sub(before) })
}

/// Decodes a transaction of one update.
pub fn decode(decoder: &mut Decoder, transaction: Transaction) -> Result<Tx> {
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
