//! A client's copy of a feed: messages merged as the SDK merges them, and looked at.
//!
//! Writers raise a run's version with every change, so every message must bring a newer one: an
//! equal one came twice, a lower one went back in time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::followed::{Followed, Row, Rows};

/// What a client holds of a feed.
#[derive(Clone, Default)]
pub struct Merged {
    rows: Rows,
    /// The newest version of each run, also of what a refetch made the client drop.
    newest: BTreeMap<String, i64>,
    /// The runs whose end was told.
    gone: BTreeSet<String>,
}

/// The version that a row's metadata holds; a run has none before the first.
pub fn version_of(row: &Row) -> Option<i64> {
    let metadata = row.get("metadata")?;
    let Some(text) = metadata.as_str() else { return Some(0) };
    let value: Value = serde_json::from_str(text).expect("JSON metadata");
    Some(value["v"].as_i64().unwrap_or(0))
}

impl Merged {
    /// Drops the rows, as at the beginning of an opening answer.
    pub fn restart(&mut self) {
        self.rows.clear();
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Takes in a row message, or says what is wrong with it.
    pub fn apply(&mut self, feed: &Followed, message: &Value) -> Result<(), String> {
        let operation = message["headers"]["operation"].as_str().unwrap_or_default();
        let value = message["value"].as_object().ok_or("a message without a value")?;
        let id = value.get("id").and_then(Value::as_str).ok_or("a row without its id")?;
        if message["key"] != format!(r#""public"."TaskRun"/"{id}""#) {
            return Err(format!("{} is not the key of {id}", message["key"]));
        }
        if operation == "delete" {
            self.rows.remove(id);
            self.gone.insert(id.to_owned());
            return Ok(());
        }
        if self.gone.contains(id) {
            return Err(format!("an {operation} of {id} after its end"));
        }
        let held = self.rows.get(id);
        let row = match (operation, held) {
            ("insert", _) => {
                let columns: BTreeSet<&str> = value.keys().map(String::as_str).collect();
                if columns != feed.columns().into_iter().collect() {
                    return Err(format!("an insert of {id} with the columns {columns:?}"));
                }
                value.clone()
            }
            ("update", Some(held)) => {
                if !value.contains_key("metadata") {
                    return Err(format!("an update of {id} that brings no version: {value:?}"));
                }
                let mut row = Row::clone(held);
                row.extend(value.clone());
                row
            }
            _ => return Err(format!("an {operation} of {id}, which is not held")),
        };
        let version = version_of(&row).unwrap_or(0);
        if held.is_some_and(|held| version_of(held) == Some(version)) {
            return Err(format!("version {version} of {id} came twice"));
        }
        let newest = self.newest.entry(id.to_owned()).or_insert(version);
        if version < *newest {
            return Err(format!("{id} went back from version {newest} to {version}"));
        }
        *newest = version;
        if !feed.holds(&row) {
            return Err(format!("{id} is not of this feed: {row:?}"));
        }
        self.rows.insert(id.to_owned(), Arc::new(row));
        Ok(())
    }

    /// In what it differs from the table. The end of a run that the window did not know reaches
    /// nobody, so a row of none of the `existing` runs may be left.
    pub fn difference(&self, wanted: &Rows, existing: &BTreeSet<String>) -> Option<String> {
        for (id, row) in wanted {
            let Some(held) = self.rows.get(id) else { return Some(format!("{id} is missing")) };
            if held != row {
                let differs = |(name, value): &(&String, &Value)| held.get(*name) != Some(value);
                let cells: Vec<_> = row.iter().filter(differs).collect();
                return Some(format!("{id} should have {cells:?}, it is {held:?}"));
            }
        }
        let extra = |id: &&String| !wanted.contains_key(*id) && existing.contains(*id);
        self.rows.keys().find(extra).map(|id| format!("{id} is not in the table's feed"))
    }

    /// Whether it holds rows of runs that are gone.
    pub fn has_leftovers(&self, wanted: &Rows) -> bool {
        self.rows.len() > wanted.len()
    }
}
