//! What is said about terminals between the API and an agent: frames, and how much of them may be
//! on the way. People's side of a terminal is the REST contract's and is not here.
//!
//! A frame is `attachment id (16 bytes), kind (1 byte), payload`. The same bytes travel on NATS
//! between two replicas of the API and on the agent's WebSocket.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::{AttachmentId, UserId};

/// What an agent may have sent to one attachment and not yet know to be taken: frames' costs.
pub const OUTPUT_WINDOW: u64 = 256 << 10;
/// The same from an attachment to the agent.
pub const INPUT_WINDOW: u64 = 64 << 10;
/// Most bytes of input or output in a frame.
pub const MAX_DATA: usize = 16 << 10;
/// Most bytes of a frame: a command and its surroundings fit.
pub const MAX_FRAME: usize = 256 << 10;
/// Most bytes of a command.
pub const MAX_COMMAND: usize = 32 << 10;
/// Most columns or rows of a terminal.
pub const MAX_SIDE: u16 = 4096;
/// Attachments that one agent serves at once, and shells.
pub const MAX_ATTACHMENTS: usize = 64;
/// How often the API asks whether an attachment still lives at the agent's end, in seconds. Three
/// unanswered questions, or four that never came, end it.
pub const PING_SECONDS: u64 = 5;

const HEAD: usize = 17;
/// What a frame costs beside its bytes, so that empty ones are not free.
const FRAME_COST: u64 = 64;

/// How much of a window a frame with so many bytes of data takes.
#[must_use]
pub fn cost(data: usize) -> u64 {
    data as u64 + FRAME_COST
}

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Columns, 1 to [`MAX_SIDE`].
    pub width: u16,
    /// Rows, 1 to [`MAX_SIDE`].
    pub height: u16,
}

/// What a person wants to be attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Who asks: nobody is attached to another user's shell.
    pub user_id: UserId,
    /// Names the shell: a second attachment with the same name joins it.
    pub reconnect: Uuid,
    /// The terminal's size.
    pub size: Size,
    /// What the user's shell runs; empty: the shell itself, as at a login.
    pub command: String,
    /// Whether there is a terminal at all, or two pipes.
    pub terminal: bool,
    /// Bytes of output that the person has already; the shell must be there. `None`: what is kept.
    pub after: Option<u64>,
    /// Seconds for which the shell lives without an attachment.
    pub keep_seconds: u64,
}

/// Why an attachment is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// The shell or command ended, with this status; 128 and the signal's number after a signal.
    Exited {
        /// The status.
        code: i32,
    },
    /// The agent's connection was lost; the shell may live.
    Away,
    /// Frames were lost on the way; the shell lives.
    Lost,
    /// It did not read while others that are attached to the same shell waited.
    Slow,
    /// The agent ended the shell.
    Over,
    /// The agent does not open it.
    Refused {
        /// Why.
        message: String,
    },
}

/// A frame to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Begins an attachment.
    Open(Open),
    /// What was typed, from byte `offset` of all that this attachment sent.
    Input {
        /// Bytes before these.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Nothing more will be typed.
    EndInput,
    /// The window's new size.
    Resize(Size),
    /// The agent may have sent so much, in costs, since the beginning.
    Credit(u64),
    /// Whether the attachment lives; says what [`Request::Credit`] says, and how much was typed.
    Ping {
        /// Bytes of input sent.
        sent: u64,
        /// As of [`Request::Credit`].
        limit: u64,
    },
    /// The person left, and may come back.
    Close,
    /// The person left for good: the shell is to end.
    HangUp,
}

/// A frame from the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Attached; output begins at byte `offset` of the shell's.
    Opened {
        /// Bytes before the first.
        offset: u64,
    },
    /// Output of the shell, from byte `offset` of it.
    Output {
        /// Bytes before these.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The person may have sent so much, in costs, since the beginning.
    Credit(u64),
    /// The attachment lives.
    Pong {
        /// Byte of the shell's output up to which was sent.
        sent: u64,
        /// As of [`Reply::Credit`].
        limit: u64,
    },
    /// The attachment is over.
    Ended(End),
}

/// A frame that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a terminal's frame of {length} bytes and kind {kind:?} is not understood")]
pub struct BadFrame {
    /// Its length.
    pub length: usize,
    /// Its kind, if it has one.
    pub kind: Option<u8>,
}

impl Request<'_> {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self, attachment: AttachmentId) -> Vec<u8> {
        match self {
            Self::Open(open) => json(attachment, 0, open),
            Self::Input { offset, bytes } => data(attachment, 1, *offset, bytes),
            Self::EndInput => head(attachment, 2, 0),
            Self::Resize(size) => {
                let mut frame = head(attachment, 3, 4);
                frame.extend_from_slice(&size.width.to_be_bytes());
                frame.extend_from_slice(&size.height.to_be_bytes());
                frame
            }
            Self::Credit(limit) => data(attachment, 4, *limit, &[]),
            Self::Ping { sent, limit } => data(attachment, 5, *sent, &limit.to_be_bytes()),
            Self::Close => head(attachment, 6, 0),
            Self::HangUp => head(attachment, 7, 0),
        }
    }
}

impl<'a> Request<'a> {
    /// Reads a frame.
    pub fn decode(frame: &'a [u8]) -> Result<(AttachmentId, Self), BadFrame> {
        let (attachment, kind, rest) = split(frame)?;
        let request = match kind {
            0 => serde_json::from_slice(rest).ok().map(Self::Open),
            1 => number(rest).map(|(offset, bytes)| Self::Input { offset, bytes }),
            2 => Some(Self::EndInput),
            3 => size(rest).map(Self::Resize),
            4 => number(rest).map(|(limit, _)| Self::Credit(limit)),
            5 => two_numbers(rest).map(|(sent, limit)| Self::Ping { sent, limit }),
            6 => Some(Self::Close),
            7 => Some(Self::HangUp),
            _ => None,
        };
        Ok((attachment, request.ok_or_else(|| bad(frame))?))
    }
}

