//! Terraform's JSON lines, made readable.

use std::collections::HashMap;

use berth_proto::v1;
use jiff::Timestamp;
use serde::Deserialize;

/// Most text of errors that is kept, in bytes.
const MAX_ERRORS: usize = 16 * 1024;

/// What one run of Terraform said, beside its log.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Errors: summary and detail of each.
    errors: String,
    /// The last line that was no JSON, in case nothing else tells what went wrong.
    last_plain: String,
    /// The state, when Terraform could write it nowhere and printed it. Never for the log.
    pub(crate) printed_state: Option<Vec<u8>>,
    /// The line before was one of JSON that was cut: what follows may be its rest.
    cut: bool,
    started: HashMap<String, Timestamp>,
    pub(crate) timings: Vec<v1::Timing>,
}

/// What of a line goes to the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    pub(crate) level: v1::LogLevel,
    pub(crate) text: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "@level", default)]
    level: String,
    #[serde(rename = "@message", default)]
    message: String,
    #[serde(rename = "@timestamp", default)]
    timestamp: Option<Timestamp>,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    diagnostic: Option<Diagnostic>,
    #[serde(default)]
    hook: Option<Hook>,
    #[serde(default)]
    state: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Diagnostic {
    severity: String,
    summary: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    range: Option<Range>,
    #[serde(default)]
    snippet: Option<Snippet>,
}

#[derive(Deserialize)]
struct Range {
    filename: String,
    start: Position,
}

#[derive(Deserialize)]
struct Position {
    line: u64,
}

#[derive(Deserialize)]
struct Snippet {
    #[serde(default)]
    code: String,
}

#[derive(Deserialize)]
struct Hook {
    #[serde(default)]
    resource: HookResource,
    #[serde(default)]
    action: String,
}

#[derive(Deserialize, Default)]
struct HookResource {
    #[serde(default)]
    addr: String,
    #[serde(default)]
    implied_provider: String,
}

impl Heard {
    /// Takes in one line of stdout and says what of it is worth logging.
    pub(crate) fn hear(&mut self, line: &str) -> Option<Readable> {
        let json = line.starts_with("{\"@");
        let Ok(parsed) = serde_json::from_str::<Line>(line) else {
            // Half a line of JSON tells a person nothing, and may hold values that are sensitive.
            if json || self.cut {
                let text = "A line of Terraform's was too long to be read".to_owned();
                let first = !std::mem::replace(&mut self.cut, true);
                return first.then_some(Readable { level: v1::LogLevel::Warn, text });
            }
            return self.hear_plain(line, v1::LogLevel::Info);
        };
        self.cut = false;
        if let Some(state @ serde_json::Value::Object(_)) = parsed.state {
            self.printed_state = Some(state.to_string().into_bytes());
        }
        if let (Some(hook), Some(at)) = (&parsed.hook, parsed.timestamp) {
            self.time(&parsed.kind, hook, at);
        }
        if let Some(diagnostic) = parsed.diagnostic {
            return Some(self.diagnose(&diagnostic));
        }
        // The version opens every run; outputs are no template's business here.
        let silent = ["version", "outputs"].contains(&&*parsed.kind) || parsed.message.is_empty();
        (!silent).then(|| Readable { level: level(&parsed.level), text: parsed.message })
    }

    /// Takes in a line that is text: `init` speaks so, and whatever goes to stderr.
    pub(crate) fn hear_plain(&mut self, line: &str, level: v1::LogLevel) -> Option<Readable> {
        let text = line.trim_end();
        let bare = text.trim_start_matches(['╷', '│', '╵', ' ']);
        if bare.is_empty() {
            return None;
        }
        bare.clone_into(&mut self.last_plain);
        if level == v1::LogLevel::Error {
            self.keep(bare);
        }
        Some(Readable { level, text: text.to_owned() })
    }

    /// What went wrong, for the job's error.
    pub(crate) fn error(&self) -> &str {
        let errors = self.errors.trim();
        if errors.is_empty() { &self.last_plain } else { errors }
    }

