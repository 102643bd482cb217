//! Server-sent events, as much of them as is used: names, ids and data. Bounded.

/// Longest line, and longest data of one event, in bytes.
const MAX_EVENT: usize = 64 << 10;

/// One event. The name is `message` when the stream gives none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// What kind of event it is.
    pub name: String,
    /// What to resume from after it; `None` when it says nothing of that.
    pub id: Option<String>,
    /// Its lines, joined by line feeds.
    pub data: String,
}

/// A line or an event was longer than [`MAX_EVENT`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {MAX_EVENT} bytes")]
pub struct TooLong;

/// Takes bytes as they come and gives the events that are complete.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to it.
    after_return: bool,
    started: bool,
    name: String,
    id: Option<String>,
    data: Option<String>,
}

impl SseParser {
    /// Reads `bytes`, which may end anywhere, and pushes finished events to `events`.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<SseEvent>) -> Result<(), TooLong> {
        for &byte in bytes {
            let ends_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if ends_return => {}
                b'\n' | b'\r' => self.end_line(events)?,
                _ if self.line.len() == MAX_EVENT => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<SseEvent>) -> Result<(), TooLong> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let first = !std::mem::replace(&mut self.started, true);
        let line = if first { line.strip_prefix('\u{feff}').unwrap_or(&line) } else { &line };
        if line.is_empty() {
            let (name, id) = (std::mem::take(&mut self.name), self.id.take());
            if let Some(data) = self.data.take() {
                let name = if name.is_empty() { "message".to_owned() } else { name };
                events.push(SseEvent { name, id, data });
            } else if !name.is_empty() {
                // The standard drops events without data, but a bare `event: ping` is one.
                events.push(SseEvent { name, id, data: String::new() });
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => self.id = Some(value.to_owned()),
            "data" => self.add_data(value)?,
            // Comments (no field name) and `retry` tell us nothing.
            _ => {}
        }
        Ok(())
    }

    fn add_data(&mut self, value: &str) -> Result<(), TooLong> {
        let data = match &mut self.data {
            Some(data) => {
                data.push('\n');
                data
            }
            none => none.insert(String::new()),
        };
        if data.len() + value.len() > MAX_EVENT {
            return Err(TooLong);
        }
        data.push_str(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stream: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, data)| SseEvent {
                name: (*name).to_owned(),
                id: None,
                data: (*data).to_owned(),
            })
            .collect();
        for size in [1, 2, 3, 7, stream.len().max(1)] {
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                parser.feed(chunk, &mut events).unwrap();
            }
            assert_eq!(events, expected, "in chunks of {size}");
        }
    }

    #[test]
    fn events_are_the_same_however_the_bytes_arrive() {
        check("event: data\ndata: {\"a\":1}\n\n", &[("data", "{\"a\":1}")]);
        check("event: ping\n\nevent:data\r\ndata:x\r\n\r\n", &[("ping", ""), ("data", "x")]);
        check("data: a\rdata: b\r\r", &[("message", "a\nb")]);
        check(": hello\n\n\u{feff}data: not a field\n\n", &[]);
        check("\u{feff}data: ünï\n\n", &[("message", "ünï")]);
    }

    #[test]
    fn an_id_is_of_its_own_event_alone() {
        let mut events = Vec::new();
        let stream = b"id: a-1\nevent: data\ndata: x\n\nid: a-2\nevent: ping\n\ndata: y\n\n";
        SseParser::default().feed(stream, &mut events).unwrap();
        let ids: Vec<_> = events.iter().map(|it| it.id.as_deref()).collect();
        assert_eq!(ids, [Some("a-1"), Some("a-2"), None]);
    }

    #[test]
    fn an_event_without_its_empty_line_never_happened() {
        check("event: data\ndata: cut of", &[]);
        check("event: data\ndata: cut off\n", &[]);
    }

    #[test]
    fn endless_lines_and_endless_events_are_refused() {
        let mut events = Vec::new();
        let endless = vec![b'a'; MAX_EVENT + 1];
        assert_eq!(SseParser::default().feed(&endless, &mut events), Err(TooLong));

        let lines = "data: 0123456789\n".repeat(MAX_EVENT / 10);
        assert_eq!(SseParser::default().feed(lines.as_bytes(), &mut events), Err(TooLong));
        assert!(events.is_empty());
    }
}
