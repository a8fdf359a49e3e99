//! The laws of all feeds, without a database: a table that changes at random, its stream, queries
//! that see as much of it as Postgres may show, and clients that open and poll whenever they like.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proptest::prelude::*;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

mod database;

use database::{Database, Edit, Row, TAGS, base, change, tuple};

use super::filter::Filter;
use super::handle::Horizon;
use super::image::{Image, Operation};
use super::key::{FeedKey, Runs};
use super::position::Position;
use super::untold::{Untold, entering};
use super::window::{Feed, Limits};
use super::{FeedSettings, Feeds};
use crate::postgres::Lsn;
use crate::replication::change::{Event, Reset};
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::reader::{Reader, ReaderLimits};
use crate::runs::store::{RunStore, Seen};
use crate::runs::tuple::Tuple;

/// A window of a few changes, in bytes.
const SMALL: usize = 3_000;

#[derive(Clone, Debug)]
enum Step {
    /// The database commits a transaction.
    Commit(Vec<Edit>),
    /// The stream brings the next few transactions.
    Deliver(usize),
    /// A client runs its query, which does not show some of what is committed.
    Query { client: usize, hidden: u8 },
    /// A client polls. What it then asks the database for does not show some of what is committed.
    Poll { client: usize, hidden: u8 },
    /// The tags of a run that the stream left out are read; they are learnt when the stream has come
    /// to where the query was.
    Read { hidden: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(change(), 1..4).prop_map(Step::Commit),
        5 => (1usize..4).prop_map(Step::Deliver),
        2 => (0usize..16, any::<u8>()).prop_map(|(client, hidden)| Step::Query { client, hidden }),
        6 => (0usize..16, any::<u8>()).prop_map(|(client, hidden)| Step::Poll { client, hidden }),
        3 => any::<u8>().prop_map(|hidden| Step::Read { hidden }),
    ];
    prop::collection::vec(step, 1..60)
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

    fn filter(&self) -> Filter {
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
        let key = FeedKey::new("env".into(), runs);
        Filter::new(&key, floor)
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
    fn open(&mut self, feeds: &Feeds, database: &Database, hidden: u8) {
        let (seen, table) = &database.query(hidden);
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
            let row = if row.lacks_tags() { database.whole(row, table) } else { Some(row.clone()) };
            row.iter().for_each(|row| self.take(row, Operation::Insert, ColumnSet::EXPOSED));
        }
        (self.offset, self.horizon, self.open) = (offset, joined.horizon, true);
    }

    fn poll(&mut self, feed: &Feed, database: &Database, hidden: u8) {
        let (mut news, head) = {
            let state = feed.state.read();
            if self.offset < Position::before(state.floor) {
                self.open = false;
                return;
            }
            let horizon = self.horizon.as_ref();
            let news = state.news(&self.filter, self.offset, horizon, |_| true);
            (news, Position::before(state.head))
        };
        assert!(head >= self.offset, "offsets go up");
        let (_, table) = database.query_now(hidden);
        let undecided = std::mem::take(&mut news.undecided);
        let read = undecided.iter().filter_map(|image| database.whole(image, &table));
        news.runs.extend(read.filter_map(|image| entering(&self.filter, image)));
        for run in news.runs {
            let lacks = run.operation == Operation::Insert && run.image.lacks_tags();
            let image =
                if lacks { database.whole(&run.image, &table) } else { Some(run.image.clone()) };
            image.iter().for_each(|image| self.take(image, run.operation, run.changed));
        }
        self.offset = head;
        if self.horizon.as_ref().is_some_and(|horizon| head.lsn >= horizon.lsn) {
            self.horizon = None;
        }
    }
}

/// A query for the tags that the stream left out.
struct Read {
    untold: Untold,
    row: Option<Tuple>,
    seen: Seen,
    connections: u64,
}

impl Read {
    fn begin(feed: &Feed, database: &Database, hidden: u8) -> Option<Read> {
        let untold = feed.next_untold()?;
        let connections = feed.state.read().connections;
        let (seen, table) = database.query_now(hidden);
        let run: usize = untold.run.strip_prefix("id").unwrap().parse().unwrap();
        let row = table.get(&run).map(|row| tuple(run, row));
        Some(Read { untold, row, seen, connections })
    }

    /// Whether the stream has come to where it ended, or the row is gone.
    fn ends(&self, feed: &Feed) -> bool {
        let Some(row) = &self.row else { return true };
        let reached = feed.head() >= self.seen.insert_lsn;
        if reached {
            feed.learn_tags(&self.untold, row.get(Column::RunTags), self.connections);
        }
        reached
    }
}

fn feeds(bytes: usize) -> Feeds {
    let limits = Limits { age: Duration::from_secs(3600), bytes, bodies: 1 << 20 };
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
    ///
    /// That a run left, or is gone, cannot be told where the window did not know that it was there.
    #[test]
    fn every_client_of_every_feed_ends_with_the_table(
        base in base(), steps in steps(), full_identity: bool, small: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let feeds = feeds(if small { SMALL } else { 64 << 20 });
        let feed = Arc::clone(&feeds.feed);
        let knows_all = base.is_empty() && !small;
        let mut database = Database::with(base, full_identity);
        let mut delivered = 0;
        let mut reads = Vec::new();
        let mut clients: Vec<Client> = Wanted::all()
            .into_iter()
            .flat_map(|wanted| [wanted.clone(), wanted])
            .map(|wanted| Client {
                filter: wanted.filter(),
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
                    clients[client % number].open(&feeds, &database, hidden);
                }
                Step::Poll { client, hidden } => {
                    let client = &mut clients[client % number];
                    if client.open {
                        client.poll(&feed, &database, hidden);
                    }
                }
                Step::Read { hidden } => reads.extend(Read::begin(&feed, &database, hidden)),
            }
            reads.retain(|read| !read.ends(&feed));
        }
        (delivered..database.transactions.len()).for_each(|n| feed.apply(database.event(n)));
        for client in &mut clients {
            if !client.open {
                continue;
            }
            client.poll(&feed, &database, 0);
            if !client.open {
                continue;
            }
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
            if !knows_all {
                // Nobody may have been told that they left.
                found.retain(|id, _| {
                    expected.contains_key(id) || (full_identity && !database.was_deleted(id))
                });
            }
            prop_assert_eq!(found, expected, "{:?}", client.wanted);
        }
    }
}

#[tokio::test]
async fn a_run_that_leaves_and_comes_back_between_two_polls_is_sent_whole() {
    let feeds = feeds(64 << 20);
    let feed = &feeds.feed;
    let mut database = Database::default();
    let put = Edit::Put { run: 0, tags: 1, batch: None, created: 0 };
    let edits = [put, Edit::Untag { run: 0, tag: 0 }, Edit::Tag { run: 0, tag: 1 }];
    for edit in edits.into_iter().chain([Edit::Tag { run: 0, tag: 0 }]) {
        database.commit(vec![edit]);
    }
    let filter = Wanted::Tags(vec![0], 0).filter();
    feed.apply(database.event(0));
    let offset = Position::before(feed.head());
    (1..4).for_each(|number| feed.apply(database.event(number)));
    // What changed while it was elsewhere is found under other topics only.
    let news = feed.state.read().news(&filter, offset, None, |_| true);
    assert_eq!(news.runs[0].operation, Operation::Insert);
}
