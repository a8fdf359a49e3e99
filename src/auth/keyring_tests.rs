use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::replication::{
    change::Reset,
    keys::{
        AdditionalKeyRow, EnvironmentRow, EnvironmentType, KeyRow, KeyTable, ProjectRow,
        RotatedKeyRow, SigningKey, digest,
    },
};

const IDS: [&str; 3] = ["a", "b", "c"];
const VERSIONS: u8 = 3;

/// The text of a key of this row, of which there are few.
fn key(id: &str, version: u8) -> String {
    format!("{id}{}", version % VERSIONS)
}

/// A row of a table by small numbers.
fn row(table: u8, id: &str, version: u8) -> KeyRow {
    let id: Arc<str> = id.into();
    let other: Arc<str> = IDS[usize::from(version) % IDS.len()].into();
    match table % 4 {
        0 => KeyRow::Environment(EnvironmentRow {
            kind: EnvironmentType::Preview,
            key: SigningKey::new(key(&id, version)),
            project: other.clone(),
            parent: (version.is_multiple_of(2)).then_some(other),
            branch: (!version.is_multiple_of(3)).then(|| "branch".into()),
            archived: version.is_multiple_of(5),
            id,
        }),
        1 => KeyRow::Project(ProjectRow { id, deleted: version.is_multiple_of(2) }),
        2 => KeyRow::Rotated(RotatedKeyRow {
            key: SigningKey::new(key("r", version)),
            environment: other,
            ends: u64::from(version),
            id,
        }),
        _ => KeyRow::Additional(AdditionalKeyRow {
            hash: Some(digest(&key(&id, version))),
            environment: other,
            scopes: (!version.is_multiple_of(4)).then(|| vec![version.to_string()].into()),
            revoked: version.is_multiple_of(2),
            ends: None,
            id,
        }),
    }
}

const TABLES: [KeyTable; 4] = KeyTable::ALL;

fn table_of(change: &KeyChange) -> (u8, String) {
    match change {
        KeyChange::Put(KeyRow::Environment(row)) => (0, row.id.to_string()),
        KeyChange::Put(KeyRow::Project(row)) => (1, row.id.to_string()),
        KeyChange::Put(KeyRow::Rotated(row)) => (2, row.id.to_string()),
        KeyChange::Put(KeyRow::Additional(row)) => (3, row.id.to_string()),
        KeyChange::Gone(table, id) => {
            (TABLES.iter().position(|other| other == table).unwrap() as u8, id.to_string())
        }
        KeyChange::Lost => unreachable!(),
    }
}

/// The tables, in the plainest form.
#[derive(Clone, Debug, Default)]
struct Tables(BTreeMap<(u8, String), KeyRow>);

impl Tables {
    fn apply(&mut self, change: &KeyChange) {
        let at = table_of(change);
        match change {
            KeyChange::Put(row) => {
                let mut row = row.clone();
                // What the stream leaves out is as it was.
                if let KeyRow::Additional(new) = &mut row
                    && new.scopes.is_none()
                {
                    new.scopes = match self.0.get(&at) {
                        Some(KeyRow::Additional(old)) => old.scopes.clone(),
                        _ => None,
                    };
                }
                self.0.insert(at, row);
            }
            KeyChange::Gone(..) => {
                self.0.remove(&at);
            }
            KeyChange::Lost => unreachable!(),
        }
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        self.0.values().cloned().for_each(|row| facts.put(row));
        facts
    }
}

/// All that can be asked of facts about the few ids and keys that there are.
fn answers(facts: &Facts) -> Vec<String> {
    let mut all = vec![format!("{} rows, {} bytes", facts.rows(), facts.bytes())];
    for id in IDS {
        let rotated: BTreeSet<_> = facts.rotated(id).map(|row| row.id.to_string()).collect();
        all.push(format!(
            "{id}: {:?} {} {:?} {rotated:?}",
            facts.environment(id),
            facts.is_alive(id),
            facts.branch(id, "branch")
        ));
        for version in 0..VERSIONS {
            let (own, of_rotated) = (digest(&key(id, version)), digest(&key("r", version)));
            let additional =
                facts.by_additional_key(&own).map(|row| (&row.id, &row.scopes, row.revoked));
            all.push(format!(
                "{:?} {:?} {additional:?}",
                facts.by_root_key(&own).map(|row| &row.id),
                facts.by_rotated_key(&of_rotated).map(|row| (&row.id, row.ends)),
            ));
        }
    }
    all
}

