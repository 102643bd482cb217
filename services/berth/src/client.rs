//! The API, as the command line uses it.

pub(crate) mod session;

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use berth_agent::sse::{SseEvent, SseParser};
use berth_agent::websocket::{self, ConnectError, WebSocket};
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::cli::Global;

const HEADER: &str = "Coder-Session-Token";

/// A client with an address and, once logged in, a token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
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
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), token })
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
        self.json(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PUT, path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PATCH, path).json(body)).await
    }

    /// Sends an archive; answers with the file's id.
    pub(crate) async fn upload(&self, archive: Vec<u8>) -> anyhow::Result<String> {
        let request = self
            .request(Method::POST, "/files")
            .header("Content-Type", "application/x-tar")
            .timeout(Duration::from_mins(5))
            .body(archive);
        let answer = self.json(request).await?;
        Ok(text(&answer, "hash").to_owned())
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
        let response = check(self.send(request).await?).await?;
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
        match check(response).await {
            Ok(response) => format!("the server answered {}", response.status()),
            Err(error) => error.to_string(),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v2{path}", self.url));
        match &self.token {
            Some(token) => request.header(HEADER, token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        request.send().await.with_context(|| {
            format!("no answer from {}: is it up? (`berth up` starts one here)", self.url)
        })
    }

    async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = check(self.send(request).await?).await?;
        if matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Value::Null);
        }
        let body = response.bytes().await.context("the answer broke off")?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).context("the answer is not JSON: is this a Berth address?")
    }
}

/// Turns an error answer into an error that says what the server said.
async fn check(response: Response) -> anyhow::Result<Response> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or_default();
    let mut message = match text(&body, "message") {
        "" => format!("the server answered {status}"),
        message => message.to_owned(),
    };
    if !text(&body, "detail").is_empty() {
        message = format!("{message}: {}", text(&body, "detail"));
    }
    for field in list(&body, "validations") {
        message = format!("{message}\n  {}: {}", text(field, "field"), text(field, "detail"));
    }
    if status == StatusCode::UNAUTHORIZED {
        bail!("{message}\nlog in again with `berth login URL`");
    }
    bail!(message)
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
