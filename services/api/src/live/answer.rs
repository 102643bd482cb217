//! A stream as an answer: server-sent events, or a WebSocket where the client asks for one.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use berth_service_kit::Period;
use futures_util::stream::{self, BoxStream};
use futures_util::{SinkExt as _, Stream, StreamExt};
use http::header;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::live::encoded::Encoded;

/// What a WebSocket of watchers reads and writes at once, in bytes. They have nothing to say, and
/// the library's own buffers are 128 KiB each.
const SOCKET_BUFFER: usize = 4 << 10;
/// Most bytes that wait to be written to such a WebSocket.
const SOCKET_MOST: usize = 1 << 20;

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

    /// Over a WebSocket the data alone is sent, and nothing else is said.
    fn to_frame(&self) -> Option<String> {
        (self.event == "data").then(|| self.data.to_string())
    }
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

fn with_pings(
    messages: BoxStream<'static, Out>,
    every: Duration,
) -> impl Stream<Item = Out> + Send + 'static {
    stream::unfold(messages, move |mut messages| async move {
        match tokio::time::timeout(every, messages.next()).await {
            Ok(None) => None,
            Ok(Some(out)) => Some((out, messages)),
            Err(_) => Some((Out::ping(), messages)),
        }
    })
}

/// Answers with a stream of server-sent events, which says that it lives after each `ping` of silence.
pub(crate) fn sse(messages: BoxStream<'static, Out>, ping: Period) -> Response {
    let events = with_pings(messages, ping.into()).map(|out| Ok::<_, Infallible>(out.to_event()));
    let headers = [("x-accel-buffering", "no"), ("cache-control", "no-cache")];
    (headers, Sse::new(events)).into_response()
}

/// Answers with a WebSocket if the client asks for one, with server-sent events otherwise.
pub(crate) fn answer(
    upgrade: Upgrade,
    messages: BoxStream<'static, Out>,
    ping: Period,
) -> Response {
    match upgrade {
        Ok(upgrade) => upgrade.on_upgrade(move |socket| talk(socket, messages, ping)),
        Err(_) => sse(messages, ping),
    }
}

/// Sends until the stream ends or the client leaves.
async fn talk(mut socket: WebSocket, messages: BoxStream<'static, Out>, ping: Period) {
    let mut messages = Box::pin(with_pings(messages, ping.into()));
    loop {
        let message = tokio::select! {
            out = messages.next() => match out {
                Some(out) => match out.to_frame() {
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

/// A stream of messages that are encoded already. It says by itself that it lives.
pub(crate) trait Source: Send + 'static {
    /// The next messages; `None` at the end. Never dropped halfway.
    fn next(&mut self) -> impl Future<Output = Option<Vec<Encoded>>> + Send;
}

/// Answers with what a source gives, until the process ends: over a WebSocket if the client asks
/// for one, as server-sent events otherwise.
pub(crate) fn answer_from(
    upgrade: Option<WebSocketUpgrade>,
    source: impl Source,
    stop: CancellationToken,
) -> Response {
    let messages = stream::unfold(source, |mut source| async move {
        let messages = source.next().await?;
        Some((messages, source))
    });
    let messages = messages.take_until(stop.cancelled_owned()).boxed();
    match upgrade {
        Some(upgrade) => upgrade
            .read_buffer_size(SOCKET_BUFFER)
            .write_buffer_size(SOCKET_BUFFER)
            .max_write_buffer_size(SOCKET_MOST)
            .max_message_size(SOCKET_BUFFER)
            .on_upgrade(|socket| pass_on(socket, messages)),
        None => events(messages),
    }
}

fn events(messages: BoxStream<'static, Vec<Encoded>>) -> Response {
    let bytes = messages.map(|messages| Ok::<_, Infallible>(joined(messages)));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (http::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(bytes)).into_response()
}

/// One message as the bytes that all share; several in one piece, which is one write.
fn joined(mut messages: Vec<Encoded>) -> Bytes {
    if messages.len() == 1
        && let Some(message) = messages.pop()
    {
        return message.sse;
    }
    let mut bytes = Vec::with_capacity(messages.iter().map(|it| it.sse.len()).sum());
    for message in &messages {
        bytes.extend_from_slice(&message.sse);
    }
    bytes.into()
}

/// Sends until the stream ends or the client leaves.
async fn pass_on(mut socket: WebSocket, mut messages: BoxStream<'static, Vec<Encoded>>) {
    loop {
        let messages = tokio::select! {
            messages = messages.next() => match messages {
                Some(messages) => messages,
                None => break,
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        for message in messages {
            if socket.feed(Message::Text(message.frame)).await.is_err() {
                return;
            }
        }
        if socket.flush().await.is_err() {
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
    fn over_a_web_socket_the_data_alone_is_sent() {
        let out = Out { id: Some(7), ..Out::data(json!({ "a": 1 })) };
        assert_eq!(out.to_frame().as_deref(), Some(r#"{"a":1}"#));
        assert_eq!(Out::ping().to_frame(), None);
    }
}
