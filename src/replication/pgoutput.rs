//! The messages of pgoutput, protocol 1, in text (`postgres.md`, 4.2).
//!
//! Rows stay in the message's own buffer. Columns are mapped by name from every Relation message,
//! since their order differs between databases and changes under a running stream.

use std::collections::HashMap;

use bytes::Bytes;

use super::change::Change;
use super::keys::{KeyChange, KeyTable};
use crate::runs::columns::Column;
use crate::runs::tuple::{Cell, CellError, Tuple};

/// A message that is not what the protocol says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends in the middle of a field.
    #[error("the message ends in the middle of a field")]
    Truncated,
    /// A tag that the protocol does not have there.
    #[error("unexpected {what} {tag:?}")]
    Unexpected {
        /// What was read.
        what: &'static str,
        /// The byte found.
        tag: char,
    },
    /// A row of a table that no Relation message has described.
    #[error("a row of the unknown relation {0}")]
    UnknownRelation(u32),
    /// A row has more or fewer cells than its table.
    #[error("a row of {found} cells in a table of {expected} columns")]
    CellCount {
        /// The cells of the row.
        found: usize,
        /// The columns of the table.
        expected: usize,
    },
    /// A name or a cell is not text.
    #[error("not UTF-8")]
    NotUtf8,
    /// A cell is not text.
    #[error(transparent)]
    Cell(#[from] CellError),
}

/// What the stream has said of its tables, and the decoder of their rows.
#[derive(Debug, Default)]
pub struct Decoder {
    relations: HashMap<u32, Relation>,
}

#[derive(Debug)]
struct Relation {
    table: Table,
    /// For each column in the stream's order, which of ours it is.
    columns: Vec<Ours>,
}

/// Which column of ours one of the stream's is.
#[derive(Clone, Copy, Debug)]
enum Ours {
    Run(Column),
    /// The place in [`KeyTable::columns`].
    Key(usize),
    None,
}

/// The cells of a row that credentials are checked against. One that the table lacks counts as not sent.
type KeyCells<'a> = [Cell<'a>; KeyTable::MOST_COLUMNS];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Runs,
    Keys(KeyTable),
    Other,
}

impl Table {
    fn named(schema: &str, name: &str) -> Table {
        if schema != "public" {
            return Table::Other;
        }
        if name == "TaskRun" {
            return Table::Runs;
        }
        let keys = KeyTable::ALL.into_iter().find(|table| table.name() == name);
        keys.map_or(Table::Other, Table::Keys)
    }
}

impl Decoder {
    /// Reads one message and appends what it changes. Messages that change no row that matters here
    /// append nothing.
    pub fn decode(&mut self, message: Bytes, out: &mut Vec<Change>) -> Result<(), DecodeError> {
        let mut input = Input { data: &message, at: 0 };
        match input.u8()? {
            b'R' => self.relation(&mut input),
            b'I' => self.insert(&mut input, &message, out),
            b'U' => self.update(&mut input, &message, out),
            b'D' => self.delete(&mut input, &message, out),
            b'T' => self.truncate(&mut input, out),
            // Begin, Commit, Origin, Type, Message
            b'B' | b'C' | b'O' | b'Y' | b'M' => Ok(()),
            tag => Err(DecodeError::Unexpected { what: "message", tag: tag.into() }),
        }
    }

    fn relation(&mut self, input: &mut Input<'_>) -> Result<(), DecodeError> {
        let oid = input.u32()?;
        let schema = input.text()?;
        let table = Table::named(schema, input.text()?);
        input.u8()?; // the identity: old rows say themselves what they are
        let count = input.u16()?;
        let mut columns = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            input.u8()?; // part of the identity
            let name = input.text()?;
            columns.push(match table {
                Table::Runs => Column::named(name).map_or(Ours::None, Ours::Run),
                Table::Keys(keys) => {
                    let at = keys.columns().iter().position(|column| *column == name);
                    at.map_or(Ours::None, Ours::Key)
                }
                Table::Other => Ours::None,
            });
            input.skip(8)?; // type and modifier
        }
        self.relations.insert(oid, Relation { table, columns });
        Ok(())
    }

    fn relation_of(&self, oid: u32) -> Result<&Relation, DecodeError> {
        self.relations.get(&oid).ok_or(DecodeError::UnknownRelation(oid))
    }

    fn insert(
        &self,
        input: &mut Input<'_>,
        message: &Bytes,
        out: &mut Vec<Change>,
    ) -> Result<(), DecodeError> {
        let relation = self.relation_of(input.u32()?)?;
        expect(input.u8()?, b'N')?;
        match relation.table {
            Table::Runs => out.push(Change::RunInserted(relation.tuple(input, message)?)),
            Table::Keys(table) => out.push(put(table, &relation.key_cells(input)?)),
            Table::Other => {}
        }
        Ok(())
    }

    fn update(
        &self,
        input: &mut Input<'_>,
        message: &Bytes,
        out: &mut Vec<Change>,
    ) -> Result<(), DecodeError> {
        let relation = self.relation_of(input.u32()?)?;
        match relation.table {
            Table::Runs => {}
            Table::Keys(table) => return relation.update_key(table, input, out),
            Table::Other => return Ok(()),
        }
        let mut tag = input.u8()?;
        let mut old = None;
        if matches!(tag, b'O' | b'K') {
            let tuple = relation.tuple(input, message)?;
            old = Some((tag, tuple));
            tag = input.u8()?;
        }
        expect(tag, b'N')?;
        let new = relation.tuple(input, message)?;
        if let Some((_, tuple)) = &old
            && let (Some(before), Some(after)) = (tuple.text(Column::Id), new.text(Column::Id))
            && before != after
        {
            out.push(Change::RunDeleted(before.to_owned()));
        }
        // In a key tuple all but the key is NULL and means "not sent".
        let old = old.and_then(|(tag, tuple)| (tag == b'O').then(|| Box::new(tuple)));
        out.push(Change::RunUpdated { new, old });
        Ok(())
    }

    fn delete(
        &self,
        input: &mut Input<'_>,
        message: &Bytes,
        out: &mut Vec<Change>,
    ) -> Result<(), DecodeError> {
        let relation = self.relation_of(input.u32()?)?;
        match input.u8()? {
            b'K' | b'O' => {}
            tag => return Err(DecodeError::Unexpected { what: "row kind", tag: tag.into() }),
        }
        match relation.table {
            Table::Runs => {
                let tuple = relation.tuple(input, message)?;
                if let Cell::Text(id) = tuple.get(Column::Id) {
                    out.push(Change::RunDeleted(id.to_owned()));
                }
            }
            Table::Keys(table) => {
                if let Cell::Text(id) = relation.key_cells(input)?[0] {
                    out.push(Change::Key(KeyChange::Gone(table, id.into())));
                }
            }
            Table::Other => {}
        }
        Ok(())
    }

    fn truncate(&self, input: &mut Input<'_>, out: &mut Vec<Change>) -> Result<(), DecodeError> {
        let count = input.u32()?;
        input.u8()?; // cascade, restart identity
        for _ in 0..count {
            match self.relation_of(input.u32()?)?.table {
                Table::Runs => out.push(Change::RunsTruncated),
                Table::Keys(_) => out.push(Change::Key(KeyChange::Lost)),
                Table::Other => {}
            }
        }
        Ok(())
    }
}

