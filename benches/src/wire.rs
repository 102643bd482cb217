//! HTTP over one socket, with as little in between as there can be: the client is on the same cores
//! as what it measures.

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Most bytes of a head or a body that is believed.
const MOST: usize = 16 << 20;
/// Read at once.
const CHUNK: usize = 16 << 10;

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A status and a body.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body's JSON, where the answer is a success.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        let said = || String::from_utf8_lossy(&self.body).into_owned();
        anyhow::ensure!((200..300).contains(&self.status), "{}: {}", self.status, said());
        serde_json::from_slice(&self.body).with_context(said)
    }
}

/// A request with a JSON body, as bytes. `path` is below `/api/v2`.
pub(crate) fn post(path: &str, token: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /api/v2{path} HTTP/1.1\r\nhost: bench\r\ncoder-session-token: {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A request for a stream of server-sent events, as bytes. `path` is below `/api/v2`.
pub(crate) fn stream(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET /api/v2{path} HTTP/1.1\r\nhost: bench\r\ncoder-session-token: {token}\r\n\
         accept: text/event-stream\r\n\r\n"
    )
    .into_bytes()
}

impl Wire {
    /// Connects to `host:port`.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_owned())?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a request and reads its answer, which must tell its length.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        let (status, length) = self.begin(request).await?;
        let length = length.context("an answer with a length")?;
        while self.buffer.len() < length {
            self.read().await?;
        }
        let rest = self.buffer.split_off(length);
        let body = std::mem::replace(&mut self.buffer, rest);
        Ok(Answer { status, body })
    }

    /// Sends a request and reads the head of its answer: the status, and the length if it has one.
    async fn begin(&mut self, request: &[u8]) -> anyhow::Result<(u16, Option<usize>)> {
        self.stream.write_all(request).await?;
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break end;
            }
            self.read().await?;
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).context("a status")?;
        let length = head.lines().find_map(|it| it.strip_prefix("content-length:"));
        Ok((status, length.map(|it| it.trim().parse()).transpose()?))
    }

    /// Sends a request for a stream, and answers with what reads it once it has begun.
    pub(crate) async fn listen(mut self, request: &[u8]) -> anyhow::Result<Self> {
        let (status, _) = self.begin(request).await?;
        anyhow::ensure!(status == 200, "a stream that begins with status {status}");
        Ok(self)
    }

    /// Hands whole lines of a stream to `line`, as they come. Pieces of HTTP's chunked encoding are
    /// lines too. Returns when the stream ends.
    pub(crate) async fn lines(mut self, mut line: impl FnMut(&[u8])) -> anyhow::Result<()> {
        loop {
            let whole = self.buffer.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
            self.buffer[..whole].split(|it| *it == b'\n').for_each(&mut line);
            self.buffer.drain(..whole);
            self.read().await?;
        }
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(CHUNK);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the connection was closed");
        }
        anyhow::ensure!(self.buffer.len() < MOST, "an answer of more than {MOST} bytes");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with these pieces, one write each.
    async fn answering(pieces: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_whole_however_it_arrives() {
        let address =
            answering(&["HTTP/1.1 201 Crea", "ted\r\nContent-Length: 7\r\n", "\r\n{\"a\"", ":1}"]);
        let mut wire = Wire::connect(&address.await).await.unwrap();
        let answer = wire.ask(&post("/x", "t", &Value::Null)).await.unwrap();
        assert_eq!((answer.status, answer.json().unwrap()["a"].as_i64()), (201, Some(1)));
    }

    #[tokio::test]
    async fn a_stream_is_read_line_by_line() {
        let address =
            answering(&["HTTP/1.1 200 OK\r\n\r\n5\r\ndata", ": x\n", "\r\n6\r\ndata: y\n\n"]);
        let wire = Wire::connect(&address.await).await.unwrap();
        let wire = wire.listen(&stream("/x", "t")).await.unwrap();
        let mut said = Vec::new();
        let ended = wire.lines(|line| {
            if let Some(data) = line.strip_prefix(b"data: ") {
                said.push(String::from_utf8(data.to_vec()).unwrap());
            }
        });
        ended.await.unwrap_err();
        assert_eq!(said, ["x", "y"]);
    }
}