    fn keep(&mut self, text: &str) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push_str(text);
            self.errors.push('\n');
        }
    }

    fn diagnose(&mut self, it: &Diagnostic) -> Readable {
        let error = it.severity == "error";
        if error {
            self.keep(&[&*it.summary, &*it.detail].join(": "));
        }
        let mut text = vec![format!("{}: {}", if error { "Error" } else { "Warning" }, it.summary)];
        if let Some(Range { filename, start }) = &it.range {
            let address = it.address.as_deref().map(|it| format!(" ({it})")).unwrap_or_default();
            text.push(format!("  on {filename} line {}{address}", start.line));
        }
        let code = it.snippet.as_ref().map_or("", |it| &it.code);
        text.extend(code.lines().map(|line| format!("    {line}")));
        if !it.detail.is_empty() {
            text.push(it.detail.clone());
        }
        let level = if error { v1::LogLevel::Error } else { v1::LogLevel::Warn };
        Readable { level, text: text.join("\n") }
    }

    fn time(&mut self, kind: &str, hook: &Hook, at: Timestamp) {
        let address = &hook.resource.addr;
        match kind {
            "apply_start" => {
                self.started.insert(address.clone(), at);
            }
            "apply_complete" | "apply_errored" => {
                let started = self.started.remove(address).unwrap_or(at);
                self.timings.push(v1::Timing {
                    started_at_us: started.as_microsecond(),
                    ended_at_us: at.as_microsecond(),
                    stage: v1::Step::Apply.into(),
                    source: hook.resource.implied_provider.clone(),
                    resource: address.clone(),
                    action: hook.action.clone(),
                });
            }
            _ => {}
        }
    }
}

fn level(name: &str) -> v1::LogLevel {
    match name {
        "trace" => v1::LogLevel::Trace,
        "debug" => v1::LogLevel::Debug,
        "warn" => v1::LogLevel::Warn,
        "error" => v1::LogLevel::Error,
        _ => v1::LogLevel::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_becomes_text_with_its_place_and_the_jobs_error() {
        let line = r#"{"@level":"error","@message":"Error: Bad","type":"diagnostic","diagnostic":
            {"severity":"error","summary":"Bad value","detail":"It must be small.",
             "address":"box.a","range":{"filename":"main.tf","start":{"line":3}},
             "snippet":{"code":"size = 9"}}}"#;
        let mut heard = Heard::default();
        let readable = heard.hear(line).unwrap();
        assert_eq!(readable.level, v1::LogLevel::Error);
        let text = "Error: Bad value\n  on main.tf line 3 (box.a)\n    size = 9\nIt must be small.";
        assert_eq!(readable.text, text);
        assert_eq!(heard.error(), "Bad value: It must be small.");
    }

    #[test]
    fn an_init_error_in_a_box_reads_without_the_box() {
        let mut heard = Heard::default();
        for line in ["╷", "│ Error: No provider", "│ ", "│ It is not there.", "╵"] {
            heard.hear_plain(line, v1::LogLevel::Error);
        }
        assert_eq!(heard.error(), "Error: No provider\nIt is not there.");
    }

    #[test]
    fn what_a_resource_took_is_kept() {
        let line = |kind: &str, second: u8| {
            format!(
                r#"{{"@timestamp":"2026-01-01T00:00:0{second}Z","@message":"m","type":"{kind}",
                "hook":{{"resource":{{"addr":"box.a","implied_provider":"box"}},"action":"create"}}}}"#
            )
        };
        let mut heard = Heard::default();
        heard.hear(&line("apply_start", 1));
        heard.hear(&line("apply_complete", 3));
        let [timing] = &heard.timings[..] else { panic!("{heard:?}") };
        assert_eq!(timing.ended_at_us - timing.started_at_us, 2_000_000);
        assert_eq!((&*timing.resource, &*timing.action), ("box.a", "create"));
    }

    #[test]
    fn a_state_that_is_printed_is_kept_and_a_cut_line_is_not_logged() {
        let mut heard = Heard::default();
        let line = r#"{"@level":"info","@message":"Emergency state dump","state":{"serial":7}}"#;
        let readable = heard.hear(line).unwrap();
        assert!(!readable.text.contains("serial"), "{readable:?}");
        assert_eq!(heard.printed_state.as_deref(), Some(&br#"{"serial":7}"#[..]));
        assert!(heard.hear(&line[..40]).unwrap().text.contains("too long"));
        assert_eq!(heard.hear(&line[40..]), None);
        assert_eq!(heard.hear(line).unwrap().text, "Emergency state dump");
    }

    #[test]
    fn plain_text_and_warnings_are_no_errors_but_better_than_nothing() {
        let mut heard = Heard::default();
        heard.hear("panic: oh");
        assert_eq!(heard.error(), "panic: oh");
    }
}
