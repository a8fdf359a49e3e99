//! The laws of all feeds, without a database: a table that changes at random, its stream, queries
//! that see as much of it as Postgres may show, and clients that open and poll whenever they like.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

use super::filter::{FeedKey, Filter, Runs};
use super::handle::Horizon;
use super::image::{Image, Operation};
use super::position::Position;
use super::window::{Feed, Limits};
use super::{FeedSettings, Feeds};
use crate::postgres::{Lsn, Snapshot};
use crate::replication::change::{Change, Event, Reset, Tx};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::reader::{Reader, ReaderLimits};
use crate::runs::store::{RunStore, Seen};
use crate::runs::tuple::Tuple;

const RUNS: usize = 5;
const TAGS: [&str; 3] = ["a", "b", "c d"];

/// A row of the table. Every change gives it a version of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    tags: Vec<usize>,
    batch: Option<usize>,
    created: u32,
    version: u32,
}

type Table = BTreeMap<usize, Row>;

#[derive(Clone, Debug)]
enum Edit {
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

fn change() -> impl Strategy<Value = Edit> {
    let put = (0..RUNS, 0u8..8, prop::option::of(0usize..2), 0u32..4)
        .prop_map(|(run, tags, batch, created)| Edit::Put { run, tags, batch, created });
    prop_oneof![
        6 => put,
        4 => (0..RUNS, 0..TAGS.len()).prop_map(|(run, tag)| Edit::Tag { run, tag }),
        1 => (0..RUNS, 0..TAGS.len()).prop_map(|(run, tag)| Edit::Untag { run, tag }),
        1 => (0..RUNS).prop_map(|run| Edit::Delete { run }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// The database commits a transaction.
    Commit(Vec<Edit>),
    /// The stream brings the next few transactions.
    Deliver(usize),
    /// A client runs its query, which does not show some of what is committed.
    Query { client: usize, hidden: u8 },
    /// A client polls.
    Poll(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(change(), 1..4).prop_map(Step::Commit),
        5 => (1usize..4).prop_map(Step::Deliver),
        2 => (0usize..16, any::<u8>()).prop_map(|(client, hidden)| Step::Query { client, hidden }),
        6 => (0usize..16).prop_map(Step::Poll),
    ];
    prop::collection::vec(step, 1..60)
}

/// The database: what it committed, in the order of its log.
#[derive(Default)]
struct Database {
    table: Table,
    versions: u32,
    transactions: Vec<Committed>,
    /// With it the stream tells the row before.
    full_identity: bool,
}

struct Committed {
    xid: u32,
    commit: u64,
    changes: Vec<(usize, Option<Row>, Option<Row>)>,
}

impl Database {
    fn commit(&mut self, changes: Vec<Edit>) {
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

    fn event(&self, number: usize) -> Event {
        let committed = &self.transactions[number];
        let changes = committed.changes.iter().map(|(run, before, after)| {
            let old = before.as_ref().filter(|_| self.full_identity);
            match (before, after) {
                (None, Some(after)) => Change::RunInserted(tuple(*run, after)),
                (_, Some(after)) => Change::RunUpdated {
                    new: tuple(*run, after),
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
    fn query(&self, hidden: u8) -> (Seen, Table) {
        let last = self.transactions.len();
        let mut locked = Vec::new();
        let mut xip = Vec::new();
        let mut table = Table::new();
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
}

fn created(row: &Row) -> String {
    format!("2026-09-01 08:{:02}:00.5", row.created)
}

fn tuple(run: usize, row: &Row) -> Tuple {
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

/// What a feed is of, by the rules of the contract and nothing of the code under test.
#[derive(Clone, Debug)]
enum Wanted {
    Run(usize),
    Batch(usize),
    Tags(Vec<usize>, u32),
}

impl Wanted {
    fn all() -> Vec<Wanted> {
        vec![
            Wanted::Run(0),
            Wanted::Run(1),
            Wanted::Batch(0),
            Wanted::Tags(vec![], 0),
            Wanted::Tags(vec![0], 2),
            Wanted::Tags(vec![0, 2], 0),
            Wanted::Tags(vec![0, 1, 2], 0),
        ]
    }

    fn holds(&self, run: usize, row: &Row) -> bool {
        match self {
            Wanted::Run(wanted) => run == *wanted,
            Wanted::Batch(batch) => row.batch == Some(*batch),
            Wanted::Tags(tags, from) => {
                row.created >= *from && tags.iter().all(|tag| row.tags.contains(tag))
            }
        }
    }

    fn filter(&self, feed: &Feed) -> Filter {
        // 2026-09-01 08:00:00
        let start = 1_788_249_600 / 60;
        let (runs, floor) = match self {
            Wanted::Run(run) => (Runs::One(format!("run_{run}").into()), Floor::default()),
            Wanted::Batch(batch) => {
                (Runs::OfBatch(format!("batch{batch}").into()), Floor::default())
            }
            Wanted::Tags(tags, from) => {
                let tags = tags.iter().map(|tag| TAGS[*tag].into()).collect();
                let window = Duration::from_secs(60);
                (Runs::Tagged { tags, window }, Floor(start + from))
            }
        };
        let key = FeedKey { environment: "env".into(), runs };
        Filter::new(&key, floor, &feed.topics)
    }
}

/// A client of one feed, as the SDK merges rows, but that it minds what it is sent.
struct Client {
    wanted: Wanted,
    filter: Filter,
    offset: Position,
    horizon: Option<Horizon>,
    rows: BTreeMap<String, (String, String)>,
    newest: BTreeMap<String, u32>,
    open: bool,
}

impl Client {
    fn take(&mut self, image: &Image, operation: Operation, changed: ColumnSet) {
        let id = image.text(Column::Id).unwrap().to_owned();
        let cell = |column| image.text(column).unwrap_or_default().to_owned();
        let version: u32 = cell(Column::Metadata).parse().unwrap();
        match operation {
            Operation::Delete => drop(self.rows.remove(&id)),
            Operation::Insert => {
                let row = (cell(Column::Metadata), cell(Column::RunTags));
                self.rows.insert(id.clone(), row);
            }
            Operation::Update => {
                let row = self.rows.get_mut(&id).expect("a partial row for an unknown key");
                assert!(!changed.is_empty(), "an update of nothing");
                if changed.contains(Column::Metadata) {
                    row.0 = cell(Column::Metadata);
                }
                if changed.contains(Column::RunTags) {
                    row.1 = cell(Column::RunTags);
                }
            }
        }
        let newest = self.newest.entry(id).or_default();
        assert!(version >= *newest, "back in time: {version} after {newest}");
        let twice = version == *newest && operation != Operation::Delete;
        assert!(!twice, "the same version twice: {version}");
        *newest = version;
    }

    /// Opens anew, unless the answer has to be repeated.
    fn open(&mut self, feeds: &Feeds, seen: &Seen, table: &Table) {
        let rows: Vec<Arc<Image>> = table
            .iter()
            .filter(|(run, row)| self.wanted.holds(**run, row))
            .map(|(run, row)| Arc::new(Image::of_row(&tuple(*run, row))))
            .collect();
        let connections = feeds.feed.state.read().connections;
        let joined = feeds.join(&self.filter, connections, seen, &rows).unwrap();
        let Some(joined) = joined else { return };
        let offset = Position::before(joined.head);
        if self.open && offset < self.offset {
            return;
        }
        self.rows.clear();
        self.newest.clear();
        for row in &joined.rows {
            self.take(row, Operation::Insert, ColumnSet::EXPOSED);
        }
        (self.offset, self.horizon, self.open) = (offset, joined.horizon, true);
    }

    fn poll(&mut self, feed: &Feed) {
        let (news, head) = {
            let state = feed.state.read();
            let horizon = self.horizon.as_ref();
            let news = state.news(&self.filter, self.offset, horizon, |_| true);
            (news, Position::before(state.head))
        };
        assert!(head >= self.offset, "offsets go up");
        for run in news.runs {
            self.take(&run.image, run.operation, run.changed);
        }
        self.offset = head;
        if self.horizon.as_ref().is_some_and(|horizon| head.lsn >= horizon.lsn) {
            self.horizon = None;
        }
    }
}

fn feeds() -> Feeds {
    let limits = Limits { age: Duration::from_secs(3600), bytes: 64 << 20, bodies: 1 << 20 };
    let feed = Feed::new(limits);
    feed.apply(Event::Reset(Reset { epoch: 1, floor: Lsn(10), server: Lsn(10), past: None }));
    // Nobody listens there, and nobody asks.
    let pool = PgPoolOptions::new().connect_lazy("postgresql://127.0.0.1:1/none").unwrap();
    let settings = FeedSettings {
        completion_fold: Duration::ZERO,
        just_created_wait: Duration::from_secs(2),
        created_max: Duration::from_secs(86_400),
        list_max: 100,
        list_bytes: 1 << 20,
        chunk_bytes: 1 << 20,
        chunk: 1 << 20,
    };
    let reader = Reader::new(RunStore::new(pool), ReaderLimits::default());
    let caught_up = Arc::new(AtomicBool::new(true));
    Feeds::new(feed, reader, caught_up, CancellationToken::new(), settings)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a query shows of the transactions that the stream has or has not brought, and
    /// whenever clients poll: in the end each has the table's rows of its feed, was never sent a part
    /// of a row that it did not have, saw no run go back, and no version twice.
    #[test]
    fn every_client_of_every_feed_ends_with_the_table(
        steps in steps(), full_identity: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let feeds = feeds();
        let feed = Arc::clone(&feeds.feed);
        let mut database = Database { full_identity, ..Database::default() };
        let mut delivered = 0;
        let mut clients: Vec<Client> = Wanted::all()
            .into_iter()
            .flat_map(|wanted| [wanted.clone(), wanted])
            .map(|wanted| Client {
                filter: wanted.filter(&feed),
                wanted,
                offset: Position::default(),
                horizon: None,
                rows: BTreeMap::new(),
                newest: BTreeMap::new(),
                open: false,
            })
            .collect();
        let number = clients.len();
        for step in steps {
            match step {
                Step::Commit(changes) => database.commit(changes),
                Step::Deliver(transactions) => {
                    let until = (delivered + transactions).min(database.transactions.len());
                    (delivered..until).for_each(|number| feed.apply(database.event(number)));
                    delivered = until;
                }
                Step::Query { client, hidden } => {
                    let (seen, table) = database.query(hidden);
                    clients[client % number].open(&feeds, &seen, &table);
                }
                Step::Poll(client) => {
                    let client = &mut clients[client % number];
                    if client.open {
                        client.poll(&feed);
                    }
                }
            }
        }
        (delivered..database.transactions.len()).for_each(|n| feed.apply(database.event(n)));
        for client in &mut clients {
            if !client.open {
                continue;
            }
            client.poll(&feed);
            let table = database.table.iter().filter(|(run, row)| client.wanted.holds(**run, row));
            let expected: BTreeMap<String, (String, String)> = table
                .map(|(run, row)| {
                    let image = Image::of_row(&tuple(*run, row));
                    let cell = |column| image.text(column).unwrap_or_default().to_owned();
                    (format!("id{run}"), (cell(Column::Metadata), cell(Column::RunTags)))
                })
                .collect();
            let mut found = client.rows.clone();
            if matches!(client.wanted, Wanted::Run(_)) && expected.is_empty() {
                // A run that the window did not know cannot be said to be gone.
                found.clear();
            }
            prop_assert_eq!(found, expected, "{:?}", client.wanted);
        }
    }
}

#[tokio::test]
async fn a_run_that_leaves_and_comes_back_between_two_polls_is_sent_whole() {
    let feeds = feeds();
    let feed = &feeds.feed;
    let mut database = Database::default();
    let put = Edit::Put { run: 0, tags: 1, batch: None, created: 0 };
    let edits = [put, Edit::Untag { run: 0, tag: 0 }, Edit::Tag { run: 0, tag: 1 }];
    for edit in edits.into_iter().chain([Edit::Tag { run: 0, tag: 0 }]) {
        database.commit(vec![edit]);
    }
    let filter = Wanted::Tags(vec![0], 0).filter(feed);
    feed.apply(database.event(0));
    let offset = Position::before(feed.head());
    (1..4).for_each(|number| feed.apply(database.event(number)));
    // What changed while it was elsewhere is found under other topics only.
    let news = feed.state.read().news(&filter, offset, None, |_| true);
    assert_eq!(news.runs[0].operation, Operation::Insert);
}
