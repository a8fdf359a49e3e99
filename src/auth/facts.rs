//! Rows of the key tables, held so that credentials can be judged by them: all of the database's, or
//! those that one query read.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::Arc,
};

use crate::replication::keys::{
    AdditionalKeyRow, EnvironmentRow, KeyChange, KeyDigest, KeyRow, KeyTable, RotatedKeyRow,
};

/// What a change of a row concerns. Whatever was let in because of it is judged again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Concern {
    /// All that rests on this environment, as itself or as the one above.
    Environment(Arc<str>),
    /// All environments of this project.
    Project(Arc<str>),
    /// Everything, one way or another.
    All,
    /// Perhaps everything: what has changed is not known.
    Lost,
}

impl Concern {
    /// Whether it is not about single rows.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All | Self::Lost)
    }
}

/// Rows by what they are called within something else.
type Names = HashMap<Box<str>, Vec<Arc<str>>>;

/// The rows, each table by id, and the ways to find them.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    environments: HashMap<Arc<str>, Arc<EnvironmentRow>>,
    /// Whether they are deleted.
    projects: HashMap<Arc<str>, bool>,
    rotated: HashMap<Arc<str>, Arc<RotatedKeyRow>>,
    additional: HashMap<Arc<str>, Arc<AdditionalKeyRow>>,
    /// The environment of a root key. It is unique.
    by_key: HashMap<KeyDigest, Arc<str>>,
    /// An environment's branches by name; archived ones may share theirs.
    branches: HashMap<Arc<str>, Names>,
    rotated_by_key: HashMap<KeyDigest, Vec<Arc<str>>>,
    rotated_of: HashMap<Arc<str>, Vec<Arc<str>>>,
    by_hash: HashMap<KeyDigest, Arc<str>>,
    bytes: usize,
}

/// What a row takes besides its texts: itself, its places in the maps, allocations.
const ROW_BYTES: usize = 320;

impl Facts {
    /// What the rows take in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many rows are held.
    pub fn rows(&self) -> usize {
        self.environments.len() + self.projects.len() + self.rotated.len() + self.additional.len()
    }

    pub fn environment(&self, id: &str) -> Option<&Arc<EnvironmentRow>> {
        self.environments.get(id)
    }

    /// Whether there is such a project and it is not deleted.
    pub fn is_alive(&self, project: &str) -> bool {
        self.projects.get(project).is_some_and(|deleted| !deleted)
    }

    pub fn by_root_key(&self, key: &KeyDigest) -> Option<&Arc<EnvironmentRow>> {
        self.environments.get(self.by_key.get(key)?)
    }

    /// Of the rows of a rotated key, the one whose grace lasts longest. Which environments they
    /// belong to nobody keeps unique.
    pub fn by_rotated_key(&self, key: &KeyDigest) -> Option<&Arc<RotatedKeyRow>> {
        let rows = self.rotated_by_key.get(key)?.iter().filter_map(|id| self.rotated.get(id));
        rows.max_by_key(|row| (row.ends, &row.id))
    }

    pub fn by_additional_key(&self, key: &KeyDigest) -> Option<&Arc<AdditionalKeyRow>> {
        self.additional.get(self.by_hash.get(key)?)
    }

    /// The environment's branch of this name that is not archived.
    pub fn branch(&self, of: &str, name: &str) -> Option<&Arc<EnvironmentRow>> {
        let ids = self.branches.get(of)?.get(name)?;
        let rows = ids.iter().filter_map(|id| self.environments.get(id));
        rows.filter(|row| !row.archived).min_by_key(|row| &row.id)
    }

    /// The environment's rotated keys.
    pub fn rotated(&self, environment: &str) -> impl Iterator<Item = &Arc<RotatedKeyRow>> {
        let ids = self.rotated_of.get(environment).into_iter().flatten();
        ids.filter_map(|id| self.rotated.get(id))
    }

    /// Takes in a change. What it concerns is added to `concerns`: nothing where the row already was
    /// as the change says, but for columns that do not matter. `complete` says whether a row that is
    /// not held does not exist.
    pub fn apply(&mut self, change: KeyChange, complete: bool, concerns: &mut Vec<Concern>) {
        match change {
            KeyChange::Put(KeyRow::Environment(row)) => {
                let row = Arc::new(row);
                let before = self.environments.get(&row.id).cloned();
                if before.as_ref() == Some(&row) {
                    return;
                }
                concerned(&row, concerns);
                if let Some(before) = before {
                    concerned(&before, concerns);
                    self.unlink_environment(&before);
                }
                self.link_environment(row);
            }
            KeyChange::Put(KeyRow::Project(row)) => {
                let before = self.projects.insert(Arc::clone(&row.id), row.deleted);
                if before.is_none() {
                    self.bytes += ROW_BYTES;
                }
                if before != Some(row.deleted) {
                    concerns.push(Concern::Project(row.id));
                }
            }
            KeyChange::Put(KeyRow::Rotated(row)) => {
                let row = Arc::new(row);
                let before = self.rotated.get(&row.id).cloned();
                if before.as_ref() == Some(&row) {
                    return;
                }
                concerns.push(Concern::Environment(Arc::clone(&row.environment)));
                if let Some(before) = before {
                    concerns.push(Concern::Environment(Arc::clone(&before.environment)));
                    self.unlink_rotated(&before);
                }
                self.link_rotated(row);
            }
            KeyChange::Put(KeyRow::Additional(mut row)) => {
                let before = self.additional.get(&row.id).cloned();
                if row.scopes.is_none() {
                    row.scopes = before.as_ref().and_then(|before| before.scopes.clone());
                }
                let row = Arc::new(row);
                if before.as_ref() == Some(&row) {
                    return;
                }
                concerns.push(Concern::Environment(Arc::clone(&row.environment)));
                if let Some(before) = before {
                    concerns.push(Concern::Environment(Arc::clone(&before.environment)));
                    self.unlink_additional(&before);
                }
                self.link_additional(row);
            }
            KeyChange::Gone(table, id) => {
                if !self.remove(table, &id, concerns) && !complete {
                    // What hung on it is not known.
                    concerns.push(Concern::All);
                }
            }
            KeyChange::Lost => concerns.push(Concern::Lost),
        }
    }

