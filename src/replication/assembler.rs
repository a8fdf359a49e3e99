//! From the connection's events to whole transactions: no position twice, none that goes down.

use pgwire_replication::ReplicationEvent;

use super::change::{Change, Event, Tx};
use super::keys::KeyChange;
use super::pgoutput::{DecodeError, Decoder};
use crate::postgres::Lsn;

/// Postgres counts microseconds from 2000, everybody else from 1970.
const EPOCH_OFFSET: i64 = 946_684_800_000_000;

/// More rows of keys in one transaction are not told apart.
const MAX_KEY_CHANGES: usize = 10_000;

/// Collects the changes between Begin and Commit.
#[derive(Debug)]
pub(super) struct Assembler {
    decoder: Decoder,
    open: Option<Open>,
    /// Everything that committed before this has been handed on.
    delivered: Lsn,
    max_tx_bytes: usize,
}

#[derive(Debug)]
struct Open {
    xid: u32,
    commit_time: i64,
    changes: Vec<Change>,
    bytes: usize,
    too_large: bool,
    key_changes: usize,
}

impl Open {
    /// Counts what was appended after `before`, from a message of this size.
    fn count(&mut self, before: usize, size: usize) {
        let keys = self.changes[before..].iter().filter(|c| matches!(c, Change::Key(_))).count();
        if self.changes.len() - before > keys {
            self.bytes += size;
        }
        let told = self.key_changes;
        self.key_changes += keys;
        if keys > 0 && self.key_changes > MAX_KEY_CHANGES {
            // All of them the first time; then those alone that have just come.
            let from = if told > MAX_KEY_CHANGES { before } else { 0 };
            let others = self.changes.split_off(from).into_iter();
            self.changes.extend(others.filter(|change| !matches!(change, Change::Key(_))));
            if from == 0 {
                self.changes.push(Change::Key(KeyChange::Lost));
            }
        }
    }
}

impl Assembler {
    /// Hands on what commits at or after `from`.
    pub fn new(from: Lsn, max_tx_bytes: usize) -> Self {
        Assembler { decoder: Decoder::default(), open: None, delivered: from, max_tx_bytes }
    }

    /// Everything that committed before this has been handed on.
    pub fn delivered(&self) -> Lsn {
        self.delivered
    }

