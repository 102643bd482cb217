//! The line to the shell: connections one after the other, to the same shell.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_agent::websocket::{CloseFrame, ConnectError, Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client::Client;
use crate::command::shell::local::{Happening, Local, size};
use crate::command::shell::{NotConnected, show};

/// Largest message of the server.
const MOST_MESSAGE: usize = 1 << 20;
/// How often the server is told that we live, however slowly its output is read.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A server that says nothing for so long is gone: it pings as often as we do.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the end of a shell that is hung up on is waited for.
const HANG_UP: Duration = Duration::from_secs(2);
const OFFSET: &str = "berth-terminal-offset";

/// How a connection came to its end.
pub(super) enum Over {
    /// The shell or command ended.
    Exited(i32),
    /// There will be no more of it.
    Ended(String),
    /// A signal told us to end.
    Signal(i32),
    /// The shell may live.
    Lost(String),
}

/// One shell, and what was received of it.
pub(super) struct Line {
    client: Client,
    path: String,
    command: String,
    reconnect: String,
    /// Bytes of output received; `None`: there was no connection yet.
    received: Option<u64>,
    has_sent: bool,
    input_over: bool,
}

impl Line {
    pub(super) fn new(client: Client, agent: &str, command: String) -> Self {
        Self {
            client,
            path: format!("/workspaceagents/{agent}/pty"),
            command,
            reconnect: uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
            received: None,
            has_sent: false,
            input_over: false,
        }
    }

    /// Whether another connection goes on where the last one ended. Keys that were lost a person
    /// sees; bytes of a pipe nobody misses until it is too late.
    pub(super) fn may_resume(&self, local: &Local) -> bool {
        local.is_terminal() || !self.has_sent
    }

    pub(super) async fn connect(&mut self, local: &Local) -> Result<WebSocket, NotConnected> {
        let (width, height) = size();
        let mut query = vec![
            ("reconnect", self.reconnect.clone()),
            ("width", width.to_string()),
            ("height", height.to_string()),
            ("command", self.command.clone()),
            ("terminal", local.is_terminal().to_string()),
        ];
        if let Some(received) = self.received {
            query.push(("after", received.to_string()));
        }
        let connected = self.client.websocket(&self.path, &query, MOST_MESSAGE).await;
        let (socket, headers) = match connected {
            Ok(connected) => connected,
            Err(ConnectError::Refused(response)) => {
                let status = response.status();
                let message = Client::complaint(response).await;
                return Err(NotConnected::Refused { status, message });
            }
            Err(error) => return Err(NotConnected::Unreachable(error)),
        };
        let offset = headers.get(OFFSET).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        let offset = offset.or(self.received).unwrap_or_default();
        if let Some(missing @ 1..) = self.received.and_then(|it| offset.checked_sub(it)) {
            local.say(&format!("{missing} bytes of output were lost"));
        }
        self.received = Some(offset);
        Ok(socket)
    }

    /// Talks until the connection ends.
    pub(super) async fn talk(
        &mut self,
        socket: WebSocket,
        local: &mut Local,
    ) -> anyhow::Result<Over> {
        let (mut sink, mut stream) = socket.split();
        let (mut has_sent, mut input_over) = (self.has_sent, self.input_over);
        let received = self.received.get_or_insert_default();
        let over = tokio::select! {
            over = receive(&mut stream, received) => over?,
            over = send(&mut sink, local, &mut has_sent, &mut input_over) => over,
        };
        (self.has_sent, self.input_over) = (has_sent, input_over);
        if matches!(over, Over::Signal(_)) {
            let _ = sink.send(text(&json!({ "hang_up": true }))).await;
            let rest = async { while let Some(Ok(_)) = stream.next().await {} };
            let _ = timeout(HANG_UP, rest).await;
        }
        Ok(over)
    }
}

async fn receive(stream: &mut SplitStream<WebSocket>, received: &mut u64) -> anyhow::Result<Over> {
    loop {
        match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(Message::Binary(bytes)))) => {
                show(&bytes)?;
                *received += bytes.len() as u64;
            }
            Ok(Some(Ok(Message::Close(Some(close))))) => return Ok(meaning(&close)),
            Ok(Some(Ok(Message::Close(None)) | Err(_)) | None) => {
                return Ok(Over::Lost("connection lost".to_owned()));
            }
            Err(_) => return Ok(Over::Lost("the server is silent".to_owned())),
            Ok(Some(Ok(_))) => {}
        }
    }
}

/// What the server's last word means.
fn meaning(close: &CloseFrame) -> Over {
    let reason = close.reason.as_str();
    let exit = reason.strip_prefix("exit ").and_then(|code| code.parse().ok());
    match (u16::from(close.code), exit) {
        (1000, Some(code)) => Over::Exited(code),
        (1006 | 1011 | 1012 | 1013, _) => Over::Lost(reason.to_owned()),
        _ => Over::Ended(reason.to_owned()),
    }
}

async fn send(
    sink: &mut SplitSink<WebSocket, Message>,
    local: &mut Local,
    has_sent: &mut bool,
    input_over: &mut bool,
) -> Over {
    let lost = || Over::Lost("connection lost".to_owned());
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if *input_over && sink.send(text(&json!({ "end": true }))).await.is_err() {
        return lost();
    }
    loop {
        let happening = tokio::select! {
            _ = pings.tick() => None,
            happening = local.next(!*input_over) => Some(happening),
        };
        let message = match happening {
            None => Message::Ping(Vec::new().into()),
            Some(Happening::Resized) => {
                let (width, height) = size();
                text(&json!({ "width": width, "height": height }))
            }
            Some(Happening::Signal(number)) => return Over::Signal(number),
            Some(Happening::Typed(bytes)) => {
                *has_sent = true;
                match std::str::from_utf8(&bytes) {
                    Ok(data) => text(&json!({ "data": data })),
                    Err(_) => text(&json!({ "bytes": STANDARD.encode(&bytes) })),
                }
            }
            Some(Happening::InputOver) => {
                *input_over = true;
                text(&json!({ "end": true }))
            }
        };
        if sink.send(message).await.is_err() {
            // What the server said last says more than that it is gone.
            return std::future::pending().await;
        }
    }
}

fn text(value: &serde_json::Value) -> Message {
    Message::Text(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use berth_agent::websocket::CloseCode;

    use super::*;

    #[test]
    fn the_servers_last_word_says_whether_to_come_again() {
        let said = |code: u16, reason: &str| {
            meaning(&CloseFrame { code: CloseCode::from(code), reason: reason.into() })
        };
        assert!(matches!(said(1000, "exit 3"), Over::Exited(3)));
        assert!(matches!(said(1012, "connect again"), Over::Lost(_)));
        assert!(matches!(said(1008, "yours no more"), Over::Ended(_)));
        assert!(matches!(said(1001, "over"), Over::Ended(_)));
    }
}
