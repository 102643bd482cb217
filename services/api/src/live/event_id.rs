//! Where an update stands: what a reader resumes from, at any replica.

use std::fmt::{self, Display};
use std::str::FromStr;

/// Longest id as text.
const MOST: usize = 40;

/// A place in the stream of build updates. Opaque to readers. Ids of one epoch are ordered; an id of
/// another epoch belongs to a stream that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EventId {
    /// When the stream was made.
    pub(crate) epoch: u64,
    /// The place in it; 0: before everything.
    pub(crate) sequence: u64,
}

impl EventId {
    /// The place right after this one.
    pub(crate) fn next(self) -> Self {
        Self { sequence: self.sequence.saturating_add(1), ..self }
    }
}

impl Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for EventId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is no id of an update: send back the id that was received".to_owned();
        let (epoch, sequence) =
            text.split_once('-').filter(|_| text.len() <= MOST).ok_or_else(wrong)?;
        let is_plain = |text: &str| text.bytes().all(|it| it.is_ascii_alphanumeric());
        if !is_plain(epoch) || !is_plain(sequence) {
            return Err(wrong());
        }
        Ok(Self {
            epoch: u64::from_str_radix(epoch, 16).map_err(|_| wrong())?,
            sequence: sequence.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_nothing_else_is() {
        let id = EventId { epoch: 1_764_000_000_000_000, sequence: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "7", "x-1", "a-", "-1", "a-+1", "a--1", &format!("a-{:050}", 1)] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong}");
        }
    }
}
