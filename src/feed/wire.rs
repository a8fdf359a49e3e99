//! Bodies and schema of the shape protocol (`runs-and-auth.md`, 5.2 and 6).

use std::fmt::Write as _;

use bytes::Bytes;

use super::image::{BodyKey, Image};
use crate::runs::columns::{Column, ColumnSet, Kind};
use crate::runs::text::normalize;
use crate::runs::tuple::Cell;

/// The body that says that nothing is new.
pub const UP_TO_DATE: &str = r#"[{"headers":{"control":"up-to-date"}}]"#;
/// The body of a 409: start again.
pub const MUST_REFETCH: &str = r#"[{"headers":{"control":"must-refetch"}}]"#;

/// A body of one row message and the up-to-date control, shared by all who need the same.
///
/// An `insert` holds the columns of `key`; an `update` holds those and the id. Columns that the
/// image does not know are left out, never sent as null.
pub fn row_body(image: &Image, key: BodyKey) -> Bytes {
    image.body(key, || {
        let operation = if key.insert { "insert" } else { "update" };
        let mut columns = key.columns;
        columns.insert(Column::Id);
        render(image, columns, key.old_statuses, operation)
    })
}

/// A body that says that the row is gone.
pub fn deleted_body(image: &Image) -> Bytes {
    let mut id = ColumnSet::EMPTY;
    id.insert(Column::Id);
    render(image, id, false, "delete")
}

fn render(image: &Image, columns: ColumnSet, old_statuses: bool, operation: &str) -> Bytes {
    let mut out = Vec::with_capacity(512 + image.size());
    out.extend_from_slice(br#"[{"key":"#);
    let key = format!("\"public\".\"TaskRun\"/\"{}\"", image.text(Column::Id).unwrap_or_default());
    push_json_str(&mut out, &key);
    out.extend_from_slice(br#","value":{"#);
    let mut first = true;
    for column in columns.iter() {
        let cell = image.get(column);
        if cell == Cell::Unchanged {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        push_json_str(&mut out, column.name());
        out.push(b':');
        match cell {
            Cell::Text(text) => push_json_str(&mut out, &value(column, text, old_statuses)),
            Cell::Null | Cell::Unchanged => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(br#"},"headers":{"operation":""#);
    out.extend_from_slice(operation.as_bytes());
    out.extend_from_slice(br#""}},{"headers":{"control":"up-to-date"}}]"#);
    Bytes::from(out)
}

fn value(column: Column, text: &str, old_statuses: bool) -> std::borrow::Cow<'_, str> {
    // Clients of API versions before 2025-07-16 do not know the status (`runs-and-auth.md`, 10.5).
    if old_statuses && column == Column::Status && text == "DEQUEUED" {
        return "EXECUTING".into();
    }
    normalize(column.kind(), text)
}

fn push_json_str(out: &mut Vec<u8>, text: &str) {
    // Writing a string to a vector has no error to report.
    let _ = serde_json::to_writer(out, text);
}

/// The value of the schema header for a set of columns.
pub fn schema(columns: ColumnSet) -> String {
    let mut out = String::from("{");
    for column in columns.iter() {
        if out.len() > 1 {
            out.push(',');
        }
        let (name, dims) = match column.kind() {
            Kind::Text => ("text", ""),
            Kind::Timestamp => ("timestamp", ""),
            Kind::Int4 => ("int4", ""),
            Kind::Float8 => ("float8", ""),
            Kind::Bool => ("bool", ""),
            Kind::Jsonb => ("jsonb", ""),
            Kind::TextArray => ("text", r#","dims":1"#),
        };
        let _ = write!(out, r#""{}":{{"type":"{name}"{dims}}}"#, column.name());
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::tuple::Tuple;

    fn image(cells: &[(Column, &str)]) -> Image {
        let mut data = String::new();
        let mut spans = Vec::new();
        for (column, text) in cells {
            spans.push((*column, data.len(), data.len() + text.len()));
            data.push_str(text);
        }
        let mut tuple = Tuple::new(Bytes::from(data));
        for (column, start, end) in spans {
            tuple.set_text(column, start, end).unwrap();
        }
        tuple.set_unchanged(Column::Output);
        Image::of_row(&tuple)
    }

    #[test]
    fn an_insert_holds_every_column_and_an_update_the_changed_ones_and_the_id() {
        let run = image(&[
            (Column::Id, "cm9k3"),
            (Column::Status, "DEQUEUED"),
            (Column::IsTest, "false"),
        ]);
        let mut columns = ColumnSet::EMPTY;
        columns.insert(Column::Status);
        let key = BodyKey { columns, insert: false, old_statuses: false };
        assert_eq!(
            row_body(&run, key),
            r#"[{"key":"\"public\".\"TaskRun\"/\"cm9k3\"","value":{"id":"cm9k3","status":"DEQUEUED"},"headers":{"operation":"update"}},{"headers":{"control":"up-to-date"}}]"#
        );
        let old = BodyKey { old_statuses: true, ..key };
        assert!(row_body(&run, old).ends_with(
            br#""status":"EXECUTING"},"headers":{"operation":"update"}},{"headers":{"control":"up-to-date"}}]"#
        ));
        let full = BodyKey { columns: ColumnSet::EXPOSED, insert: true, old_statuses: false };
        let body = String::from_utf8(row_body(&run, full).to_vec()).unwrap();
        assert!(body.contains(r#""isTest":"f""#) && body.contains(r#""metadata":null"#), "{body}");
        assert!(!body.contains(r#""output""#), "an unknown column is left out: {body}");
    }

    #[test]
    fn the_schema_names_the_columns_in_order() {
        let skipped = Column::ALL.iter().map(|c| c.name()).filter(|n| *n != "runTags");
        assert_eq!(
            schema(ColumnSet::without(skipped)),
            r#"{"id":{"type":"text"},"taskIdentifier":{"type":"text"},"createdAt":{"type":"timestamp"},"updatedAt":{"type":"timestamp"},"friendlyId":{"type":"text"},"status":{"type":"text"},"runTags":{"type":"text","dims":1}}"#
        );
    }
}
