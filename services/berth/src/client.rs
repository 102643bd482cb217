//! The API, as the command line uses it.
//!
//! A server that answered once and then goes away is waited for: restarts are no reason for a command
//! to fail half way. What may be sent twice without harm is sent again.

mod ride;
pub(crate) mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use berth_agent::sse::{SseEvent, SseParser};
use berth_agent::websocket::{self, ConnectError, WebSocket};
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::cli::Global;
use ride::{Failure, Repeat, Ride};

const HEADER: &str = "Coder-Session-Token";
const KEY_HEADER: &str = "Idempotency-Key";

/// A client with an address and, once logged in, a token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
    /// Whether the server has ever answered. One that never did is not waited for.
    reached: Arc<AtomicBool>,
}

impl Client {
    /// A client for `url`, which may end in a slash.
    pub(crate) fn new(url: &str, token: Option<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_mins(1))
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot set up HTTP")?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { http, url, token, reached: Arc::default() })
    }

    /// The client that the flags, the environment or the stored session describe.
    pub(crate) fn from_session(global: &Global) -> anyhow::Result<Self> {
        let stored = session::load()?;
        let url = global.url.clone().or_else(|| stored.as_ref().map(|it| it.url.clone()));
        let token = global.token.clone().or_else(|| stored.map(|it| it.token));
        let url =
            url.ok_or_else(|| anyhow!("not logged in: run `berth login URL` or `berth up`"))?;
        Self::new(&url, token)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What a later command needs to be the same user at the same place.
    pub(crate) fn session(&self) -> session::Session {
        let token = self.token.clone().unwrap_or_default();
        session::Session { url: self.url.clone(), token }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, path), Repeat::Always).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::POST, path).json(body), Repeat::Unsent).await
    }

    /// A `POST` that happens once however often it is sent: it carries a key by which the server knows
    /// it again.
    pub(crate) async fn post_once(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let key = format!("{:032x}", rand::random::<u128>());
        let request = self.request(Method::POST, path).header(KEY_HEADER, key).json(body);
        self.json(request, Repeat::Keyed).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PUT, path).json(body), Repeat::Unsent).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::DELETE, path), Repeat::Unsent).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PATCH, path).json(body), Repeat::Unsent).await
    }

    /// Sends an archive; answers with the file's id.
    pub(crate) async fn upload(&self, archive: Vec<u8>) -> anyhow::Result<String> {
        let request = self
            .request(Method::POST, "/files")
            .header("Content-Type", "application/x-tar")
            .timeout(Duration::from_mins(5))
            .body(archive);
        let answer = self.json(request, Repeat::Unsent).await?;
        Ok(text(&answer, "hash").to_owned())
    }

    /// Reads what is no JSON, such as an archive.
    pub(crate) async fn download(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.request(Method::GET, path).timeout(Duration::from_mins(5));
        let body = self
            .ride(request, Repeat::Always, async |request| {
                let response = self.send(request).await?;
                response.bytes().await.map_err(Failure::of)
            })
            .await?;
        Ok(body.into())
    }

    /// Follows server-sent events until the server ends them.
    pub(crate) async fn events(
        &self,
        path: &str,
        last_id: Option<&str>,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<SseEvent>> + use<>> {
        let mut request = self.request(Method::GET, path).header("Accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response =
            self.ride(request, Repeat::Always, async |request| self.send(request).await).await?;
        let mut parser = SseParser::default();
        Ok(response.bytes_stream().flat_map(move |chunk| {
            let mut events = Vec::new();
            let outcome: anyhow::Result<()> = match chunk {
                Ok(bytes) => parser.feed(&bytes, &mut events).map_err(Into::into),
                Err(error) => Err(anyhow!(error).context("the stream broke off")),
            };
            let mut items: Vec<anyhow::Result<SseEvent>> = events.into_iter().map(Ok).collect();
            items.extend(outcome.err().map(Err));
            futures_util::stream::iter(items)
        }))
    }

    /// Opens a WebSocket; answers with it and the headers of the answer.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        query: &[(&str, String)],
        max_message: usize,
    ) -> Result<(WebSocket, HeaderMap), ConnectError> {
        websocket::connect(self.request(Method::GET, path).query(query), max_message).await
    }

    /// What an error answer says.
    pub(crate) async fn complaint(response: Response) -> String {
        match ride::check(response).await {
            Ok(response) => format!("the server answered {}", response.status()),
            Err(failure) => failure.into_error("the server").to_string(),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v2{path}", self.url));
        match &self.token {
            Some(token) => request.header(HEADER, token),
            None => request,
        }
    }

    /// Sends a request, again and again as long as that may help and does no harm.
    async fn ride<T>(
        &self,
        request: RequestBuilder,
        repeat: Repeat,
        send: impl AsyncFn(RequestBuilder) -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let mut ride = Ride::new(repeat);
        loop {
            // A body that is a stream cannot be sent twice; we send none.
            let copy = request.try_clone().context("the request cannot be sent")?;
            let failure = match send(copy).await {
                Ok(answer) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let wait = if self.reached.load(Ordering::Relaxed) {
                ride.next(&failure, Instant::now())
            } else {
                None
            };
            let Some(wait) = wait else { return Err(failure.into_error(&self.url)) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(Failure::of)?;
        ride::check(response).await
    }

    async fn json(&self, request: RequestBuilder, repeat: Repeat) -> anyhow::Result<Value> {
        let body = self
            .ride(request, repeat, async |request| {
                let response = self.send(request).await?;
                response.bytes().await.map_err(Failure::of)
            })
            .await?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).context("the answer is not JSON: is this a Berth address?")
    }
}

/// A text field of an answer; empty when it is missing.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.pointer(&pointer(field)).and_then(Value::as_str).unwrap_or_default()
}

/// A number field of an answer; 0 when it is missing.
pub(crate) fn number(value: &Value, field: &str) -> i64 {
    value.pointer(&pointer(field)).and_then(Value::as_i64).unwrap_or_default()
}

/// A list field of an answer; empty when it is missing.
pub(crate) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.pointer(&pointer(field)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn pointer(field: &str) -> String {
    format!("/{}", field.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads a request and gives its head in lower case.
    async fn read(stream: &mut TcpStream) -> String {
        let mut bytes = vec![0; 1 << 16];
        let mut length = 0;
        while !bytes[..length].windows(4).any(|it| it == b"\r\n\r\n") {
            length += stream.read(&mut bytes[length..]).await.unwrap();
        }
        String::from_utf8_lossy(&bytes[..length]).to_lowercase()
    }

    async fn answer(mut stream: TcpStream, status: &str, body: &str) -> String {
        let head = read(&mut stream).await;
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        head
    }

    fn key(head: &str) -> &str {
        head.lines().find_map(|it| it.strip_prefix("idempotency-key: ")).unwrap()
    }

    fn client(url: &str) -> Client {
        // Fails when another test has done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::new(url, None).unwrap()
    }

    #[tokio::test]
    async fn a_request_whose_answer_was_lost_is_sent_again_with_the_same_key() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let story = async {
            let accept = async || server.accept().await.unwrap().0;
            answer(accept().await, "200 OK", "{}").await;
            let mut lost = accept().await;
            let first = read(&mut lost).await;
            drop(lost);
            let under_way = r#"{"message": "the same Idempotency-Key is under way"}"#;
            answer(accept().await, "409 Conflict", under_way).await;
            answer(accept().await, "503 Service Unavailable", "{}").await;
            let repeated = answer(accept().await, "201 Created", r#"{"name": "dev"}"#).await;
            assert_eq!(key(&first), key(&repeated));
        };
        let client = client(&url);
        let command = async {
            client.get("/templates").await.unwrap();
            client.post_once("/workspaces", &json!({"name": "dev"})).await.unwrap()
        };
        let (made, ()) = tokio::join!(command, story);
        assert_eq!(made["name"], "dev");
    }

    #[tokio::test]
    async fn what_may_have_happened_is_not_done_twice_without_a_key() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let story = async {
            answer(server.accept().await.unwrap().0, "200 OK", "{}").await;
            let mut lost = server.accept().await.unwrap().0;
            read(&mut lost).await;
        };
        let client = client(&url);
        let command = async {
            client.get("/templates").await.unwrap();
            client.post("/workspaces/1/builds", &json!({})).await.unwrap_err()
        };
        let (error, ()) = tokio::join!(command, story);
        assert!(error.to_string().contains("no answer from"), "{error:#}");
    }

    #[tokio::test]
    async fn a_server_that_never_answered_is_not_waited_for() {
        let client = client("http://127.0.0.1:9");
        let error = client.get("/users/me").await.unwrap_err();
        assert!(error.to_string().contains("is it up?"), "{error:#}");
    }
}
