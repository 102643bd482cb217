//! A client that reads a stream as bytes: server-sent events, or a WebSocket.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Longer than two pings.
const SILENCE: Duration = Duration::from_secs(40);

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// `data`, `ping`, `gap` or `error`.
    pub(super) kind: String,
    pub(super) id: Option<String>,
    /// JSON text.
    pub(super) data: String,
}

impl Said {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }
}

/// An open stream.
pub(super) struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    is_socket: bool,
    /// What to resume from.
    pub(super) last_id: Option<String>,
}

/// How to ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) last_id: Option<String>,
    /// A WebSocket.
    pub(super) is_socket: bool,
    /// Takes little at once.
    pub(super) is_narrow: bool,
}

impl Ask {
    pub(super) fn all(key: &str) -> Self {
        let path = "/api/v2/watch-all-workspaces".to_owned();
        Self { path, key: key.to_owned(), ..Self::default() }
    }

    pub(super) fn at(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    pub(super) fn after(self, id: Option<String>) -> Self {
        Self { last_id: id, ..self }
    }

    pub(super) fn socket(self, is_socket: bool) -> Self {
        Self { is_socket, ..self }
    }

    fn text(&self) -> String {
        let Self { path, key, .. } = self;
        let query = self.last_id.as_deref().filter(|_| self.is_socket);
        let query = query.map(|id| format!("?last_event_id={id}")).unwrap_or_default();
        // 1.0: the answer comes without chunks.
        let version = if self.is_socket { "1.1" } else { "1.0" };
        let mut text = format!(
            "GET {path}{query} HTTP/{version}\r\nHost: test\r\n\
             Coder-Session-Token: {key}-abcdefghijklmnopqrstuv\r\n"
        );
        if self.is_socket {
            text += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        } else if let Some(id) = &self.last_id {
            text = format!("{text}Last-Event-ID: {id}\r\n");
        }
        text + "\r\n"
    }
}

impl Reader {
    /// Asks; answers with the status and the stream.
    pub(super) async fn try_open(address: SocketAddr, ask: &Ask) -> (u16, Self) {
        let socket = TcpSocket::new_v4().unwrap();
        if ask.is_narrow {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(ask.text().as_bytes()).await.unwrap();
        let mut reader = Self {
            stream,
            buffer: Vec::new(),
            is_socket: ask.is_socket,
            last_id: ask.last_id.clone(),
        };
        let head = loop {
            if let Some(end) = find(&reader.buffer, b"\r\n\r\n") {
                break reader.take(end + 4);
            }
            assert!(reader.fill().await, "the answer has a head");
        };
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap();
        (status, reader)
    }

    pub(super) async fn open(address: SocketAddr, ask: &Ask) -> Self {
        let (status, reader) = Self::try_open(address, ask).await;
        let expected = if ask.is_socket { 101 } else { 200 };
        assert_eq!(status, expected, "{ask:?}");
        reader
    }

    /// All that is left, for answers that are no streams.
    pub(super) async fn rest(mut self) -> String {
        while self.fill().await {}
        String::from_utf8(self.buffer).unwrap()
    }

    /// Reads more; `false` at the end.
    async fn fill(&mut self) -> bool {
        let read = tokio::time::timeout(SILENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.expect("the stream says that it lives").is_ok_and(|it| it > 0)
    }

    fn take(&mut self, many: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(many);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// The next message, pings too; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Said> {
        loop {
            let said = if self.is_socket { self.frame() } else { self.event() };
            if let Some(said) = said {
                if said.kind == "close" {
                    return None;
                }
                self.last_id = said.id.clone().or(self.last_id.take());
                return Some(said);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next message that is no ping.
    pub(super) async fn told(&mut self) -> Option<Said> {
        loop {
            let said = self.next().await?;
            if said.kind != "ping" {
                return Some(said);
            }
        }
    }

    fn event(&mut self) -> Option<Said> {
        let end = find(&self.buffer, b"\n\n")?;
        let text = String::from_utf8(self.take(end + 2)).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|it| it.trim_start_matches(' ').to_owned())
        };
        let data = field("data:").unwrap_or_default();
        Some(Said { kind: field("event:").unwrap(), id: field("id:"), data })
    }

    fn frame(&mut self) -> Option<Said> {
        let (&first, &second) = (self.buffer.first()?, self.buffer.get(1)?);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |all, it| all << 8 | usize::from(*it));
        let (start, length) = match second {
            126 => (4, number(self.buffer.get(2..4)?)),
            127 => (10, number(self.buffer.get(2..10)?)),
            length => (2, usize::from(length)),
        };
        if self.buffer.len() < start + length {
            return None;
        }
        let payload = self.take(start + length).split_off(start);
        let kind = |kind: &str| Said { kind: kind.to_owned(), id: None, data: String::new() };
        match first & 15 {
            8 => return Some(kind("close")),
            1 => {}
            other => panic!("frame of kind {other}"),
        }
        let text = String::from_utf8(payload).unwrap();
        let head = |name: &str| {
            let value = text.split_once(&format!("\"{name}\":\""))?.1;
            Some(value.split('"').next()?.to_owned())
        };
        let data = text.split_once("\"data\":")?.1.strip_suffix('}')?.to_owned();
        let before_data = text.find("\"data\":")?;
        let id = head("id").filter(|_| text.find("\"id\":").is_some_and(|it| it < before_data));
        Some(Said { id, data, ..kind(&head("type")?) })
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|it| it == needle)
}