#[derive(Clone, Debug)]
struct Transaction {
    xid: u32,
    changes: Vec<KeyChange>,
    committed: Option<Lsn>,
    visible: bool,
}

/// A database whose stream and queries see its transactions at times of their own.
#[derive(Debug, Default)]
struct Model {
    /// By id, which is given out when they begin.
    transactions: Vec<Transaction>,
    /// In the order of their commits.
    log: Vec<usize>,
    delivered: usize,
    readings: Vec<(Reading, u64)>,
}

const FIRST_XID: u32 = 100;

impl Model {
    fn begin(&mut self, changes: Vec<KeyChange>) {
        let xid = FIRST_XID + self.transactions.len() as u32;
        // Who writes a row waits until its last writer is seen by all.
        let rows = |t: &Transaction| t.changes.iter().map(table_of).collect::<BTreeSet<_>>();
        let mine: BTreeSet<_> = changes.iter().map(table_of).collect();
        let busy = |t: &Transaction| !t.visible && !rows(t).is_disjoint(&mine);
        if !self.transactions.iter().any(busy) {
            self.transactions.push(Transaction { xid, changes, committed: None, visible: false });
        }
    }

    fn commit(&mut self, which: usize) {
        let open: Vec<usize> = (0..self.transactions.len())
            .filter(|i| self.transactions[*i].committed.is_none())
            .collect();
        if let Some(i) = open.get(which % open.len().max(1)) {
            self.log.push(*i);
            self.transactions[*i].committed = Some(Lsn(self.log.len() as u64 * 10));
        }
    }

    fn show(&mut self, which: usize) {
        let hidden: Vec<usize> =
            self.log.iter().copied().filter(|i| !self.transactions[*i].visible).collect();
        if let Some(i) = hidden.get(which % hidden.len().max(1)) {
            self.transactions[*i].visible = true;
        }
    }

    fn deliver(&mut self, keyring: &Keyring) {
        if let Some(i) = self.log.get(self.delivered) {
            let transaction = &self.transactions[*i];
            let commit_lsn = transaction.committed.unwrap();
            keyring.apply(&Event::Tx(Tx {
                xid: transaction.xid,
                commit_lsn,
                end_lsn: Lsn(commit_lsn.0 + 10),
                commit_time: 0,
                changes: transaction.changes.iter().cloned().map(Change::Key).collect(),
            }));
            self.delivered += 1;
        }
    }

