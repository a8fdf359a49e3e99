//! One version of a run row as the stream or a query gave it: text cells, borrowed from one buffer.

use bytes::Bytes;

use super::columns::Column;

/// A cell of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// Not sent, since it is stored out of line and did not change. Never the same as NULL.
    Unchanged,
    /// The value in Postgres' text form.
    Text(&'a str),
}

/// The columns of one row version that Runwire reads.
///
/// A column that the table lacks reads as NULL. The cells' texts are slices of `data`, checked to be
/// UTF-8 when they were set.
#[derive(Clone, Debug)]
pub struct Tuple {
    data: Bytes,
    spans: [Span; Column::COUNT],
}

#[derive(Clone, Copy, Debug)]
enum Span {
    Null,
    Unchanged,
    Text { start: u32, end: u32 },
}

/// A cell's bytes lay outside of the tuple's data, or were not UTF-8.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("column {0:?} is not text")]
pub struct CellError(&'static str);

impl Tuple {
    /// A row of nothing but NULLs whose texts will be slices of `data`.
    pub fn new(data: Bytes) -> Self {
        Tuple { data, spans: [Span::Null; Column::COUNT] }
    }

    /// Sets the column to the bytes `start..end` of the data.
    pub fn set_text(&mut self, column: Column, start: usize, end: usize) -> Result<(), CellError> {
        let error = CellError(column.name());
        let (Ok(from), Ok(to)) = (u32::try_from(start), u32::try_from(end)) else {
            return Err(error);
        };
        match self.data.get(start..end).map(std::str::from_utf8) {
            Some(Ok(_)) => self.spans[column as usize] = Span::Text { start: from, end: to },
            _ => return Err(error),
        }
        Ok(())
    }

    /// What it takes in memory, in bytes; clones share the texts.
    pub fn size(&self) -> usize {
        size_of::<Tuple>() + self.data.len()
    }

    /// Marks the column as not sent.
    pub fn set_unchanged(&mut self, column: Column) {
        self.spans[column as usize] = Span::Unchanged;
    }

    /// The column's cell.
    pub fn get(&self, column: Column) -> Cell<'_> {
        match self.spans[column as usize] {
            Span::Null => Cell::Null,
            Span::Unchanged => Cell::Unchanged,
            // Checked when it was set; a second check of a few bytes keeps this free of unsafe code.
            Span::Text { start, end } => {
                let bytes = &self.data[start as usize..end as usize];
                Cell::Text(std::str::from_utf8(bytes).unwrap_or_default())
            }
        }
    }

    /// The column's text; `None` for NULL and for a cell that was not sent.
    pub fn text(&self, column: Column) -> Option<&str> {
        match self.get(column) {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}
