//! The last output of a shell, by its place in all of the output.

use std::collections::VecDeque;

/// What is kept: enough for a screen and what was above it.
pub(crate) const RING: usize = 64 << 10;

/// The last [`RING`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    kept: VecDeque<u8>,
    end: u64,
}

impl Ring {
    /// Bytes that there ever were.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Place of the oldest byte that is kept.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    /// Adds bytes; the oldest go.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes_kept = &bytes[bytes.len().saturating_sub(RING)..];
        let excess = (self.kept.len() + bytes_kept.len()).saturating_sub(RING);
        self.kept.drain(..excess);
        self.kept.extend(bytes_kept);
        self.end += bytes.len() as u64;
    }

    /// At most `most` bytes from place `from`, which is not before [`Ring::start`].
    pub(crate) fn read(&self, from: u64, most: usize) -> Vec<u8> {
        let skip = usize::try_from(from.saturating_sub(self.start())).unwrap_or(usize::MAX);
        self.kept.iter().skip(skip).take(most).copied().collect()
    }

    /// How many bytes can be added before the one at `place` goes.
    pub(crate) fn room(&self, place: u64) -> usize {
        let held = usize::try_from(self.end.saturating_sub(place)).unwrap_or(usize::MAX);
        RING.saturating_sub(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_at_their_places() {
        let mut ring = Ring::default();
        ring.push(b"hello ");
        ring.push(b"world");
        assert_eq!((ring.start(), ring.end()), (0, 11));
        assert_eq!(ring.read(6, 100), b"world");
        assert_eq!(ring.read(0, 5), b"hello");
        assert_eq!(ring.room(6), RING - 5);

        ring.push(&vec![b'x'; RING]);
        assert_eq!(ring.start(), 11);
        assert_eq!(ring.room(11), 0);
        ring.push(&vec![b'y'; 3 * RING]);
        assert_eq!(ring.end(), 11 + 4 * RING as u64);
        assert_eq!(ring.read(ring.start(), 1), b"y");
        assert_eq!(ring.read(ring.end(), 1), b"");
    }
}
