//! The messages of the Postgres protocol, version 3, after the handshake: a letter, a length that
//! counts itself, a body.

/// Cuts one direction of a connection into messages, however the bytes arrive.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
}

/// One whole message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Its letter.
    pub(crate) kind: u8,
    /// What follows the length.
    pub(crate) body: Vec<u8>,
}

impl Frame {
    /// Bytes on the wire.
    pub(crate) fn wire_bytes(&self) -> u64 {
        (self.body.len() + 5) as u64
    }

    /// The zero-terminated texts that the body begins with.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        self.body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned())
    }
}

impl Frames {
    /// Takes what arrived and answers with the messages that are whole by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.buffer.extend_from_slice(bytes);
        let mut whole = Vec::new();
        let mut at = 0;
        while let Some(frame) = frame_at(&self.buffer[at..]) {
            at += frame.body.len() + 5;
            whole.push(frame);
        }
        self.buffer.drain(..at);
        whole
    }
}

fn frame_at(bytes: &[u8]) -> Option<Frame> {
    let (&kind, rest) = bytes.split_first()?;
    let length = u32::from_be_bytes(rest.first_chunk::<4>().copied()?) as usize;
    // A length below 4 is no Postgres; reading on would never come back in step.
    let body = rest.get(4..length.max(4))?;
    Some(Frame { kind, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as it is on the wire.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], length.as_slice(), body].concat()
    }

    #[test]
    fn messages_are_whole_however_the_bytes_arrive() {
        let wire = [
            message(b'P', b"s1\0select 1\0\0\0"),
            message(b'S', b""),
            message(b'E', b"\0\0\0\0\0"),
        ]
        .concat();
        for size in [1, 2, 3, 5, 7, wire.len()] {
            let mut frames = Frames::default();
            let found: Vec<Frame> =
                wire.chunks(size).flat_map(|chunk| frames.push(chunk)).collect();

            assert_eq!(found.iter().map(|it| it.kind).collect::<Vec<_>>(), *b"PSE");
            assert_eq!(found.iter().map(Frame::wire_bytes).sum::<u64>(), wire.len() as u64);
            assert_eq!(found[0].texts().take(2).collect::<Vec<_>>(), ["s1", "select 1"]);
        }
    }

    #[test]
    fn a_message_that_is_not_whole_waits() {
        let wire = message(b'D', &[7; 300]);
        let mut frames = Frames::default();

        assert_eq!(frames.push(&wire[..299]), []);
        assert_eq!(frames.push(&wire[299..]), [Frame { kind: b'D', body: vec![7; 300] }]);
    }
}