impl Reply<'_> {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self, attachment: AttachmentId) -> Vec<u8> {
        match self {
            Self::Opened { offset } => data(attachment, 128, *offset, &[]),
            Self::Output { offset, bytes } => data(attachment, 129, *offset, bytes),
            Self::Credit(limit) => data(attachment, 130, *limit, &[]),
            Self::Pong { sent, limit } => data(attachment, 131, *sent, &limit.to_be_bytes()),
            Self::Ended(end) => json(attachment, 132, end),
        }
    }
}

impl<'a> Reply<'a> {
    /// Reads a frame.
    pub fn decode(frame: &'a [u8]) -> Result<(AttachmentId, Self), BadFrame> {
        let (attachment, kind, rest) = split(frame)?;
        let reply = match kind {
            128 => number(rest).map(|(offset, _)| Self::Opened { offset }),
            129 => number(rest).map(|(offset, bytes)| Self::Output { offset, bytes }),
            130 => number(rest).map(|(limit, _)| Self::Credit(limit)),
            131 => two_numbers(rest).map(|(sent, limit)| Self::Pong { sent, limit }),
            132 => serde_json::from_slice(rest).ok().map(Self::Ended),
            _ => None,
        };
        Ok((attachment, reply.ok_or_else(|| bad(frame))?))
    }
}

fn head(attachment: AttachmentId, kind: u8, room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + room);
    frame.extend_from_slice(attachment.0.as_bytes());
    frame.push(kind);
    frame
}

fn data(attachment: AttachmentId, kind: u8, number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut frame = head(attachment, kind, 8 + bytes.len());
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

fn json(attachment: AttachmentId, kind: u8, value: &impl Serialize) -> Vec<u8> {
    let mut frame = head(attachment, kind, 0);
    frame.extend(serde_json::to_vec(value).expect("texts and numbers are JSON"));
    frame
}

fn split(frame: &[u8]) -> Result<(AttachmentId, u8, &[u8]), BadFrame> {
    let (id, rest) = frame.split_first_chunk::<16>().ok_or_else(|| bad(frame))?;
    let (kind, rest) = rest.split_first().ok_or_else(|| bad(frame))?;
    Ok((AttachmentId(Uuid::from_bytes(*id)), *kind, rest))
}

fn bad(frame: &[u8]) -> BadFrame {
    BadFrame { length: frame.len(), kind: frame.get(HEAD - 1).copied() }
}

fn number(rest: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), rest))
}

fn two_numbers(rest: &[u8]) -> Option<(u64, u64)> {
    let (first, rest) = number(rest)?;
    Some((first, number(rest)?.0))
}

fn size(rest: &[u8]) -> Option<Size> {
    let (width, height) = rest.split_first_chunk::<2>()?;
    let side = |bytes: &[u8; 2]| {
        let side = u16::from_be_bytes(*bytes);
        (1..=MAX_SIDE).contains(&side).then_some(side)
    };
    Some(Size { width: side(width)?, height: side(height.first_chunk::<2>()?)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: AttachmentId = AttachmentId(Uuid::from_u128(7));

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let size = Size { width: 80, height: 24 };
        let open = Open {
            user_id: UserId(Uuid::from_u128(1)),
            reconnect: Uuid::from_u128(2),
            size,
            command: "echo \"hi\"".to_owned(),
            terminal: true,
            after: Some(3),
            keep_seconds: 300,
        };
        for request in [
            Request::Open(open),
            Request::Input { offset: 9, bytes: b"ls\n" },
            Request::EndInput,
            Request::Resize(size),
            Request::Credit(u64::MAX),
            Request::Ping { sent: 1, limit: 2 },
            Request::Close,
            Request::HangUp,
        ] {
            assert_eq!(Request::decode(&request.encode(ID)), Ok((ID, request.clone())));
        }
        for reply in [
            Reply::Opened { offset: 4 },
            Reply::Output { offset: 5, bytes: b"\0\xff" },
            Reply::Credit(6),
            Reply::Pong { sent: 7, limit: 8 },
            Reply::Ended(End::Exited { code: 3 }),
            Reply::Ended(End::Refused { message: "no".to_owned() }),
        ] {
            assert_eq!(Reply::decode(&reply.encode(ID)), Ok((ID, reply.clone())));
        }
    }

    #[test]
    fn a_command_of_the_largest_size_fits_into_a_frame_however_it_is_escaped() {
        let open = Open {
            user_id: UserId(Uuid::nil()),
            reconnect: Uuid::nil(),
            size: Size { width: MAX_SIDE, height: MAX_SIDE },
            command: "\u{1}".repeat(MAX_COMMAND),
            terminal: false,
            after: Some(u64::MAX),
            keep_seconds: u64::MAX,
        };
        assert!(Request::Open(open).encode(ID).len() <= MAX_FRAME);
    }

    #[test]
    fn a_window_without_columns_or_rows_is_no_frame() {
        for (width, height) in [(0, 1), (1, 0), (MAX_SIDE + 1, 1)] {
            let frame = Request::Resize(Size { width, height }).encode(ID);
            assert!(Request::decode(&frame).is_err(), "{width}x{height}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail_otherwise_than_by_its_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }
}
