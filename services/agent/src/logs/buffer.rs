//! The lines of one agent that wait to be sent, within bounds.

use std::collections::{BTreeMap, VecDeque};

use berth_domain::state::LogLevel;
use jiff::Timestamp;
use uuid::Uuid;

use crate::api::LogLine;
use crate::lines::json_len;

/// Bytes of lines (as JSON) kept while they cannot be sent.
const MAX_BUFFER: usize = 4 << 20;
/// Bytes of one `PATCH`.
pub(super) const MAX_BATCH: usize = 256 << 10;
/// What a line takes besides its text, time, level and names of fields; rounded up.
const LINE_OVERHEAD: usize = 96;
/// What a batch takes besides its lines.
const BATCH_OVERHEAD: usize = 128;

#[derive(Debug)]
pub(super) struct Buffer {
    sources: BTreeMap<Uuid, Source>,
    /// Of everything in `sources` and of the batch in flight.
    pub(super) bytes: usize,
    /// The last call worked.
    pub(super) online: bool,
    pub(super) closed: bool,
    /// The server has as many lines of this agent as it keeps.
    pub(super) full: bool,
    /// What was not sent because of that.
    pub(super) unsent: Dropped,
    /// Of the next line. Not its time: that may be set back.
    next: u64,
    /// Grows when the agent's identity changes, which makes earlier registrations void.
    pub(super) epoch: u64,
}

#[derive(Debug, Default)]
struct Source {
    name: String,
    lines: VecDeque<Waiting>,
    /// What was dropped before these.
    dropped: Dropped,
}

#[derive(Debug)]
struct Waiting {
    /// Among the lines of all sources.
    place: u64,
    cost: usize,
    line: LogLine,
}

#[derive(Debug, Default)]
pub(super) struct Dropped {
    lines: u64,
    bytes: u64,
    /// When the last of them was written.
    at: Timestamp,
}

impl Dropped {
    pub(super) fn add(&mut self, line: &LogLine) {
        self.lines += 1;
        self.bytes += line.output.len() as u64;
        self.at = line.created_at;
    }

    /// The line that stands in their place.
    fn told(self) -> LogLine {
        let Self { lines, bytes, at } = self;
        let output = format!(
            "[berth agent: {lines} lines ({bytes} bytes) are missing here: the server was away \
             and the agent's buffer of {MAX_BUFFER} bytes was full]"
        );
        LogLine { created_at: at, level: LogLevel::Warn, output }
    }
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) source: Uuid,
    pub(super) name: String,
    pub(super) lines: Vec<LogLine>,
    pub(super) cost: usize,
}

pub(super) fn cost(line: &LogLine) -> usize {
    json_len(&line.output) + LINE_OVERHEAD
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            bytes: 0,
            // Until a call has failed: a burst at the very start should wait, not be dropped.
            online: true,
            closed: false,
            full: false,
            unsent: Dropped::default(),
            next: 0,
            epoch: 0,
        }
    }
}

impl Buffer {
    pub(super) fn fits(&self, more: usize) -> bool {
        self.bytes + more <= MAX_BUFFER
    }

    pub(super) fn append(&mut self, id: Uuid, name: &str, line: LogLine, cost: usize) {
        while !self.fits(cost) && self.drop_oldest() {}
        self.bytes += cost;
        let source = self.sources.entry(id).or_default();
        if source.name != name {
            name.clone_into(&mut source.name);
        }
        source.lines.push_back(Waiting { place: self.next, cost, line });
        self.next += 1;
    }

    /// The source whose next line is the oldest.
    fn oldest(&self) -> Option<Uuid> {
        let next = |(id, source): (&Uuid, &Source)| Some((source.lines.front()?.place, *id));
        self.sources.iter().filter_map(next).min().map(|(_, id)| id)
    }

    /// The server takes no more: what waits is not sent.
    pub(super) fn fill(&mut self, unsent: &[LogLine]) {
        self.full = true;
        for line in unsent {
            self.unsent.add(line);
        }
        for (_, source) in std::mem::take(&mut self.sources) {
            for Waiting { line, cost, .. } in source.lines {
                self.bytes -= cost;
                self.unsent.add(&line);
            }
        }
    }