fn put(table: KeyTable, cells: &KeyCells<'_>) -> Change {
    Change::Key(table.row(cells).map_or(KeyChange::Lost, KeyChange::Put))
}

impl Relation {
    fn expect_cells(&self, input: &mut Input<'_>) -> Result<(), DecodeError> {
        let (found, expected) = (usize::from(input.u16()?), self.columns.len());
        if found == expected { Ok(()) } else { Err(DecodeError::CellCount { found, expected }) }
    }

    fn key_cells<'a>(&self, input: &mut Input<'a>) -> Result<KeyCells<'a>, DecodeError> {
        self.expect_cells(input)?;
        let mut cells = [Cell::Unchanged; KeyTable::MOST_COLUMNS];
        for column in &self.columns {
            let cell = match input.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => {
                    let length = input.u32()? as usize;
                    let start = input.at;
                    input.skip(length)?;
                    // What is not for us may be in any encoding.
                    let Ours::Key(_) = column else { continue };
                    let text = std::str::from_utf8(&input.data[start..input.at]);
                    Cell::Text(text.map_err(|_| DecodeError::NotUtf8)?)
                }
                tag => return Err(DecodeError::Unexpected { what: "cell", tag: tag.into() }),
            };
            if let Ours::Key(at) = column {
                cells[*at] = cell;
            }
        }
        Ok(cells)
    }

    fn update_key(
        &self,
        table: KeyTable,
        input: &mut Input<'_>,
        out: &mut Vec<Change>,
    ) -> Result<(), DecodeError> {
        let mut tag = input.u8()?;
        let mut old = None;
        if matches!(tag, b'O' | b'K') {
            old = Some((tag, self.key_cells(input)?));
            tag = input.u8()?;
        }
        expect(tag, b'N')?;
        let mut new = self.key_cells(input)?;
        if let Some((tag, old)) = old {
            if let (Cell::Text(before), true) = (old[0], old[0] != new[0]) {
                out.push(Change::Key(KeyChange::Gone(table, before.into())));
            }
            // A whole old row holds what the new one leaves out.
            let unchanged = new.iter_mut().zip(old).filter(|(new, _)| **new == Cell::Unchanged);
            if tag == b'O' {
                unchanged.for_each(|(new, old)| *new = old);
            }
        }
        out.push(put(table, &new));
        Ok(())
    }

    fn tuple(&self, input: &mut Input<'_>, message: &Bytes) -> Result<Tuple, DecodeError> {
        self.expect_cells(input)?;
        let mut tuple = Tuple::new(message.clone());
        for column in &self.columns {
            match input.u8()? {
                b'n' => {}
                b'u' => {
                    if let Ours::Run(column) = column {
                        tuple.set_unchanged(*column);
                    }
                }
                b't' => {
                    let length = input.u32()? as usize;
                    let start = input.at;
                    input.skip(length)?;
                    if let Ours::Run(column) = column {
                        tuple.set_text(*column, start, start + length)?;
                    }
                }
                tag => return Err(DecodeError::Unexpected { what: "cell", tag: tag.into() }),
            }
        }
        Ok(tuple)
    }
}

fn expect(found: u8, tag: u8) -> Result<(), DecodeError> {
    if found == tag {
        Ok(())
    } else {
        Err(DecodeError::Unexpected { what: "row kind", tag: found.into() })
    }
}

struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let found = rest.first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.at += N;
        Ok(*found)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_be_bytes)
    }

    fn skip(&mut self, length: usize) -> Result<(), DecodeError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.data.len());
        self.at = end.ok_or(DecodeError::Truncated)?;
        Ok(())
    }

    /// A string that ends with a zero byte.
    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == 0).ok_or(DecodeError::Truncated)?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| DecodeError::NotUtf8)
    }
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;
