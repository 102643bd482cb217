//! What a question answers: tables for people, JSON for programs.

use comfy_table::presets;
use serde_json::{Map, Value, json};

use crate::figure::Cell;

/// The answer to one question.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The question's name.
    pub(crate) question: &'static str,
    tables: Vec<Table>,
    notes: Vec<String>,
    faults: Vec<String>,
    data: Vec<Value>,
    detail: Vec<Value>,
}

/// Rows under one title.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, a cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    fn show(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_header(self.columns.clone());
        for row in &self.rows {
            table.add_row(row.iter().map(Cell::show));
        }
        format!("{}\n{table}", self.title)
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row);
            let cells = cells.map(|(name, cell)| ((*name).to_owned(), cell.json()));
            Value::Object(cells.collect::<Map<_, _>>())
        });
        json!({ "title": self.title, "rows": rows.collect::<Vec<_>>() })
    }
}

impl Report {
    /// An empty answer.
    pub(crate) fn new(question: &'static str) -> Self {
        Self { question, ..Self::default() }
    }

    /// Adds a table.
    pub(crate) fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds a line: how it was measured, how it grows, why it cannot be less.
    pub(crate) fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    /// Tells what was measured on.
    pub(crate) fn data(&mut self, data: Value) {
        self.data.push(data);
    }

    /// Adds what only programs read.
    pub(crate) fn detail(&mut self, detail: Value) {
        self.detail.push(detail);
    }

    /// What must hold for the figures to mean anything.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(otherwise());
        }
    }

    /// Whether every operation was accounted for.
    pub(crate) fn is_valid(&self) -> bool {
        self.faults.is_empty()
    }

    /// For people.
    pub(crate) fn print(&self) {
        println!("\n== {} ==", self.question);
        self.tables.iter().for_each(|table| println!("{}", table.show()));
        self.notes.iter().for_each(|line| println!("- {line}"));
        self.data.iter().for_each(|data| println!("- data: {data}"));
        self.faults.iter().for_each(|line| println!("INVALID: {line}"));
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "question": self.question,
            "valid": self.is_valid(),
            "faults": self.faults,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "notes": self.notes,
            "data": self.data,
            "detail": self.detail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_with_a_fault_is_invalid_and_says_so() {
        let mut report = Report::new("q");
        let mut table = Table::new("t", &["a", "b"]);
        table.row([Cell::from("x"), Cell::Count(1)]);
        report.table(table);
        report.check(true, || "never".to_owned());
        assert!(report.is_valid());

        report.check(false, || "one claim was lost".to_owned());
        let json = report.json();
        assert_eq!(json["valid"], false);
        assert_eq!(json["faults"][0], "one claim was lost");
        assert_eq!(json["tables"][0]["rows"][0], json!({ "a": "x", "b": 1 }));
    }
}
