//! From what a script writes to lines that a server stores: valid UTF-8 without NUL, of bounded
//! length.

/// Longest line, in bytes as JSON. Longer ones are cut into several.
pub(crate) const MAX_LINE: usize = 64 << 10;

/// Splits a stream of bytes into lines, holding at most one.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Reads `bytes`, which may end anywhere, and pushes the lines that are complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], lines: &mut Vec<String>) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let reach = &bytes[..bytes.len().min(room)];
            if let Some(end) = reach.iter().position(|&byte| byte == b'\n') {
                self.pending.extend_from_slice(&bytes[..end]);
                bytes = &bytes[end + 1..];
                self.emit(lines);
            } else {
                self.pending.extend_from_slice(reach);
                bytes = &bytes[reach.len()..];
                if self.pending.len() == MAX_LINE {
                    let rest = self.pending.split_off(char_boundary(&self.pending));
                    self.emit(lines);
                    self.pending = rest;
                }
            }
        }
    }

    /// Pushes what was written without a line end.
    pub(crate) fn finish(&mut self, lines: &mut Vec<String>) {
        if !self.pending.is_empty() {
            self.emit(lines);
        }
    }

    fn emit(&mut self, lines: &mut Vec<String>) {
        let bytes = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
        // Postgres keeps no NUL in text.
        let text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
        cut(&text, lines);
        self.pending.clear();
    }
}

/// Pushes `text` in pieces that each take at most [`MAX_LINE`] bytes as JSON.
fn cut(text: &str, pieces: &mut Vec<String>) {
    let mut start = 0;
    let mut cost = 0;
    for (at, char) in text.char_indices() {
        let more = json_cost(char);
        if cost + more > MAX_LINE {
            pieces.push(text[start..at].to_owned());
            start = at;
            cost = 0;
        }
        cost += more;
    }
    pieces.push(text[start..].to_owned());
}

/// Bytes of `text` inside a JSON string.
pub(crate) fn json_len(text: &str) -> usize {
    text.chars().map(json_cost).sum()
}

fn json_cost(char: char) -> usize {
    match char {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

/// Where to cut `bytes` so that no character at their end is torn.
pub(crate) fn char_boundary(bytes: &[u8]) -> usize {
    let tail = bytes.iter().rev().take(3).position(|byte| byte & 0xC0 != 0x80);
    let Some(back) = tail else { return bytes.len() };
    let lead = bytes.len() - 1 - back;
    let length = match bytes[lead] {
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF7 => 4,
        _ => 1,
    };
    if lead + length > bytes.len() { lead } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8], chunk: usize) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for part in bytes.chunks(chunk) {
            splitter.feed(part, &mut lines);
        }
        splitter.finish(&mut lines);
        lines
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let bytes = "one\r\n\ntwo ünï\nthree".as_bytes();
        for chunk in 1..=bytes.len() {
            assert_eq!(split(bytes, chunk), ["one", "", "two ünï", "three"], "chunks of {chunk}");
        }
    }

    #[test]
    fn what_no_database_takes_is_replaced() {
        assert_eq!(split(b"a\xffb\0c\n", 64), ["a\u{fffd}b\u{fffd}c"]);
    }

    #[test]
    fn long_lines_are_cut_between_characters_and_lose_nothing() {
        let text = format!("a{}", "€".repeat(MAX_LINE));
        let lines = split(text.as_bytes(), 4096);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
        assert_eq!(lines.concat(), text);
    }

    #[test]
    fn a_line_is_bounded_by_what_it_takes_on_the_wire() {
        let lines = split(&vec![0x1b; MAX_LINE], 8192);
        assert_eq!(lines.concat().len(), MAX_LINE);
        for line in lines {
            assert_eq!(serde_json::to_string(&line).unwrap().len() - 2, json_len(&line));
            assert!(json_len(&line) <= MAX_LINE);
        }
    }
}