    /// Takes in a row that a query read.
    pub fn put(&mut self, row: KeyRow) {
        self.apply(KeyChange::Put(row), true, &mut Vec::new());
    }

    fn remove(&mut self, table: KeyTable, id: &str, concerns: &mut Vec<Concern>) -> bool {
        match table {
            KeyTable::Environments => {
                let Some(row) = self.environments.get(id).cloned() else { return false };
                concerned(&row, concerns);
                self.unlink_environment(&row);
            }
            KeyTable::Projects => {
                let Some((id, _)) = self.projects.remove_entry(id) else { return false };
                self.bytes -= ROW_BYTES;
                concerns.push(Concern::Project(id));
            }
            KeyTable::Rotated => {
                let Some(row) = self.rotated.get(id).cloned() else { return false };
                concerns.push(Concern::Environment(Arc::clone(&row.environment)));
                self.unlink_rotated(&row);
            }
            KeyTable::Additional => {
                let Some(row) = self.additional.get(id).cloned() else { return false };
                concerns.push(Concern::Environment(Arc::clone(&row.environment)));
                self.unlink_additional(&row);
            }
        }
        true
    }

    fn link_environment(&mut self, row: Arc<EnvironmentRow>) {
        self.bytes += environment_bytes(&row);
        self.by_key.insert(*row.key.digest(), Arc::clone(&row.id));
        if let (Some(parent), Some(name)) = (&row.parent, &row.branch) {
            let names = self.branches.entry(Arc::clone(parent)).or_default();
            names.entry(name.clone()).or_default().push(Arc::clone(&row.id));
        }
        self.environments.insert(Arc::clone(&row.id), row);
    }

    fn unlink_environment(&mut self, row: &EnvironmentRow) {
        self.bytes -= environment_bytes(row);
        self.environments.remove(&row.id);
        // Within a transaction two rows may pass a key on.
        if self.by_key.get(row.key.digest()) == Some(&row.id) {
            self.by_key.remove(row.key.digest());
        }
        if let (Some(parent), Some(name)) = (&row.parent, &row.branch)
            && let Entry::Occupied(mut names) = self.branches.entry(Arc::clone(parent))
        {
            drop_from(names.get_mut(), name.clone(), &row.id);
            if names.get().is_empty() {
                names.remove();
            }
        }
    }

    fn link_rotated(&mut self, row: Arc<RotatedKeyRow>) {
        self.bytes += rotated_bytes(&row);
        self.rotated_by_key.entry(*row.key.digest()).or_default().push(Arc::clone(&row.id));
        self.rotated_of.entry(Arc::clone(&row.environment)).or_default().push(Arc::clone(&row.id));
        self.rotated.insert(Arc::clone(&row.id), row);
    }

    fn unlink_rotated(&mut self, row: &RotatedKeyRow) {
        self.bytes -= rotated_bytes(row);
        self.rotated.remove(&row.id);
        drop_from(&mut self.rotated_by_key, *row.key.digest(), &row.id);
        drop_from(&mut self.rotated_of, Arc::clone(&row.environment), &row.id);
    }

    fn link_additional(&mut self, row: Arc<AdditionalKeyRow>) {
        self.bytes += additional_bytes(&row);
        if let Some(hash) = row.hash {
            self.by_hash.insert(hash, Arc::clone(&row.id));
        }
        self.additional.insert(Arc::clone(&row.id), row);
    }

    fn unlink_additional(&mut self, row: &AdditionalKeyRow) {
        self.bytes -= additional_bytes(row);
        self.additional.remove(&row.id);
        if let Some(hash) = row.hash
            && self.by_hash.get(&hash) == Some(&row.id)
        {
            self.by_hash.remove(&hash);
        }
    }
}

fn concerned(row: &EnvironmentRow, concerns: &mut Vec<Concern>) {
    concerns.push(Concern::Environment(Arc::clone(&row.id)));
    concerns.extend(row.parent.as_ref().map(|parent| Concern::Environment(Arc::clone(parent))));
}

fn drop_from<K: Hash + Eq>(index: &mut HashMap<K, Vec<Arc<str>>>, key: K, id: &str) {
    if let Entry::Occupied(mut ids) = index.entry(key) {
        ids.get_mut().retain(|other| &**other != id);
        if ids.get().is_empty() {
            ids.remove();
        }
    }
}

fn environment_bytes(row: &EnvironmentRow) -> usize {
    let branch = row.branch.as_ref().map_or(0, |name| 2 * name.len() + 64);
    ROW_BYTES + row.id.len() + row.key.reveal().len() + row.project.len() + branch
}

fn rotated_bytes(row: &RotatedKeyRow) -> usize {
    ROW_BYTES + row.id.len() + row.key.reveal().len() + row.environment.len()
}

fn additional_bytes(row: &AdditionalKeyRow) -> usize {
    let scopes = row.scopes.iter().flat_map(|scopes| scopes.iter());
    let scopes: usize = scopes.map(|scope| size_of::<String>() + scope.len()).sum();
    ROW_BYTES + row.id.len() + row.environment.len() + scopes
}
