//! A stream as an answer: server-sent events, or a WebSocket where the client asks for one.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How often a silent stream says that it lives.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Whether the client asked for a WebSocket.
pub(crate) type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// One message of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    /// `data`, `ping`, `error` or `gap`.
    pub(crate) event: &'static str,
    /// What `Last-Event-ID` resumes from.
    pub(crate) id: Option<u64>,
    /// What is said.
    pub(crate) data: Value,
}

impl Out {
    /// Something to tell.
    pub(crate) fn data(data: Value) -> Self {
        Self { event: "data", id: None, data }
    }

    /// The last word.
    pub(crate) fn error(message: &str) -> Self {
        Self { event: "error", id: None, data: json!({ "message": message }) }
    }

    fn ping() -> Self {
        Self { event: "ping", id: None, data: Value::Null }
    }

    fn to_event(&self) -> Event {
        let event = Event::default().event(self.event);
        let event = match self.id {
            Some(id) => event.id(id.to_string()),
            None => event,
        };
        if self.data.is_null() { event.data("") } else { event.data(self.data.to_string()) }
    }

    fn to_frame(&self, frame: Frame) -> Option<String> {
        match frame {
            Frame::Bare if self.event == "data" => Some(self.data.to_string()),
            Frame::Bare => None,
            Frame::Typed => {
                let mut message = json!({ "type": self.event, "data": self.data });
                if let Some(id) = self.id {
                    message["id"] = json!(id);
                }
                Some(message.to_string())
            }
        }
    }
}

/// What a WebSocket message looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// `{type, data}`
    Typed,
    /// The data alone; nothing else is said.
    Bare,
}

/// What a stream is made of: a state that gives one message after the other.
pub(crate) trait Feed: Send + 'static {
    /// The next message; `None` at the end. Never dropped halfway.
    fn next(&mut self) -> impl Future<Output = Option<Out>> + Send;
}

/// Turns a feed into a stream that ends when the process does.
pub(crate) fn stream_of(feed: impl Feed, stop: CancellationToken) -> BoxStream<'static, Out> {
    stream::unfold(feed, |mut feed| async move {
        let out = feed.next().await?;
        Some((out, feed))
    })
    .take_until(stop.cancelled_owned())
    .boxed()
}

fn with_pings(messages: BoxStream<'static, Out>) -> impl Stream<Item = Out> + Send + 'static {
    stream::unfold(messages, |mut messages| async move {
        match tokio::time::timeout(PING_EVERY, messages.next()).await {
            Ok(None) => None,
            Ok(Some(out)) => Some((out, messages)),
            Err(_) => Some((Out::ping(), messages)),
        }
    })
}

/// Answers with a stream of server-sent events.
pub(crate) fn sse(messages: BoxStream<'static, Out>) -> Response {
    let events = with_pings(messages).map(|out| Ok::<_, Infallible>(out.to_event()));
    let headers = [("x-accel-buffering", "no"), ("cache-control", "no-cache")];
    (headers, Sse::new(events)).into_response()
}

/// Answers with a WebSocket if the client asks for one, with server-sent events otherwise.
pub(crate) fn answer(
    upgrade: Upgrade,
    frame: Frame,
    messages: BoxStream<'static, Out>,
) -> Response {
    match upgrade {
        Ok(upgrade) => upgrade.on_upgrade(move |socket| talk(socket, frame, messages)),
        Err(_) => sse(messages),
    }
}

/// Sends until the stream ends or the client leaves.
async fn talk(mut socket: WebSocket, frame: Frame, messages: BoxStream<'static, Out>) {
    let mut messages = Box::pin(with_pings(messages));
    loop {
        let message = tokio::select! {
            out = messages.next() => match out {
                Some(out) => match out.to_frame(frame) {
                    Some(text) => Message::Text(text.into()),
                    None => Message::Ping(Vec::new().into()),
                },
                None => break,
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    // The client may be gone already.
    let _ = socket.send(Message::Close(None)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_frames_carry_data_alone_and_typed_ones_say_what_they_are() {
        let out = Out { event: "data", id: Some(7), data: json!({ "a": 1 }) };
        assert_eq!(out.to_frame(Frame::Bare).as_deref(), Some(r#"{"a":1}"#));
        let typed: Value = serde_json::from_str(&out.to_frame(Frame::Typed).unwrap()).unwrap();
        assert_eq!(typed, json!({ "type": "data", "id": 7, "data": { "a": 1 } }));
        assert_eq!(Out::ping().to_frame(Frame::Bare), None);
    }
}
