//! What commands print: tables for people, JSON for programs.

use std::io::IsTerminal;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    Table,
    /// One JSON document, or one a line where updates stream.
    Json,
}

/// Prints results to stdout and progress to stderr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a program reads the output.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints `document` for programs, or `rows` under `header` for people.
    pub(crate) fn rows(self, document: &Value, header: &[&str], rows: Vec<Vec<String>>) {
        if self.is_json() {
            return print_line(&pretty(document));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.iter().map(|it| it.to_uppercase()));
        table.add_rows(rows);
        for line in table.to_string().lines() {
            print_line(line.trim_end());
        }
    }

    /// Prints one thing: `document` for programs, name and value a line for people.
    pub(crate) fn fields(self, document: &Value, fields: &[(&str, String)]) {
        if self.is_json() {
            return print_line(&pretty(document));
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in fields {
            print_line(&format!("{name:<width$}  {value}"));
        }
    }

    /// Prints one update of a stream.
    pub(crate) fn update(self, document: &Value, line: &str) {
        if self.is_json() { print_line(&document.to_string()) } else { print_line(line) }
    }

    /// Tells a person how it goes; programs that read JSON are not bothered.
    pub(crate) fn progress(self, line: &str) {
        if !self.is_json() {
            eprintln!("{line}");
        }
    }
}

/// Whether a person looks at stderr.
pub(crate) fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints a line to stdout. A reader that went away (`| head`) is no error.
pub(crate) fn print_line(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn pretty(document: &Value) -> String {
    serde_json::to_string_pretty(document).unwrap_or_else(|_| document.to_string())
}
