//! What every statement that reads runs has in common: the snapshot beside the rows, and the cells.

use bytes::{BufMut, Bytes, BytesMut};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::columns::{Column, ColumnSet};
use super::store::{Seen, StoreError};
use super::tuple::Tuple;

/// The one-row source that comes first, so that a statement without a row still tells what it saw.
pub(super) const SEEN: &str = "(SELECT pg_current_snapshot()::text AS snapshot, pg_current_wal_insert_lsn()::text AS lsn) seen";

/// The columns of every statement before the cells. A snapshot may list thousands of transactions,
/// so only the first row carries it.
pub(super) const LEADING: &str = "CASE WHEN coalesce(found.place, 1) = 1 THEN seen.snapshot END,
    CASE WHEN coalesce(found.place, 1) = 1 THEN seen.lsn END, found.place, found.size, found.carried";

/// Where the cells begin.
pub(super) const CELLS: usize = 5;

/// About what a row takes beside its large cells, in bytes.
const REST: usize = 1_024;

/// The columns whose values may be large, and are stored out of line when they are.
pub(super) const LARGE: [Column; 4] =
    [Column::Payload, Column::Output, Column::Metadata, Column::Error];

/// All columns of `table`, by name, without touching their values.
pub(super) fn columns_of(table: &str) -> String {
    let columns = Column::ALL.map(|column| format!(r#"{table}."{}""#, column.name()));
    columns.join(", ")
}

/// The cells of `found` as text, each only if `wanted` of its column holds.
pub(super) fn cells(wanted: impl Fn(Column) -> String) -> String {
    let cell = |column: Column| {
        format!(r#"CASE WHEN {} THEN found."{}"::text END"#, wanted(column), column.name())
    };
    Column::ALL.map(cell).join(", ")
}

/// About how many bytes the row of `t` will take, its large cells counted if `wanted` says so.
///
/// The length of a text is known without reading it. Of JSON only the stored size is, and of that
/// which is compressed no more is certain than that it saved less than 99 in 100.
pub(super) fn size(wanted: impl Fn(Column) -> String) -> String {
    let size = |column: Column| {
        let bytes = match column {
            Column::Error => r#"pg_column_size(t.error) * CASE WHEN pg_column_compression(t.error) IS NULL THEN 1 ELSE 100 END"#.to_owned(),
            _ => format!(r#"octet_length(t."{}")"#, column.name()),
        };
        format!("CASE WHEN {} THEN coalesce({bytes}, 0)::bigint ELSE 0 END", wanted(column))
    };
    format!("{REST} + {}", LARGE.map(size).join(" + "))
}

/// What the statement saw, from its first row.
pub(super) fn seen(row: &PgRow) -> Result<Seen, StoreError> {
    Ok(Seen {
        snapshot: row.try_get::<&str, _>(0)?.parse()?,
        insert_lsn: row.try_get::<&str, _>(1)?.parse()?,
    })
}

/// The row's place among those that were found, from 1; `None` if nothing was.
pub(super) fn place(row: &PgRow) -> Result<Option<usize>, StoreError> {
    let place: Option<i64> = row.try_get(2)?;
    Ok(place.and_then(|place| usize::try_from(place).ok()))
}

/// About how many bytes the row takes.
pub(super) fn row_size(row: &PgRow) -> Result<usize, StoreError> {
    let size: i64 = row.try_get(3)?;
    Ok(usize::try_from(size).unwrap_or_default())
}

/// Whether the row's cells came with it.
pub(super) fn carried(row: &PgRow) -> Result<bool, StoreError> {
    Ok(row.try_get::<Option<bool>, _>(4)?.unwrap_or_default())
}

/// The row's cells; those that are not `known` are marked as unknown.
pub(super) fn tuple(row: &PgRow, known: ColumnSet) -> Result<Tuple, StoreError> {
    let mut texts = [None; Column::COUNT];
    for column in known.iter() {
        texts[column as usize] = row.try_get::<Option<&str>, _>(CELLS + column as usize)?;
    }
    let mut data = BytesMut::with_capacity(texts.iter().flatten().map(|text| text.len()).sum());
    let mut spans = [(0, 0); Column::COUNT];
    for (text, span) in texts.iter().zip(&mut spans) {
        let text = text.unwrap_or_default();
        *span = (data.len(), data.len() + text.len());
        data.put_slice(text.as_bytes());
    }
    let mut tuple = Tuple::new(Bytes::from(data));
    for column in Column::ALL {
        let (start, end) = spans[column as usize];
        if !known.contains(column) {
            tuple.set_unchanged(column);
        } else if texts[column as usize].is_some() {
            tuple.set_text(column, start, end)?;
        }
    }
    Ok(tuple)
}
