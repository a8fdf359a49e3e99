//! The database that the laws are tried on: a table, its log, and what queries see of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::feed::image::Image;
use crate::postgres::{Lsn, Snapshot};
use crate::replication::change::{Change, Event, Tx};
use crate::runs::columns::Column;
use crate::runs::store::Seen;
use crate::runs::tuple::Tuple;

pub const RUNS: usize = 5;
pub const TAGS: [&str; 3] = ["a", "b", "c d"];
/// The tags of these runs are stored out of line: the stream carries them when they change.
pub const OUT_OF_LINE: std::ops::Range<usize> = 2..RUNS;
/// A row of the table. Every change gives it a version of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub tags: Vec<usize>,
    pub batch: Option<usize>,
    pub created: u32,
    pub version: u32,
}

pub type Table = BTreeMap<usize, Row>;

#[derive(Clone, Debug)]
pub enum Edit {
    /// Inserts the run, or touches it.
    Put {
        run: usize,
        tags: u8,
        batch: Option<usize>,
        created: u32,
    },
    Tag {
        run: usize,
        tag: usize,
    },
    Untag {
        run: usize,
        tag: usize,
    },
    Delete {
        run: usize,
    },
}

pub fn change() -> impl Strategy<Value = Edit> {
    let put = (0..RUNS, 0u8..8, prop::option::of(0usize..2), 0u32..4)
        .prop_map(|(run, tags, batch, created)| Edit::Put { run, tags, batch, created });
    prop_oneof![
        6 => put,
        4 => (0..RUNS, 0..TAGS.len()).prop_map(|(run, tag)| Edit::Tag { run, tag }),
        1 => (0..RUNS, 0..TAGS.len()).prop_map(|(run, tag)| Edit::Untag { run, tag }),
        1 => (0..RUNS).prop_map(|run| Edit::Delete { run }),
    ]
}

/// Runs from before the stream began.
pub fn base() -> impl Strategy<Value = Vec<Edit>> {
    let put = (0..RUNS, 0u8..8, prop::option::of(0usize..2), 0u32..4)
        .prop_map(|(run, tags, batch, created)| Edit::Put { run, tags, batch, created });
    prop_oneof![1 => Just(Vec::new()), 3 => prop::collection::vec(put, 1..8)]
}

/// The database: what it committed, in the order of its log.
#[derive(Default)]
pub struct Database {
    pub table: Table,
    /// What was there before the stream began.
    pub base: Table,
    pub versions: u32,
    pub transactions: Vec<Committed>,
    /// With it the stream tells the row before.
    pub full_identity: bool,
}

pub struct Committed {
    pub xid: u32,
    pub commit: u64,
    pub changes: Vec<(usize, Option<Row>, Option<Row>)>,
}

impl Database {
    pub fn with(base: Vec<Edit>, full_identity: bool) -> Self {
        let mut database = Database { full_identity, ..Database::default() };
        database.commit(base);
        database.transactions.clear();
        database.base = database.table.clone();
        database
    }

    pub fn commit(&mut self, changes: Vec<Edit>) {
        let mut done = Vec::new();
        for change in changes {
            self.versions += 1;
            let (run, before) = match &change {
                Edit::Put { run, .. }
                | Edit::Tag { run, .. }
                | Edit::Untag { run, .. }
                | Edit::Delete { run } => (*run, self.table.get(run).cloned()),
            };
            let mut after = before.clone();
            match change {
                Edit::Put { tags, batch, created, .. } => {
                    let tags = (0..TAGS.len()).filter(|tag| tags & (1 << tag) != 0).collect();
                    after.get_or_insert(Row { tags, batch, created, version: 0 });
                }
                Edit::Tag { tag, .. } => {
                    if let Some(row) = after.as_mut().filter(|row| !row.tags.contains(&tag)) {
                        row.tags.push(tag);
                    }
                }
                Edit::Untag { tag, .. } => {
                    if let Some(row) = &mut after {
                        row.tags.retain(|kept| *kept != tag);
                    }
                }
                Edit::Delete { .. } => after = None,
            }
            if let Some(row) = &mut after {
                row.version = self.versions;
                self.table.insert(run, row.clone());
            } else {
                self.table.remove(&run);
            }
            if before.is_some() || after.is_some() {
                done.push((run, before, after));
            }
        }
        let number = self.transactions.len() as u64 + 1;
        // Some transactions begin exactly where the one before ended.
        let commit = number * 100;
        self.transactions.push(Committed { xid: number as u32 + 10, commit, changes: done });
    }

