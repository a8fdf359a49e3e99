//! Results as Markdown.

use crate::ledger::Faults;

/// A document that grows by sections.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Adds a heading.
    pub fn heading(&mut self, heading: &str) {
        self.line("");
        self.line(&format!("### {heading}"));
        self.line("");
    }

    /// Adds a list of facts.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        for (name, value) in facts {
            self.line(&format!("- {name}: {value}"));
        }
    }

    /// Begins a table.
    pub fn table<const N: usize>(&mut self, columns: [&str; N]) {
        self.line(&format!("| {} |", columns.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(N)));
    }

    /// Adds a row to the table that was begun.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.line(&format!("| {} |", cells.join(" | ")));
    }
}

/// What happened beside plain deliveries in some trials together, in words; a dash when nothing did.
/// The number is of live polls that ended without news.
pub fn events<'a>(trials: impl IntoIterator<Item = (&'a Faults, u64)>) -> String {
    let trials: Vec<_> = trials.into_iter().collect();
    let total = |value: fn(&Faults) -> u64| trials.iter().map(|(f, _)| value(f)).sum::<u64>();
    let counts = [
        ("skipped", total(|f| f.skipped)),
        ("repeated", total(|f| f.repeated)),
        ("backward", total(|f| f.backward)),
        ("refetches", total(|f| f.refetches)),
        ("refusals", total(|f| f.refusals)),
        ("disconnects", total(|f| f.disconnects)),
        ("empty polls", trials.iter().map(|(_, held_out)| held_out).sum()),
    ];
    let named: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if named.is_empty() { "–".to_owned() } else { named.join(", ") }
}

/// What others used of the machine in the worst of some trials, as a percentage of one core.
pub fn others(shares: impl IntoIterator<Item = f64>) -> String {
    format!("{:.0} %", shares.into_iter().fold(0.0, f64::max) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_named() {
        let faults = Faults { skipped: 2, ..Faults::default() };
        assert_eq!(events([(&faults, 0), (&faults, 3)]), "4 skipped, 3 empty polls");
        assert_eq!(events([(&Faults::default(), 0)]), "–");
    }

    #[test]
    fn a_table_has_as_many_columns_in_each_row() {
        let mut report = Report::default();
        report.table(["a", "b"]);
        report.row(["1".to_owned(), "2".to_owned()]);
        assert_eq!(report.text(), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}