    /// Takes the next event of the connection; gives what has become whole.
    pub fn take(&mut self, event: ReplicationEvent) -> Result<Option<Event>, DecodeError> {
        match event {
            ReplicationEvent::Begin { xid, commit_time_micros, .. } => {
                let commit_time = commit_time_micros + EPOCH_OFFSET;
                self.open = Some(Open {
                    xid,
                    commit_time,
                    changes: Vec::new(),
                    bytes: 0,
                    too_large: false,
                    key_changes: 0,
                });
                Ok(None)
            }
            ReplicationEvent::XLogData { data, .. } => {
                let mut outside = Vec::new();
                let Some(open) = &mut self.open else {
                    // Relation messages alone may come outside of a transaction.
                    self.decoder.decode(data, &mut outside)?;
                    return Ok(None);
                };
                let size = data.len();
                let before = open.changes.len();
                self.decoder.decode(data, &mut open.changes)?;
                open.count(before, size);
                if open.bytes > self.max_tx_bytes {
                    open.changes = Vec::new();
                    open.bytes = 0;
                    open.too_large = true;
                }
                Ok(None)
            }
            ReplicationEvent::Commit { lsn, end_lsn, .. } => {
                Ok(self.commit(lsn.into(), end_lsn.into()))
            }
            // Inside a transaction the server's position is beyond a commit that is not whole yet.
            ReplicationEvent::KeepAlive { wal_end, .. } if self.open.is_none() => {
                Ok(self.advance(wal_end.into()))
            }
            _ => Ok(None),
        }
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Option<Event> {
        let open = self.open.take()?;
        // A slot that is resumed repeats what was not confirmed.
        if commit_lsn < self.delivered {
            return None;
        }
        let mut changes = open.changes;
        if open.too_large {
            tracing::warn!(
                xid = open.xid,
                "a transaction was too large to carry: all clients start again"
            );
            changes = vec![Change::TooLarge];
        }
        if changes.is_empty() {
            return self.advance(end_lsn);
        }
        self.delivered = self.delivered.max(end_lsn);
        let (xid, commit_time) = (open.xid, open.commit_time);
        Some(Event::Tx(Tx { xid, commit_lsn, end_lsn, commit_time, changes }))
    }

    fn advance(&mut self, to: Lsn) -> Option<Event> {
        (to > self.delivered).then(|| {
            self.delivered = to;
            Event::Progress(to)
        })
    }
}

impl From<pgwire_replication::Lsn> for Lsn {
    fn from(lsn: pgwire_replication::Lsn) -> Self {
        Lsn(lsn.as_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(xid: u32, at: u64) -> ReplicationEvent {
        let final_lsn = pgwire_replication::Lsn::from_u64(at);
        ReplicationEvent::Begin { final_lsn, xid, commit_time_micros: 0 }
    }

    fn truncate() -> ReplicationEvent {
        let mut relation = b"R\0\0\0\x07public\0TaskRun\0d\0\x01\0id\0".to_vec();
        relation.extend([0; 8]);
        data(relation)
    }

    fn delete(id: &str) -> ReplicationEvent {
        let mut row = b"D\0\0\0\x07K\0\x01t".to_vec();
        row.extend((id.len() as u32).to_be_bytes());
        row.extend(id.as_bytes());
        data(row)
    }

    fn data(bytes: Vec<u8>) -> ReplicationEvent {
        let zero = pgwire_replication::Lsn::from_u64(0);
        ReplicationEvent::XLogData {
            wal_start: zero,
            wal_end: zero,
            server_time_micros: 0,
            data: bytes.into(),
        }
    }

    fn commit(at: u64, end: u64) -> ReplicationEvent {
        let lsn = pgwire_replication::Lsn::from_u64;
        ReplicationEvent::Commit { lsn: lsn(at), end_lsn: lsn(end), commit_time_micros: 0 }
    }

    fn keepalive(at: u64) -> ReplicationEvent {
        let wal_end = pgwire_replication::Lsn::from_u64(at);
        ReplicationEvent::KeepAlive { wal_end, reply_requested: false, server_time_micros: 0 }
    }

    fn run(assembler: &mut Assembler, events: Vec<ReplicationEvent>) -> Vec<String> {
        let mut out = Vec::new();
        for event in events {
            match assembler.take(event).unwrap() {
                Some(Event::Tx(tx)) => out.push(format!(
                    "tx {} at {} of {}",
                    tx.xid,
                    tx.commit_lsn.0,
                    tx.changes.len()
                )),
                Some(Event::Progress(lsn)) => out.push(format!("to {}", lsn.0)),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        out
    }

    #[test]
    fn a_keepalive_whose_end_is_the_next_commits_lsn_does_not_hide_that_commit() {
        let mut assembler = Assembler::new(Lsn(10), 1_000);
        let events = vec![
            truncate(),
            keepalive(500),
            begin(7, 500),
            delete("a"),
            commit(500, 540),
            keepalive(540),
        ];
        assert_eq!(run(&mut assembler, events), ["to 500", "tx 7 at 500 of 1"]);
        assert_eq!(assembler.delivered(), Lsn(540));
    }

    #[test]
    fn a_keepalive_inside_a_transaction_moves_nothing() {
        let mut assembler = Assembler::new(Lsn(10), 1_000);
        let events = vec![truncate(), begin(7, 500), keepalive(600), delete("a"), commit(500, 540)];
        assert_eq!(run(&mut assembler, events), ["tx 7 at 500 of 1"]);
    }

    #[test]
    fn what_a_resumed_slot_repeats_is_dropped_and_an_empty_transaction_is_progress() {
        let mut assembler = Assembler::new(Lsn(540), 1_000);
        let events = vec![
            truncate(),
            begin(7, 500),
            delete("a"),
            commit(500, 540),
            begin(8, 540),
            delete("b"),
            commit(540, 580),
            begin(9, 600),
            commit(600, 640),
            keepalive(100),
        ];
        assert_eq!(run(&mut assembler, events), ["tx 8 at 540 of 1", "to 640"]);
    }

    #[test]
    fn more_rows_of_keys_than_are_carried_become_one_word_and_leave_the_runs_alone() {
        let mut relation = b"R\0\0\0\x08public\0Project\0d\0\x02\0id\0".to_vec();
        relation.extend([0; 8]);
        relation.extend(b"\0deletedAt\0");
        relation.extend([0; 8]);
        let project = || data(b"I\0\0\0\x08N\0\x02t\0\0\0\x01pn".to_vec());
        let mut assembler = Assembler::new(Lsn(0), 1_000);
        let mut events = vec![truncate(), data(relation), begin(7, 500), delete("a")];
        events.extend((0..MAX_KEY_CHANGES).map(|_| project()));
        events.push(delete("b"));
        for event in events {
            assert!(assembler.take(event).unwrap().is_none());
        }
        let carried = |assembler: &Assembler| {
            let changes = &assembler.open.as_ref().unwrap().changes;
            (changes.len(), matches!(changes.last(), Some(Change::Key(KeyChange::Lost))))
        };
        assert_eq!(carried(&assembler), (MAX_KEY_CHANGES + 2, false));
        for _ in 0..3 {
            assembler.take(project()).unwrap();
        }
        assert_eq!(carried(&assembler), (3, true), "two runs and a word");
        assert!(!assembler.open.as_ref().unwrap().too_large, "keys do not count as bytes");
    }

    #[test]
    fn a_transaction_too_large_to_carry_says_so_instead_of_its_rows() {
        let mut assembler = Assembler::new(Lsn(0), 30);
        let rows = (0..100).map(|_| delete("abcdefgh"));
        let events: Vec<_> =
            [truncate(), begin(7, 500)].into_iter().chain(rows).chain([commit(500, 540)]).collect();
        let mut last = None;
        for event in events {
            last = assembler.take(event).unwrap();
        }
        let Some(Event::Tx(tx)) = last else { panic!("{last:?}") };
        assert!(matches!(tx.changes[..], [Change::TooLarge]));
    }
}