    fn snapshot(&self) -> Snapshot {
        let xip: Vec<u64> =
            self.transactions.iter().filter(|t| !t.visible).map(|t| u64::from(t.xid)).collect();
        let xmax = u64::from(FIRST_XID) + self.transactions.len() as u64;
        Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip }
    }

    fn tables(&self, of: impl Fn(usize, &Transaction) -> bool) -> Tables {
        let mut tables = Tables::default();
        for (place, i) in self.log.iter().enumerate() {
            let transaction = &self.transactions[*i];
            if of(place, transaction) {
                transaction.changes.iter().for_each(|change| tables.apply(change));
            }
        }
        tables
    }

    fn read(&mut self, keyring: &Keyring) {
        let facts = self.tables(|_, t| t.visible).facts();
        let end = Lsn(self.log.len() as u64 * 10 + 10);
        let reading = Reading { snapshot: self.snapshot(), end, facts };
        self.readings.push((reading, keyring.restarts()));
    }

    fn join(&mut self, keyring: &Keyring, which: usize) -> bool {
        if self.readings.is_empty() {
            return false;
        }
        let (reading, restarts) = self.readings.remove(which % self.readings.len());
        keyring.join(reading, restarts)
    }

    /// What is held is what the stream has brought, no less and no more.
    fn check(&self, keyring: &Keyring) -> Result<(), TestCaseError> {
        let expected = self.tables(|place, _| place < self.delivered).facts();
        keyring.look(|state| {
            if let Some(facts) = state.complete() {
                prop_assert_eq!(answers(facts), answers(&expected));
            }
            Ok(())
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(Vec<(u8, u8, Option<u8>)>),
    Commit(usize),
    Show(usize),
    Deliver,
    Settle,
    Forget,
    Read,
    Join(usize),
    Distrust,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0u8..4, 0u8..3, proptest::option::weighted(0.8, 0u8..12));
    prop_oneof![
        4 => proptest::collection::vec(change, 1..4).prop_map(Step::Begin),
        4 => (0usize..9).prop_map(Step::Commit),
        4 => (0usize..9).prop_map(Step::Show),
        5 => Just(Step::Deliver),
        2 => Just(Step::Settle),
        2 => Just(Step::Forget),
        2 => Just(Step::Read),
        3 => (0usize..9).prop_map(Step::Join),
        1 => Just(Step::Distrust),
    ]
}

fn changes(of: Vec<(u8, u8, Option<u8>)>) -> Vec<KeyChange> {
    let change = |(table, id, version): (u8, u8, Option<u8>)| {
        let id = IDS[usize::from(id)];
        match version {
            Some(version) => KeyChange::Put(row(table, id, version)),
            None => KeyChange::Gone(TABLES[usize::from(table)], id.into()),
        }
    };
    of.into_iter().map(change).collect()
}

/// The changes that a finished query has shown are as old as they must be to be forgotten.
fn age(keyring: &Keyring) {
    for recent in &mut keyring.state.write().recent {
        if let Some((_, at)) = &mut recent.shown {
            *at = at.checked_sub(REMEMBERED).unwrap();
        }
    }
}

fn runs(steps: Vec<Step>) -> Result<(Keyring, Model), TestCaseError> {
    let (keyring, mut model) = (Keyring::default(), Model::default());
    for step in steps {
        match step {
            Step::Begin(of) => model.begin(changes(of)),
            Step::Commit(which) => model.commit(which),
            Step::Show(which) => model.show(which),
            Step::Deliver => model.deliver(&keyring),
            Step::Settle => keyring.settle(&model.snapshot()),
            Step::Forget => {
                age(&keyring);
                keyring.settle(&model.snapshot());
            }
            Step::Read => model.read(&keyring),
            Step::Join(which) => {
                model.join(&keyring, which);
            }
            Step::Distrust => keyring.distrust(),
        }
        model.check(&keyring)?;
    }
    Ok((keyring, model))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn what_is_held_is_what_the_stream_has_brought(steps in proptest::collection::vec(step(), 0..60)) {
        let (keyring, mut model) = runs(steps)?;
        // Once all is committed, seen and delivered, a reading is joined.
        while model.transactions.iter().any(|t| t.committed.is_none()) {
            model.commit(0);
        }
        while model.transactions.iter().any(|t| !t.visible) {
            model.show(0);
        }
        model.read(&keyring);
        while model.delivered < model.log.len() {
            model.deliver(&keyring);
        }
        keyring.apply(&Event::Progress(Lsn(1_000_000)));
        let last = model.readings.len() - 1;
        prop_assert!(model.join(&keyring, last));
        model.check(&keyring)?;
    }

    /// A verdict by a query that lacks a change which the stream has told of would outlive it.
    #[test]
    fn a_reading_is_admitted_only_if_it_lacks_nothing_that_was_told(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let (keyring, mut model) = runs(steps)?;
        model.read(&keyring);
        let (reading, _) = model.readings.pop().unwrap();
        let delivered = model.tables(|place, _| place < model.delivered);
        let shown = model.tables(|_, t| t.visible);
        keyring.look(|state| {
            for id in IDS {
                let concerns = [Concern::Environment(id.into())];
                let environment = (0, id.to_owned());
                // What is told and not shown: then the row by the query is older.
                let lacks = model.log.iter().take(model.delivered).any(|i| {
                    let t = &model.transactions[*i];
                    !t.visible && t.changes.iter().any(|change| table_of(change) == environment)
                });
                let differs = delivered.0.get(&environment) != shown.0.get(&environment);
                if lacks && differs {
                    prop_assert!(!state.admits(&reading, &concerns), "{}", id);
                    prop_assert!(!state.admits_all(&reading));
                }
            }
            Ok(())
        })?;
    }
}

fn tx(xid: u32, at: u64, change: KeyChange) -> Event {
    let changes = vec![Change::Key(change)];
    Event::Tx(Tx { xid, commit_lsn: Lsn(at), end_lsn: Lsn(at + 10), commit_time: 0, changes })
}

fn reading(snapshot: &str, end: u64) -> Reading {
    Reading { snapshot: snapshot.parse().unwrap(), end: Lsn(end), facts: Facts::default() }
}

fn loaded() -> Keyring {
    let keyring = Keyring::default();
    assert!(keyring.join(reading("10:10:", 0), 0));
    keyring
}

#[test]
fn a_change_that_changes_nothing_that_matters_concerns_nobody() {
    let keyring = loaded();
    let put = |at| keyring.apply(&tx(10, at, KeyChange::Put(row(0, "a", 1))));
    assert_eq!(put(10), [Concern::Environment("a".into())]);
    assert_eq!(put(20), []);
    let branch = keyring.apply(&tx(11, 30, KeyChange::Put(row(0, "b", 4))));
    assert_eq!(branch, [Concern::Environment("b".into()), Concern::Environment("b".into())]);
    let gone = |id: &str| KeyChange::Gone(KeyTable::Environments, id.into());
    assert_eq!(keyring.apply(&tx(12, 40, gone("a"))), [Concern::Environment("a".into())]);
    assert_eq!(keyring.apply(&tx(13, 50, gone("a"))), []);
    let unloaded = Keyring::default();
    assert_eq!(unloaded.apply(&tx(12, 40, gone("a"))), [Concern::All], "it may be anybody's");
}

#[test]
fn what_is_lost_or_begins_anew_is_loaded_anew_and_not_from_before() {
    let keyring = loaded();
    let before = keyring.restarts();
    assert_eq!(keyring.apply(&tx(10, 10, KeyChange::Lost)), [Concern::Lost]);
    assert!(!keyring.is_complete());
    assert!(!keyring.join(reading("11:11:", 0), before), "it began before");
    assert!(!keyring.join(reading("10:11:10", 0), before + 1), "it does not show what was lost");
    assert!(!keyring.join(reading("11:11:", 30), before + 1), "the stream is not there yet");
    assert!(keyring.join(reading("11:11:", 20), before + 1));

    let past = Some("20:22:21".parse().unwrap());
    let reset = Reset { epoch: 1, floor: Lsn(100), server: Lsn(100), past };
    assert_eq!(keyring.apply(&Event::Reset(reset)), [Concern::Lost]);
    let restarts = keyring.restarts();
    assert!(!keyring.join(reading("19:22:19", 50), restarts), "it lacks what the slot calls past");
    assert!(keyring.join(reading("22:22:", 50), restarts));
}

#[test]
fn what_is_forgotten_late_although_it_was_shown_early_does_not_let_older_readings_in() {
    let keyring = Keyring::default();
    keyring.apply(&tx(10, 10, KeyChange::Put(row(1, "a", 1))));
    keyring.apply(&tx(11, 20, KeyChange::Put(row(1, "b", 1))));
    keyring.settle(&"10:12:10".parse().unwrap());
    keyring.settle(&"12:12:".parse().unwrap());
    age(&keyring);
    keyring.settle(&"12:12:".parse().unwrap());
    assert!(!keyring.join(reading("10:12:10", 30), 0), "it lacks what 10 changed");
    assert!(keyring.join(reading("12:12:", 30), 0));
}

#[test]
fn many_changes_of_one_transaction_count_one_by_one() {
    let keyring = Keyring::default();
    let change = || Change::Key(KeyChange::Put(row(1, "a", 1)));
    for i in 0..5 {
        let changes = (0..MAX_RECENT / 2).map(|_| change()).collect();
        let at = u64::from(i) * 10;
        let (commit_lsn, end_lsn) = (Lsn(at), Lsn(at + 10));
        keyring.apply(&Event::Tx(Tx { xid: i + 10, commit_lsn, end_lsn, commit_time: 0, changes }));
        assert!(keyring.state.read().remembered <= MAX_RECENT);
    }
    assert_eq!(keyring.state.read().recent.len(), 2);
    assert!(!keyring.join(reading("12:20:12", 0), 0), "12 is no longer told apart");
    assert!(keyring.join(reading("20:20:", 0), 0));
}

#[test]
fn too_many_changes_are_waited_for_as_a_whole() {
    let keyring = Keyring::default();
    for i in 0..=MAX_RECENT as u32 {
        keyring.apply(&tx(i + 10, u64::from(i), KeyChange::Put(row(1, "a", (i % 7) as u8))));
    }
    assert!(keyring.state.read().recent.len() <= MAX_RECENT);
    assert_eq!(keyring.state.read().remembered, keyring.state.read().recent.len());
    assert!(!keyring.join(reading("12:90000:12", 0), 0));
    keyring.settle(&"90000:90000:".parse().unwrap());
    assert!(keyring.join(reading("90000:90000:", 0), 0));
}
