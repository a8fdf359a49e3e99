//! The last known state of a run, copied into one compact buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::body::{Bodies, Body};
use super::wire;
use crate::runs::columns::{Column, ColumnSet};
use crate::runs::created::Floor;
use crate::runs::tuple::{Cell, Tuple};

/// Bodies rendered from one image that are kept for sharing. With more column sets than this among
/// its subscribers, the oldest of them is rendered anew when it is wanted again.
const SHARED_BODIES: usize = 4;

/// A run's columns at one version. A column that the stream never sent is *unknown*.
#[derive(Debug)]
pub struct Image {
    text: Box<str>,
    ends: [u32; Column::COUNT],
    null: ColumnSet,
    unknown: ColumnSet,
    /// When the run was created, as far as a list's floor can tell.
    created: Option<Floor>,
    bodies: Mutex<Vec<(MessageKey, Body)>>,
    /// This image with its unknown columns read from the database, once somebody needed them.
    pub(super) filled: OnceCell<Option<Arc<Image>>>,
    kept: Kept,
}

/// What is rendered from images that a window holds counts as memory of the window.
#[derive(Debug, Default)]
struct Kept {
    ledger: Option<Arc<AtomicUsize>>,
    bytes: AtomicUsize,
}

impl Kept {
    fn add(&self, bytes: usize) {
        if let Some(ledger) = &self.ledger {
            ledger.fetch_add(bytes, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn remove(&self, bytes: usize) {
        if let Some(ledger) = &self.ledger {
            ledger.fetch_sub(bytes, Ordering::Relaxed);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.remove(self.bytes.load(Ordering::Relaxed));
    }
}

/// What a message does to the client's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Here is the whole row.
    Insert,
    /// Here is what changed of it.
    Update,
    /// It is gone, or of the feed no longer.
    Delete,
}

/// What tells the messages of one image apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageKey {
    /// The columns in it, besides the id.
    pub columns: ColumnSet,
    /// What it does.
    pub operation: Operation,
    /// Statuses as older API versions know them.
    pub old_statuses: bool,
}

impl Image {
    /// The image of a row that a query returned whole.
    pub fn of_row(row: &Tuple) -> Self {
        Self::build(|column| row.get(column))
    }

    /// The image after a change, from the new row and what is known of the row before: cells that
    /// were not sent are taken from there. `tags` are those of a run of which nothing else is known.
    pub fn after(
        new: &Tuple,
        old: Option<&Tuple>,
        before: Option<&Image>,
        tags: Option<&str>,
    ) -> Self {
        let known = |column| match (before, tags) {
            (Some(image), _) => image.get(column),
            (None, Some(tags)) if column == Column::RunTags => Cell::Text(tags),
            (None, _) => Cell::Unchanged,
        };
        Self::build(|column| match new.get(column) {
            Cell::Unchanged => match old.map(|row| row.get(column)) {
                Some(cell @ (Cell::Text(_) | Cell::Null)) => cell,
                _ => known(column),
            },
            cell => cell,
        })
    }

    /// This image, whose tags are unknown, with these.
    pub fn with_tags(&self, tags: Cell<'_>) -> Self {
        Self::build(|column| if column == Column::RunTags { tags } else { self.get(column) })
    }

    /// Whether the stream has not said which tags the run carries.
    pub fn lacks_tags(&self) -> bool {
        self.unknown.contains(Column::RunTags)
    }

    /// This image with its unknown columns taken from a row that a query returned.
    pub fn filled_from(&self, row: &Image) -> Self {
        Self::build(|column| match self.get(column) {
            Cell::Unchanged => row.get(column),
            cell => cell,
        })
    }

    /// Has what is rendered from the image counted there, until the image goes.
    pub fn counted_in(mut self, ledger: &Arc<AtomicUsize>) -> Self {
        self.kept.ledger = Some(Arc::clone(ledger));
        self
    }

    /// The same, and the image itself counts there as well: it hangs on one that the window holds.
    pub fn counted_whole_in(self, ledger: &Arc<AtomicUsize>) -> Self {
        let image = self.counted_in(ledger);
        image.kept.add(image.size());
        image
    }

    fn build<'a>(cell_of: impl Fn(Column) -> Cell<'a>) -> Self {
        let length = Column::ALL.iter().map(|column| match cell_of(*column) {
            Cell::Text(text) => text.len(),
            Cell::Null | Cell::Unchanged => 0,
        });
        let mut text = String::with_capacity(length.sum());
        let mut ends = [0; Column::COUNT];
        let (mut null, mut unknown) = (ColumnSet::EMPTY, ColumnSet::EMPTY);
        for column in Column::ALL {
            match cell_of(column) {
                Cell::Text(value) => text.push_str(value),
                Cell::Null => null.insert(column),
                Cell::Unchanged => unknown.insert(column),
            }
            // Postgres limits a row's text to 1 GiB, well inside 32 bits.
            ends[column as usize] = text.len() as u32;
        }
        let created = match cell_of(Column::CreatedAt) {
            Cell::Text(text) => Floor::of(text),
            Cell::Null | Cell::Unchanged => None,
        };
        Image {
            text: text.into(),
            ends,
            null,
            unknown,
            created,
            bodies: Mutex::default(),
            filled: OnceCell::new(),
            kept: Kept::default(),
        }
    }

    /// The column's cell; [`Cell::Unchanged`] where it is unknown.
    pub fn get(&self, column: Column) -> Cell<'_> {
        if self.null.contains(column) {
            return Cell::Null;
        }
        if self.unknown.contains(column) {
            return Cell::Unchanged;
        }
        let i = column as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Cell::Text(&self.text[start as usize..self.ends[i] as usize])
    }

    /// The column's text, if it is known and not NULL.
    pub fn text(&self, column: Column) -> Option<&str> {
        match self.get(column) {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Unchanged => None,
        }
    }

    /// The highest floor of a list that the run is not below, if it is known when it was created.
    pub fn created(&self) -> Option<Floor> {
        self.created
    }

    /// Which columns are unknown.
    pub fn unknown(&self) -> ColumnSet {
        self.unknown
    }

    /// Memory that the image takes, in bytes.
    pub fn size(&self) -> usize {
        size_of::<Image>() + self.text.len()
    }

    /// The complete body of this one message, shared with whoever else needs it.
    pub(super) fn body(&self, key: MessageKey, all: &Bodies) -> Body {
        let mut bodies = self.bodies.lock();
        if let Some((_, body)) = bodies.iter().find(|(cached, _)| *cached == key) {
            return body.clone();
        }
        // Rendered under the lock, so that a thousand subscribers that wake at once render it once.
        let mut writer = wire::Writer::new(512 + self.size());
        writer.push(self, key);
        let (plain, ends) = writer.complete();
        let body = all.body(plain, ends);
        if bodies.len() >= SHARED_BODIES {
            let (_, oldest) = bodies.remove(0);
            self.kept.remove(oldest.plain().len());
        }
        self.kept.add(body.plain().len());
        bodies.push((key, body.clone()));
        body
    }
}

/// The exposed columns in which `new` differs from the row that `before` reads; one that `before`
/// does not know differs.
pub fn differing<'a>(before: impl Fn(Column) -> Cell<'a>, new: &Image) -> ColumnSet {
    let mut changed = ColumnSet::EMPTY;
    for column in &Column::ALL[..Column::EXPOSED] {
        let cell = new.get(*column);
        if cell != Cell::Unchanged && cell != before(*column) {
            changed.insert(*column);
        }
    }
    changed
}