    pub fn was_deleted(&self, id: &str) -> bool {
        let mut changes = self.transactions.iter().flat_map(|committed| &committed.changes);
        changes.any(|(run, _, after)| after.is_none() && *id == format!("id{run}"))
    }

    pub fn event(&self, number: usize) -> Event {
        let committed = &self.transactions[number];
        let changes = committed.changes.iter().map(|(run, before, after)| {
            let old = before.as_ref().filter(|_| self.full_identity);
            match (before, after) {
                (None, Some(after)) => Change::RunInserted(tuple(*run, after)),
                (Some(before), Some(after)) => Change::RunUpdated {
                    new: updated(*run, before, after),
                    old: old.map(|old| Box::new(tuple(*run, old))),
                },
                (_, None) => Change::RunDeleted(format!("id{run}")),
            }
        });
        Event::Tx(Tx {
            xid: committed.xid,
            commit_lsn: Lsn(committed.commit),
            end_lsn: Lsn(committed.commit + 100),
            commit_time: committed.commit as i64,
            changes: changes.collect(),
        })
    }

    /// What a query sees that some of the last transactions are hidden from, and all that followed
    /// on the rows that those hold locked.
    pub fn query(&self, hidden: u8) -> (Seen, Table) {
        let last = self.transactions.len();
        let mut locked = Vec::new();
        let mut xip = Vec::new();
        let mut table = self.base.clone();
        for (number, committed) in self.transactions.iter().enumerate() {
            let recent = last - number <= 8 && hidden & (1 << (last - number - 1)) != 0;
            let waits = committed.changes.iter().any(|(run, ..)| locked.contains(run));
            if recent || waits {
                xip.push(u64::from(committed.xid));
                locked.extend(committed.changes.iter().map(|(run, ..)| *run));
                continue;
            }
            for (run, _, after) in &committed.changes {
                match after {
                    Some(row) => drop(table.insert(*run, row.clone())),
                    None => drop(table.remove(run)),
                }
            }
        }
        let xmax = last as u64 + 11;
        let snapshot = Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip };
        let insert_lsn = Lsn(last as u64 * 100 + 100);
        (Seen { snapshot, insert_lsn }, table)
    }

    /// The same for a query that begins after the stream has brought the row: whatever was changed
    /// again since was visible to who changed it.
    pub fn query_now(&self, hidden: u8) -> (Seen, Table) {
        let mut hidden = hidden;
        for bit in 0..self.transactions.len().min(8) {
            let (earlier, later) = self.transactions.split_at(self.transactions.len() - bit);
            let Some(last) = earlier.last() else { break };
            let of = |run: &usize| later.iter().any(|c| c.changes.iter().any(|(r, ..)| r == run));
            if last.changes.iter().any(|(run, ..)| of(run)) {
                hidden &= !(1 << bit);
            }
        }
        self.query(hidden)
    }

    /// The row that is asked for in place of one that was not sent whole.
    pub fn whole(&self, image: &Image, table: &Table) -> Option<Arc<Image>> {
        let id = image.text(Column::Id).unwrap();
        let run: usize = id.strip_prefix("id").unwrap().parse().unwrap();
        let row = table.get(&run)?;
        Some(Arc::new(image.filled_from(&Image::of_row(&tuple(run, row)))))
    }
}

pub fn created(row: &Row) -> String {
    format!("2026-09-01 08:{:02}:00.5", row.created)
}

pub fn tuple(run: usize, row: &Row) -> Tuple {
    let tags: Vec<String> = row.tags.iter().map(|tag| format!("\"{}\"", TAGS[*tag])).collect();
    let cells = [
        (Column::Id, format!("id{run}")),
        (Column::FriendlyId, format!("run_{run}")),
        (Column::RuntimeEnvironmentId, "env".to_owned()),
        (Column::CreatedAt, created(row)),
        (Column::RunTags, format!("{{{}}}", tags.join(","))),
        (Column::Metadata, row.version.to_string()),
        (Column::BatchId, row.batch.map(|batch| format!("batch{batch}")).unwrap_or_default()),
    ];
    let data: String = cells.iter().map(|(_, text)| text.as_str()).collect();
    let mut tuple = Tuple::new(Bytes::from(data));
    let mut start = 0;
    for (column, text) in cells {
        if !text.is_empty() {
            tuple.set_text(column, start, start + text.len()).unwrap();
        }
        start += text.len();
    }
    tuple
}

/// The row of an update, as the stream brings it.
pub fn updated(run: usize, before: &Row, after: &Row) -> Tuple {
    let mut tuple = tuple(run, after);
    if OUT_OF_LINE.contains(&run) && before.tags == after.tags {
        tuple.set_unchanged(Column::RunTags);
    }
    tuple
}
