//! A person's end of a terminal, as the field's programs speak it.

use std::time::Duration;

use berth_agent::websocket::{self, ConnectError, Message, WebSocket};
use berth_testkit::{App, SOON, User};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;

/// An open terminal and everything it has shown.
pub(crate) struct Terminal {
    socket: WebSocket,
    pub(crate) seen: Vec<u8>,
    /// Place of the first byte that was seen.
    pub(crate) offset: u64,
}

/// Asks for a terminal; `Err` is the answer's status and body.
pub(crate) async fn open(
    app: &App,
    user: &User,
    agent: &str,
    query: &[(&str, &str)],
) -> Result<Terminal, (u16, Value)> {
    open_from(app, user, agent, query, None).await
}

/// The same from a page of a site.
pub(crate) async fn open_from(
    app: &App,
    user: &User,
    agent: &str,
    query: &[(&str, &str)],
    origin: Option<&str>,
) -> Result<Terminal, (u16, Value)> {
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let url = format!("{}/api/v2/workspaceagents/{agent}/pty", app.url());
    let mut request = http.get(url).query(query);
    if !user.token().is_empty() {
        request = request.header("Coder-Session-Token", user.token());
    }
    if let Some(origin) = origin {
        request = request.header("Origin", origin);
    }
    match websocket::connect(request, 1 << 20).await {
        Ok((socket, headers)) => {
            let offset = headers["berth-terminal-offset"].to_str().unwrap().parse().unwrap();
            Ok(Terminal { socket, seen: Vec::new(), offset })
        }
        Err(ConnectError::Refused(response)) => {
            let status = response.status().as_u16();
            let body = response.bytes().await.unwrap();
            Err((status, serde_json::from_slice(&body).unwrap_or_default()))
        }
        Err(error) => panic!("no answer: {error:?}"),
    }
}

impl Terminal {
    pub(crate) async fn say(&mut self, message: Value) {
        self.say_raw(&message.to_string()).await;
    }

    pub(crate) async fn say_raw(&mut self, text: &str) {
        self.socket.send(Message::Text(text.into())).await.unwrap();
    }

    /// As the field's page sends it: JSON in a binary message.
    pub(crate) async fn type_in(&mut self, keys: &str) {
        let message = json!({ "data": keys }).to_string().into_bytes();
        self.socket.send(Message::Binary(message.into())).await.unwrap();
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads until `text` was shown.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let text = text.to_owned();
        async move {
            while !self.text().contains(&text) {
                if let Err(end) = self.read().await {
                    panic!("{caller}: ended with {end:?} without {text:?}: {:?}", self.text());
                }
            }
        }
    }

    /// Reads to the end: code and reason of the close frame, 1006 for none.
    pub(crate) async fn ends(&mut self) -> (u16, String) {
        loop {
            if let Err(end) = self.read().await {
                return end;
            }
        }
    }

    /// Reads one message; how many bytes of output it had.
    pub(crate) async fn read(&mut self) -> Result<usize, (u16, String)> {
        let message = timeout(SOON, self.socket.next()).await;
        match message.unwrap_or_else(|_| panic!("silence after {:?}", self.text())) {
            Some(Ok(Message::Binary(bytes))) => {
                self.seen.extend_from_slice(&bytes);
                Ok(bytes.len())
            }
            Some(Ok(Message::Close(Some(close)))) => {
                Err((close.code.into(), close.reason.as_str().to_owned()))
            }
            Some(Ok(Message::Close(None)) | Err(_)) | None => Err((1006, String::new())),
            Some(Ok(_)) => Ok(0),
        }
    }

    /// Reads `bytes` bytes of output in all, `pause` after each of the first messages, and keeps
    /// none of them. Gives how many zeros among them were not.
    pub(crate) async fn swallow(&mut self, bytes: u64, slowly: usize, pause: Duration) -> u64 {
        let (mut read, mut wrong, mut messages) = (self.seen.len() as u64, 0, 0);
        while read < bytes {
            self.seen.clear();
            read += self.read().await.expect("more output") as u64;
            wrong += self.seen.iter().filter(|it| **it != 0).count() as u64;
            messages += 1;
            if messages < slowly {
                tokio::time::sleep(pause).await;
            }
        }
        wrong
    }
}
