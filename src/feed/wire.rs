//! Bodies and schema of the shape protocol (`runs-and-auth.md`, 5.2 and 6).

use std::fmt::Write as _;

use bytes::Bytes;

use super::image::{Image, MessageKey, Operation};
use crate::runs::columns::{Column, ColumnSet, Kind};
use crate::runs::text::normalize;
use crate::runs::tuple::Cell;

/// The message that ends a body which brings its client up to date.
const CONTROL: &[u8] = br#"{"headers":{"control":"up-to-date"}}"#;
/// The body of a 409: start again.
pub const MUST_REFETCH: &str = r#"[{"headers":{"control":"must-refetch"}}]"#;

/// Writes a body, message by message.
#[derive(Debug)]
pub(super) struct Writer {
    out: Vec<u8>,
    ends: Vec<u32>,
}

impl Writer {
    /// With room for so many bytes of messages.
    pub fn new(room: usize) -> Self {
        let mut out = Vec::with_capacity(room + CONTROL.len() + 3);
        out.push(b'[');
        Writer { out, ends: Vec::new() }
    }

    /// How long the body is so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// A message of a run. Columns that the image does not know are left out, never sent as null.
    pub fn push(&mut self, image: &Image, key: MessageKey) {
        self.separate();
        let out = &mut self.out;
        let (operation, mut columns) = match key.operation {
            Operation::Insert => ("insert", key.columns),
            Operation::Update => ("update", key.columns),
            Operation::Delete => ("delete", ColumnSet::EMPTY),
        };
        columns.insert(Column::Id);
        let id = image.text(Column::Id).unwrap_or_default();
        out.extend_from_slice(br#"{"key":"#);
        push_json_str(out, &format!("\"public\".\"TaskRun\"/\"{id}\""));
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
            push_json_str(out, column.name());
            out.push(b':');
            match cell {
                Cell::Text(text) => push_json_str(out, &value(column, text, key.old_statuses)),
                Cell::Null | Cell::Unchanged => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(br#"},"headers":{"operation":""#);
        out.extend_from_slice(operation.as_bytes());
        out.extend_from_slice(br#""}}"#);
        self.end();
    }

    /// A message that was rendered before.
    pub fn push_rendered(&mut self, message: &[u8]) {
        self.separate();
        self.out.extend_from_slice(message);
        self.end();
    }

    fn separate(&mut self) {
        if !self.ends.is_empty() {
            self.out.push(b',');
        }
    }

    fn end(&mut self) {
        // A body is held far below 4 GiB by the limits on what is rendered into one.
        self.ends.push(u32::try_from(self.out.len()).unwrap_or(u32::MAX));
    }

    /// Ends a body that brings its client up to date. Gives where its messages end as well.
    pub fn complete(mut self) -> (Bytes, Box<[u32]>) {
        self.separate();
        self.out.extend_from_slice(CONTROL);
        self.unfinished()
    }

    /// Ends a body that another continues.
    pub fn unfinished(mut self) -> (Bytes, Box<[u32]>) {
        self.out.push(b']');
        (Bytes::from(self.out), self.ends.into())
    }
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

    fn body(messages: &[(&Image, MessageKey)]) -> Bytes {
        let mut writer = Writer::new(0);
        messages.iter().for_each(|(image, key)| writer.push(image, *key));
        writer.complete().0
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
        let key = MessageKey { columns, operation: Operation::Update, old_statuses: false };
        assert_eq!(
            body(&[(&run, key)]),
            r#"[{"key":"\"public\".\"TaskRun\"/\"cm9k3\"","value":{"id":"cm9k3","status":"DEQUEUED"},"headers":{"operation":"update"}},{"headers":{"control":"up-to-date"}}]"#
        );
        let old = MessageKey { old_statuses: true, ..key };
        assert!(body(&[(&run, old)]).ends_with(
            br#""status":"EXECUTING"},"headers":{"operation":"update"}},{"headers":{"control":"up-to-date"}}]"#
        ));
        let full = MessageKey {
            columns: ColumnSet::EXPOSED,
            operation: Operation::Insert,
            old_statuses: false,
        };
        let text = String::from_utf8(body(&[(&run, full)]).to_vec()).unwrap();
        assert!(text.contains(r#""isTest":"f""#) && text.contains(r#""metadata":null"#), "{text}");
        assert!(!text.contains(r#""output""#), "an unknown column is left out: {text}");
    }

    #[test]
    fn a_deletion_holds_the_id_alone_and_a_body_may_end_without_the_control() {
        let run = image(&[(Column::Id, "cm9k3"), (Column::Status, "DEQUEUED")]);
        let columns = ColumnSet::EXPOSED;
        let key = MessageKey { columns, operation: Operation::Delete, old_statuses: false };
        let mut writer = Writer::new(0);
        writer.push(&run, key);
        writer.push(&run, key);
        let (text, ends) = writer.unfinished();
        let message = r#"{"key":"\"public\".\"TaskRun\"/\"cm9k3\"","value":{"id":"cm9k3"},"headers":{"operation":"delete"}}"#;
        assert_eq!(text, format!("[{message},{message}]"));
        assert_eq!(*ends, [message.len() as u32 + 1, 2 * message.len() as u32 + 2]);
        assert_eq!(body(&[]), r#"[{"headers":{"control":"up-to-date"}}]"#);
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
