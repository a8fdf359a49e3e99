use proptest::prelude::*;

use super::super::keys::KeyRow;
use super::*;

const RUNS: u32 = 16_384;
const KEYS: u32 = 16_390;

#[derive(Clone, Debug)]
enum Wire {
    Null,
    Unchanged,
    Text(Vec<u8>),
}

fn text(text: &str) -> Wire {
    Wire::Text(text.as_bytes().to_vec())
}

fn relation(oid: u32, name: &str, columns: &[&str]) -> Bytes {
    let mut out = vec![b'R'];
    out.extend(oid.to_be_bytes());
    out.extend(b"public\0");
    out.extend(name.as_bytes());
    out.extend([0, b'd']);
    out.extend((columns.len() as u16).to_be_bytes());
    for column in columns {
        out.push(0);
        out.extend(column.as_bytes());
        out.push(0);
        out.extend([0; 8]);
    }
    out.into()
}

fn tuple(kind: u8, cells: &[Wire]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            Wire::Null => out.push(b'n'),
            Wire::Unchanged => out.push(b'u'),
            Wire::Text(text) => {
                out.push(b't');
                out.extend((text.len() as u32).to_be_bytes());
                out.extend(text);
            }
        }
    }
    out
}

fn message(tag: u8, oid: u32, tuples: &[Vec<u8>]) -> Bytes {
    let mut out = vec![tag];
    out.extend(oid.to_be_bytes());
    out.extend(tuples.concat());
    out.into()
}

fn decoder(columns: &[&str]) -> Decoder {
    let mut decoder = Decoder::default();
    decoder.decode(relation(RUNS, "TaskRun", columns), &mut Vec::new()).unwrap();
    decoder
        .decode(relation(KEYS, "Project", &["name", "id", "deletedAt"]), &mut Vec::new())
        .unwrap();
    decoder
}

#[test]
fn columns_are_found_by_name_wherever_they_are() {
    let mut decoder = decoder(&["queue", "status", "id"]);
    let cells = [text("q"), text("PENDING"), text("r1")];
    let mut out = Vec::new();
    decoder.decode(message(b'I', RUNS, &[tuple(b'N', &cells)]), &mut out).unwrap();
    decoder.decode(relation(RUNS, "TaskRun", &["id", "new", "status"]), &mut out).unwrap();
    let cells = [text("r1"), text("x"), Wire::Unchanged];
    decoder.decode(message(b'U', RUNS, &[tuple(b'N', &cells)]), &mut out).unwrap();
    let [Change::RunInserted(first), Change::RunUpdated { new, old: None }] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((first.text(Column::Id), first.text(Column::Status)), (Some("r1"), Some("PENDING")));
    assert_eq!((new.get(Column::Status), new.get(Column::Payload)), (Cell::Unchanged, Cell::Null));
}

#[test]
fn the_nulls_of_a_key_tuple_are_no_old_row_and_a_changed_key_deletes_the_old_one() {
    let mut decoder = decoder(&["id", "status"]);
    let mut out = Vec::new();
    let (key, new) = ([text("r1"), Wire::Null], [text("r2"), text("X")]);
    let moved = message(b'U', RUNS, &[tuple(b'K', &key), tuple(b'N', &new)]);
    decoder.decode(moved, &mut out).unwrap();
    let full = message(b'U', RUNS, &[tuple(b'O', &new), tuple(b'N', &new)]);
    decoder.decode(full, &mut out).unwrap();
    let [
        Change::RunDeleted(id),
        Change::RunUpdated { old: None, .. },
        Change::RunUpdated { old: Some(old), .. },
    ] = &out[..]
    else {
        panic!("{out:?}");
    };
    assert_eq!((id.as_str(), old.text(Column::Status)), ("r1", Some("X")));
}

#[test]
fn deletions_truncations_and_changes_of_keys_are_told_apart() {
    let mut decoder = decoder(&["id", "status"]);
    let mut out = Vec::new();
    decoder
        .decode(message(b'D', RUNS, &[tuple(b'K', &[text("r1"), Wire::Null])]), &mut out)
        .unwrap();
    let row = tuple(b'N', &[text("n"), text("p"), Wire::Null]);
    decoder.decode(message(b'I', KEYS, &[row]), &mut out).unwrap();
    let mut truncate = vec![b'T', 0, 0, 0, 1, 0];
    truncate.extend(RUNS.to_be_bytes());
    decoder.decode(truncate.into(), &mut out).unwrap();
    assert!(
        matches!(&out[..], [Change::RunDeleted(id), Change::Key(KeyChange::Put(_)), Change::RunsTruncated] if id == "r1"),
        "{out:?}"
    );
}