    /// Says what was not sent since the server was full. Then it may be sent to again.
    pub(super) fn settle_full(&mut self) {
        if std::mem::take(&mut self.full) {
            let Dropped { lines, bytes, .. } = std::mem::take(&mut self.unsent);
            tracing::warn!(lines, bytes, "log lines were not kept: the server had no room left");
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(source) = self.oldest().and_then(|id| self.sources.get_mut(&id)) else {
            return false;
        };
        let Some(Waiting { line, cost, .. }) = source.lines.pop_front() else { return false };
        source.dropped.add(&line);
        self.bytes -= cost;
        true
    }

    pub(super) fn take(&mut self) -> Option<Batch> {
        let only_dropped = || {
            let (id, _) = self.sources.iter().find(|(_, source)| source.dropped.lines > 0)?;
            Some(*id)
        };
        let id = self.oldest().or_else(only_dropped)?;
        let source = self.sources.get_mut(&id)?;
        let mut batch = Batch { source: id, name: source.name.clone(), lines: Vec::new(), cost: 0 };
        let mut size = BATCH_OVERHEAD;
        if source.dropped.lines > 0 {
            let line = std::mem::take(&mut source.dropped).told();
            size += cost(&line);
            batch.lines.push(line);
        }
        while let Some(Waiting { cost, .. }) = source.lines.front() {
            if size + cost > MAX_BATCH {
                break;
            }
            size += cost;
            batch.cost += cost;
            batch.lines.extend(source.lines.pop_front().map(|it| it.line));
        }
        if source.lines.is_empty() {
            self.sources.remove(&id);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Uuid = Uuid::from_u128(1);

    fn line(second: i64, text: &str) -> LogLine {
        LogLine {
            created_at: Timestamp::from_second(second).unwrap(),
            level: LogLevel::Info,
            output: text.to_owned(),
        }
    }

    fn append(buffer: &mut Buffer, source: Uuid, line: LogLine) {
        let cost = cost(&line);
        buffer.append(source, "script", line, cost);
    }

    #[test]
    fn a_full_buffer_keeps_the_newest_lines_and_says_what_went() {
        let mut buffer = Buffer::default();
        let text = "x".repeat(64 << 10);
        for second in 0..100 {
            append(&mut buffer, SOURCE, line(second, &text));
            assert!(buffer.bytes <= MAX_BUFFER);
        }
        let kept = i64::try_from(buffer.sources[&SOURCE].lines.len()).unwrap();
        let batch = buffer.take().unwrap();
        let gone = 100 - kept;
        let bytes = gone * (64 << 10);
        let said = &batch.lines[0].output;
        assert!(said.contains(&format!("{gone} lines ({bytes} bytes)")), "{said}");
        assert_eq!(batch.lines[1].created_at.as_second(), gone);
    }

    #[test]
    fn a_batch_is_no_larger_than_its_bound_and_of_one_source() {
        let mut buffer = Buffer::default();
        for second in 0..2000 {
            let source = Uuid::from_u128(u128::from(second % 3 == 0));
            append(&mut buffer, source, line(second.into(), &"\"é\u{1b}".repeat(100)));
        }
        let mut lines = 0;
        while let Some(batch) = buffer.take() {
            let body = serde_json::json!({"log_source_id": batch.source, "logs": batch.lines});
            assert!(body.to_string().len() <= MAX_BATCH);
            lines += batch.lines.len();
            buffer.bytes -= batch.cost;
        }
        assert_eq!((lines, buffer.bytes), (2000, 0));
        assert!(buffer.sources.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_order() {
        let mut buffer = Buffer::default();
        let other = Uuid::from_u128(2);
        append(&mut buffer, SOURCE, line(7200, "first"));
        append(&mut buffer, other, line(10, "second"));
        let order = [(); 2].map(|()| buffer.take().unwrap().lines.remove(0).output);
        assert_eq!(order, ["first", "second"]);
    }

    #[test]
    fn a_full_server_empties_the_buffer_and_all_is_counted() {
        let mut buffer = Buffer::default();
        for second in 0..10 {
            append(&mut buffer, SOURCE, line(second, "text"));
        }
        buffer.fill(&[line(10, "in flight")]);
        assert_eq!((buffer.unsent.lines, buffer.unsent.bytes, buffer.bytes), (11, 49, 0));
        assert!(buffer.take().is_none());
    }
}
