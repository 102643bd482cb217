//! Publishing past everything: the text protocol of NATS over a socket.

use std::fmt::Write as _;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A connection that publishes. The server asks after it in 2 minutes at the earliest, and gets no
/// answer: it is for less.
#[derive(Debug)]
pub(crate) struct Publisher {
    stream: BufReader<TcpStream>,
    text: String,
}

impl Publisher {
    /// Connects to a server at `nats://host:port` without a password.
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let address = url.strip_prefix("nats://").context("an address of NATS")?;
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        stream.get_mut().set_nodelay(true)?;
        let mut info = String::new();
        stream.read_line(&mut info).await?;
        anyhow::ensure!(info.starts_with("INFO"), "a server that begins with {info:?}");
        stream.get_mut().write_all(b"CONNECT {\"verbose\":false}\r\n").await?;
        Ok(Self { stream, text: String::new() })
    }

    /// Takes a message, which [`Self::flush`] sends.
    pub(crate) fn push(&mut self, subject: &str, payload: &str) {
        let length = payload.len();
        // Writing to a string does not fail.
        let _ = write!(self.text, "PUB {subject} {length}\r\n{payload}\r\n");
    }

    /// Sends what was taken.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(self.text.as_bytes()).await?;
        self.text.clear();
        Ok(())
    }
}
