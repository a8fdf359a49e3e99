use super::*;

use Cell::Text as T;

#[test]
fn rows_are_read_by_their_columns_and_a_missing_cell_is_never_guessed() {
    let cells = [T("e"), T("PREVIEW"), T("tr_k"), T("p"), T("up"), T("b"), Cell::Null];
    let Some(KeyRow::Environment(row)) = KeyTable::Environments.row(&cells) else { panic!() };
    assert_eq!((&*row.id, row.kind, &**row.root()), ("e", EnvironmentType::Preview, "up"));
    assert_eq!((row.branch.as_deref(), row.archived), (Some("b"), false));
    for at in 0..cells.len() {
        let mut cells = cells;
        cells[at] = Cell::Unchanged;
        assert_eq!(KeyTable::Environments.row(&cells), None, "without cell {at}");
    }
    let hash = digest("x").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let cells =
        [T("k"), T(&hash), T("e"), T(r#"{admin,"a b"}"#), Cell::Null, T("1970-01-01 00:00:01")];
    let Some(KeyRow::Additional(row)) = KeyTable::Additional.row(&cells) else { panic!() };
    assert_eq!((row.hash, row.ends, row.revoked), (Some(digest("x")), Some(1000), false));
    assert_eq!(row.scopes.as_deref().unwrap(), ["admin", "a b"]);
    assert_eq!(parse_hash(&hash.to_uppercase()), None);
}

#[test]
fn a_time_that_cannot_be_read_has_passed() {
    let times = ["infinity", "-infinity", "0044-03-15 01:02:03.004 BC", "soon"].map(millis);
    assert_eq!(times, [u64::MAX, 0, 0, 0]);
    assert_eq!(millis("2026-11-21 10:45:19.2"), 1_795_257_919_200);
}

#[test]
fn no_debug_text_shows_a_key_or_a_hash() {
    let row = |table: KeyTable, cells: &[Cell<'_>]| format!("{:?}", table.row(cells).unwrap());
    let hash = "ab".repeat(32);
    let shown = row(KeyTable::Rotated, &[T("r"), T("hush"), T("e"), T("infinity")])
        + &row(KeyTable::Additional, &[T("k"), T(&hash), T("e"), T("{}"), Cell::Null, Cell::Null]);
    assert!(
        !shown.contains("hush") && !shown.contains("abab") && !shown.contains("171"),
        "{shown}"
    );
}
