//! The last known state of a run, copied into one compact buffer.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::runs::columns::{Column, ColumnSet};
use crate::runs::tuple::{Cell, Tuple};

/// Bodies rendered from one image that are kept for sharing. More column sets than this among the
/// subscribers of one run are rendered anew each time.
const SHARED_BODIES: usize = 4;

/// A run's columns at one version. A column that the stream never sent is *unknown*.
#[derive(Debug)]
pub struct Image {
    text: Box<str>,
    ends: [u32; Column::COUNT],
    null: ColumnSet,
    unknown: ColumnSet,
    bodies: Mutex<Vec<(BodyKey, Bytes)>>,
}

/// What tells the bodies of one image apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyKey {
    /// The columns in it.
    pub columns: ColumnSet,
    /// `insert` rather than `update`.
    pub insert: bool,
    /// Statuses as older API versions know them.
    pub old_statuses: bool,
}

impl Image {
    /// The image of a row that a query returned whole.
    pub fn of_row(row: &Tuple) -> Self {
        Self::build(|column| row.get(column))
    }

    /// The image after a change, from the new row and what is known of the row before: cells that
    /// were not sent are taken from there.
    pub fn after(new: &Tuple, old: Option<&Tuple>, before: Option<&Image>) -> Self {
        Self::build(|column| match new.get(column) {
            Cell::Unchanged => match old.map(|row| row.get(column)) {
                Some(cell @ (Cell::Text(_) | Cell::Null)) => cell,
                _ => before.map_or(Cell::Unchanged, |image| image.get(column)),
            },
            cell => cell,
        })
    }

    /// This image with its unknown columns taken from a row that a query returned.
    pub fn filled_from(&self, row: &Image) -> Self {
        Self::build(|column| match self.get(column) {
            Cell::Unchanged => row.get(column),
            cell => cell,
        })
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
        Image { text: text.into(), ends, null, unknown, bodies: Mutex::default() }
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

    /// Which columns are unknown.
    pub fn unknown(&self) -> ColumnSet {
        self.unknown
    }

    /// Memory that the image takes, in bytes.
    pub fn size(&self) -> usize {
        size_of::<Image>() + self.text.len()
    }

    /// The body for `key`, rendered by `render` unless another subscriber had it already.
    pub fn body(&self, key: BodyKey, render: impl FnOnce() -> Bytes) -> Bytes {
        let mut bodies = self.bodies.lock();
        if let Some((_, body)) = bodies.iter().find(|(cached, _)| *cached == key) {
            return body.clone();
        }
        // Rendered under the lock, so that a thousand subscribers that wake at once render it once.
        let body = render();
        if bodies.len() < SHARED_BODIES {
            bodies.push((key, body.clone()));
        }
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