#[test]
fn rows_of_keys_are_read_by_name_under_either_identity() {
    let mut decoder = decoder(&["id", "status"]);
    let mut changes = |kind, tuples: &[Vec<u8>]| {
        let mut out = Vec::new();
        decoder.decode(message(kind, KEYS, tuples), &mut out).unwrap();
        out.into_iter()
            .map(|change| match change {
                Change::Key(KeyChange::Put(KeyRow::Project(row))) => {
                    format!("{} {}", row.id, row.deleted)
                }
                Change::Key(KeyChange::Gone(KeyTable::Projects, id)) => format!("{id} gone"),
                Change::Key(KeyChange::Lost) => "lost".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let row = |kind, id: &str, deleted| tuple(kind, &[text("n"), text(id), deleted]);
    let id_alone = |id: &str| tuple(b'K', &[Wire::Null, text(id), Wire::Null]);
    assert_eq!(changes(b'U', &[row(b'N', "p", text("now"))]), ["p true"]);
    assert_eq!(
        changes(b'U', &[row(b'O', "p", Wire::Null), row(b'N', "p", text("now"))]),
        ["p true"]
    );
    assert_eq!(
        changes(b'U', &[row(b'O', "p", text("now")), row(b'N', "p", Wire::Unchanged)]),
        ["p true"],
        "what the new row leaves out stands in the old one"
    );
    assert_eq!(changes(b'U', &[row(b'N', "p", Wire::Unchanged)]), ["lost"], "never guessed");
    assert_eq!(changes(b'U', &[id_alone("p"), row(b'N', "q", Wire::Null)]), ["p gone", "q false"]);
    assert_eq!(changes(b'D', &[id_alone("p")]), ["p gone"]);
    assert_eq!(changes(b'D', &[row(b'O', "p", Wire::Null)]), ["p gone"]);
    let mut truncate = vec![b'T', 0, 0, 0, 1, 0];
    truncate.extend(KEYS.to_be_bytes());
    let mut out = Vec::new();
    decoder.decode(truncate.into(), &mut out).unwrap();
    assert!(matches!(out[..], [Change::Key(KeyChange::Lost)]));
}

#[test]
fn what_the_protocol_does_not_say_is_an_error() {
    let mut decoder = decoder(&["id", "status"]);
    let mut out = Vec::new();
    for (bad, error) in [
        (message(b'I', 7, &[]), DecodeError::UnknownRelation(7)),
        (Bytes::new(), DecodeError::Truncated),
        (
            message(b'I', RUNS, &[tuple(b'N', &[Wire::Null])]),
            DecodeError::CellCount { found: 1, expected: 2 },
        ),
        (message(b'?', RUNS, &[]), DecodeError::Unexpected { what: "message", tag: '?' }),
    ] {
        assert_eq!(decoder.decode(bad, &mut out), Err(error));
    }
    let latin1 = tuple(b'N', &[Wire::Text(vec![0xE4]), Wire::Null]);
    assert!(decoder.decode(message(b'I', RUNS, &[latin1]), &mut out).is_err());
    assert!(out.is_empty());
}

fn cell() -> impl Strategy<Value = Wire> {
    prop_oneof![
        Just(Wire::Null),
        Just(Wire::Unchanged),
        ".{0,20}".prop_map(|text| Wire::Text(text.into_bytes())),
    ]
}

fn any_message() -> impl Strategy<Value = Bytes> {
    let row = || prop::collection::vec(cell(), 3);
    let tag = prop::sample::select(vec![b'I', b'U', b'D']);
    let kinds =
        prop::sample::select(vec![vec![b'N'], vec![b'O', b'N'], vec![b'K', b'N'], vec![b'K']]);
    (tag, kinds, row(), row()).prop_map(|(tag, kinds, a, b)| {
        let rows: Vec<_> = kinds.iter().zip([a, b]).map(|(kind, row)| tuple(*kind, &row)).collect();
        message(tag, RUNS, &rows)
    })
}

proptest! {
    #[test]
    fn a_row_reads_as_it_was_written(row in prop::collection::vec(cell(), 3)) {
        let columns = ["payload", "id", "output"];
        let mut out = Vec::new();
        decoder(&columns).decode(message(b'I', RUNS, &[tuple(b'N', &row)]), &mut out).unwrap();
        let [Change::RunInserted(tuple)] = &out[..] else { panic!("{out:?}") };
        for (name, cell) in columns.iter().zip(&row) {
            let found = tuple.get(Column::named(name).unwrap());
            match cell {
                Wire::Null => prop_assert_eq!(found, Cell::Null),
                Wire::Unchanged => prop_assert_eq!(found, Cell::Unchanged),
                Wire::Text(text) => prop_assert_eq!(found, Cell::Text(std::str::from_utf8(text).unwrap())),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decoder(&["id", "status", "output"]).decode(bytes.into(), &mut Vec::new());
    }

    #[test]
    fn mutated_messages_never_panic(
        message in any_message(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        let mut decoder = decoder(&["id", "status", "output"]);
        let mut bytes = message.to_vec();
        let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len() + 1));
        bytes[at] = byte;
        bytes.truncate(cut);
        let _ = decoder.decode(bytes.into(), &mut Vec::new());
        // And the decoder is good for the next.
        let _ = decoder.decode(message, &mut Vec::new());
    }
}
