//! WebSockets over the HTTP client in use, so that certificates, proxies and timeouts are its own.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{RequestBuilder, Response, StatusCode, Upgraded, Version};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub use tokio_tungstenite::tungstenite::protocol::CloseFrame;
pub use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
pub use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// From the request to the head of the answer.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// An open WebSocket: a stream and a sink of [`Message`].
pub type WebSocket = WebSocketStream<Upgraded>;

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer.
    #[error("no answer from the server")]
    Transport(#[source] reqwest::Error),
    /// No answer in time.
    #[error("no answer within {} s", HANDSHAKE.as_secs())]
    Silence,
    /// An answer, but no WebSocket.
    #[error("the server answered {}", .0.status())]
    Refused(Response),
    /// The answer's key is not the one to ours.
    #[error("the server's answer is no WebSocket's; is a proxy in between that does not pass it?")]
    Handshake,
}

/// Asks for a WebSocket. `request` is a GET of an `http` or `https` address with its credentials.
/// Messages are at most `max_message` bytes; of what is written at most four are held. Answers with
/// the socket and the answer's headers.
pub async fn connect(
    request: RequestBuilder,
    max_message: usize,
) -> Result<(WebSocket, reqwest::header::HeaderMap), ConnectError> {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = request
        .version(Version::HTTP_11)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    let response = tokio::time::timeout(HANDSHAKE, request.send())
        .await
        .map_err(|_| ConnectError::Silence)?
        .map_err(|error| ConnectError::Transport(error.without_url()))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ConnectError::Refused(response));
    }
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|it| it.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(ConnectError::Handshake);
    }
    let headers = response.headers().clone();
    let upgraded = response.upgrade().await.map_err(ConnectError::Transport)?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message))
        // Each message goes out at once: people wait for their own keystrokes.
        .write_buffer_size(0)
        .max_write_buffer_size(max_message * 4);
    Ok((WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await, headers))
}
