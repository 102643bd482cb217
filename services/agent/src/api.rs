//! The agent's side of the API: one function per endpoint under `/api/v2/workspaceagents/me`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_domain::state::{AgentLifecycle, LogLevel};
use berth_domain::terminal::MAX_FRAME;
use jiff::Timestamp;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::credentials::Credentials;
use crate::manifest::{AppHealth, Manifest};
use crate::options::{Auth, Timing};
use crate::websocket::{self, ConnectError, WebSocket};

const TOKEN_HEADER: HeaderName = HeaderName::from_static("coder-session-token");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the last byte of the answer; streams have only the time to their head.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A manifest holds scripts, which people write; ten thousand long ones fit.
const MAX_MANIFEST: usize = 16 << 20;
const MAX_ERROR_BODY: usize = 64 << 10;
/// Connections kept open for the next call: of all that goes on at the same time, few calls do.
const MAX_IDLE: usize = 2;

/// What a failed call means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server is away or busy: soon again.
    Later,
    /// The token or the agent is not known, not yet or not any more: ask again ever more slowly.
    Refused,
    /// This request will never be accepted.
    Never,
}

impl Verdict {
    /// For calls without whose answer there is nothing else to do: even a flat no is asked again,
    /// slowly.
    pub(crate) fn but_ask_again(self) -> Self {
        match self {
            Self::Never => Self::Refused,
            other => other,
        }
    }
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer, or not all of it.
    #[error("{call}: no answer from the server")]
    Transport {
        call: &'static str,
        #[source]
        source: reqwest::Error,
    },
    /// The head of a stream did not come.
    #[error("{call}: no answer within {} s", CALL_TIMEOUT.as_secs())]
    Silence { call: &'static str },
    /// An answer that says no.
    #[error("{call}: the server answered {status}: {message}")]
    Status { call: &'static str, status: StatusCode, message: String },
    /// An answer of something else: a proxy that has no server behind it, for the moment.
    #[error("{call}: not Berth but something before it answered {status}")]
    Foreign { call: &'static str, status: StatusCode },
    /// An answer that is not what it should be.
    #[error("{call}: the answer is not understood: {reason}")]
    Body { call: &'static str, reason: String },
    /// There is no token to call with: the instance's identity could not be shown, or was refused.
    #[error("instance identity: {reason}")]
    Identity { reason: String, is_refused: bool },
}

impl CallError {
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Status { status, .. } => match status.as_u16() {
                401 | 403 => Verdict::Refused,
                408 | 425 | 429 | 500..=599 => Verdict::Later,
                _ => Verdict::Never,
            },
            // Less than it takes; and that will not change.
            Self::Foreign { status, .. } if *status == StatusCode::PAYLOAD_TOO_LARGE => {
                Verdict::Never
            }
            Self::Identity { is_refused: true, .. } => Verdict::Refused,
            Self::Transport { .. }
            | Self::Silence { .. }
            | Self::Foreign { .. }
            | Self::Identity { .. }
            | Self::Body { .. } => Verdict::Later,
        }
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The whole chain in one line, with what a person can do about it.
    pub(crate) fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        if matches!(self, Self::Status { .. }) && self.verdict() == Verdict::Refused {
            text.push_str(
                "; the agent's token is not accepted: it was revoked, or the workspace was \
                 rebuilt with another one (BERTH_AGENT_TOKEN)",
            );
        }
        text
    }
}

/// `POST startup`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Startup {
    pub(crate) version: &'static str,
    pub(crate) expanded_directory: String,
    pub(crate) subsystems: Vec<String>,
}

/// `POST report-lifecycle`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Lifecycle {
    pub(crate) state: AgentLifecycle,
    pub(crate) changed_at: Timestamp,
}

/// `POST log-source`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LogSource {
    pub(crate) id: Uuid,
    pub(crate) display_name: String,
    pub(crate) icon: String,
}

/// One line of `PATCH logs`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LogLine {
    pub(crate) created_at: Timestamp,
    pub(crate) level: LogLevel,
    pub(crate) output: String,
}

#[derive(Serialize)]
struct PatchLogs<'a> {
    log_source_id: Uuid,
    logs: &'a [LogLine],
}

/// One value of `POST metadata`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetadataValue {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) error: String,
    pub(crate) collected_at: Timestamp,
    /// Seconds since it was collected.
    pub(crate) age: i64,
    /// The same moment by a clock that nobody sets.
    #[serde(skip)]
    pub(crate) collected: tokio::time::Instant,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: String,
}

/// The API as one agent sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    credentials: Arc<Credentials>,
}

/// A request with the token that it carries.
struct Ask {
    request: RequestBuilder,
    token: HeaderValue,
}

impl Client {
    /// A client for the deployment at `url`. Connects only when it is used.
    pub(crate) fn new(url: &str, auth: &Auth, timing: Timing) -> anyhow::Result<Self> {
        let parsed = reqwest::Url::parse(url.trim())
            .with_context(|| format!("the deployment's address {url:?} is not a URL"))?;
        anyhow::ensure!(
            matches!(parsed.scheme(), "http" | "https"),
            "the deployment's address {url:?} must start with http:// or https://"
        );
        let root = parsed.as_str().trim_end_matches('/');
        let credentials = Arc::new(Credentials::new(root, auth, timing)?);
        let base = format!("{root}/api/v2/workspaceagents/me");
        Ok(Self { http: http_client()?, base, credentials })
    }

    /// The token that calls carry now; empty while there is none.
    pub(crate) fn known_token(&self) -> String {
        let token = self.credentials.known();
        token.as_ref().and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned()
    }

    pub(crate) async fn manifest(&self) -> Result<Manifest, CallError> {
        const CALL: &str = "GET manifest";
        let mut ask = self.ask(Method::GET, "manifest").await?;
        ask.request = ask.request.timeout(CALL_TIMEOUT);
        let response = self.call(CALL, ask).await?;
        let body = read(CALL, response, MAX_MANIFEST).await?;
        serde_json::from_slice(&body)
            .map_err(|error| CallError::Body { call: CALL, reason: error.to_string() })
    }

    pub(crate) async fn startup(&self, body: &Startup) -> Result<(), CallError> {
        self.send("POST startup", Method::POST, "startup", body).await
    }

    pub(crate) async fn lifecycle(&self, body: &Lifecycle) -> Result<(), CallError> {
        self.send("POST report-lifecycle", Method::POST, "report-lifecycle", body).await
    }

    pub(crate) async fn heartbeat(&self) -> Result<(), CallError> {
        self.send("POST heartbeat", Method::POST, "heartbeat", &serde_json::json!({})).await
    }

    pub(crate) async fn log_source(&self, body: &LogSource) -> Result<(), CallError> {
        self.send("POST log-source", Method::POST, "log-source", body).await
    }

    pub(crate) async fn logs(&self, source: Uuid, logs: &[LogLine]) -> Result<(), CallError> {
        let body = PatchLogs { log_source_id: source, logs };
        self.send("PATCH logs", Method::PATCH, "logs", &body).await
    }

    pub(crate) async fn app_health(
        &self,
        apps: &BTreeMap<Uuid, AppHealth>,
    ) -> Result<(), CallError> {
        let body = BTreeMap::from([("apps", apps)]);
        self.send("POST app-health", Method::POST, "app-health", &body).await
    }

    pub(crate) async fn metadata(&self, values: &[MetadataValue]) -> Result<(), CallError> {
        let body = BTreeMap::from([("metadata", values)]);
        self.send("POST metadata", Method::POST, "metadata", &body).await
    }

    /// Opens the `reinit` stream; the answer's body is server-sent events.
    pub(crate) async fn reinit(&self) -> Result<Response, CallError> {
        const CALL: &str = "GET reinit";
        let mut ask = self.ask(Method::GET, "reinit?wait=true").await?;
        ask.request = ask.request.header(ACCEPT, "text/event-stream");
        // Not a request timeout: that one would also end the stream.
        tokio::time::timeout(CALL_TIMEOUT, self.call(CALL, ask))
            .await
            .unwrap_or(Err(CallError::Silence { call: CALL }))
    }

    /// Opens the WebSocket over which people's terminals come.
    pub(crate) async fn terminals(&self) -> Result<WebSocket, CallError> {
        const CALL: &str = "GET terminals";
        let Ask { request, token } = self.ask(Method::GET, "terminals").await?;
        match websocket::connect(request, MAX_FRAME).await {
            Ok((socket, _)) => Ok(socket),
            Err(ConnectError::Refused(response)) => Err(self.refusal(CALL, response, &token).await),
            Err(ConnectError::Transport(source)) => {
                Err(CallError::Transport { call: CALL, source })
            }
            Err(ConnectError::Silence) => Err(CallError::Silence { call: CALL }),
            Err(error @ ConnectError::Handshake) => {
                Err(CallError::Body { call: CALL, reason: error.to_string() })
            }
        }
    }

    /// A request to `path`, with the token.
    async fn ask(&self, method: Method, path: &str) -> Result<Ask, CallError> {
        let token = self.credentials.token().await?;
        let request = self.http.request(method, format!("{}/{path}", self.base));
        Ok(Ask { request: request.header(TOKEN_HEADER, token.clone()), token })
    }

    async fn send(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), CallError> {
        let mut ask = self.ask(method, path).await?;
        ask.request = ask.request.timeout(CALL_TIMEOUT).json(body);
        self.call(call, ask).await.map(drop)
    }

    async fn call(&self, call: &'static str, ask: Ask) -> Result<Response, CallError> {
        let response = ask
            .request
            .send()
            .await
            .map_err(|error| CallError::Transport { call, source: error.without_url() })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(call, response, &ask.token).await)
    }

    /// Reads an answer that says no.
    async fn refusal(
        &self,
        call: &'static str,
        response: Response,
        token: &HeaderValue,
    ) -> CallError {
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            self.credentials.refused(token);
        }
        let body = read(call, response, MAX_ERROR_BODY).await.unwrap_or_default();
        refusal(call, status, &body)
    }
}

/// What an answer that says no means. Berth says why; a `404` of anything else says nothing about what
/// was asked.
fn refusal(call: &'static str, status: StatusCode, body: &[u8]) -> CallError {
    let is_a_proxys = matches!(status.as_u16(), 400 | 404 | 405 | 413);
    if is_a_proxys && serde_json::from_slice::<ErrorBody>(body).is_err() {
        CallError::Foreign { call, status }
    } else {
        CallError::Status { call, status, message: message_of(body) }
    }
}

/// A client with timeouts. Machines without certificates can still reach plain HTTP.
pub(crate) fn http_client() -> anyhow::Result<reqwest::Client> {
    client(reqwest::Client::builder)
}

/// A client for what is on the machine itself, which no proxy reaches.
pub(crate) fn http_client_without_proxy() -> anyhow::Result<reqwest::Client> {
    client(|| reqwest::Client::builder().no_proxy())
}

fn client(plain: impl Fn() -> reqwest::ClientBuilder) -> anyhow::Result<reqwest::Client> {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        plain()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(MAX_IDLE)
            .user_agent(concat!("berth-agent/", env!("CARGO_PKG_VERSION")))
    };
    builder()
        .build()
        .or_else(|_| builder().tls_certs_only(std::iter::empty()).build())
        .context("cannot set up an HTTP client")
}

/// The body of an answer, of at most `limit` bytes.
pub(crate) async fn read(
    call: &'static str,
    mut response: Response,
    limit: usize,
) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| CallError::Transport { call, source: error.without_url() })?
    {
        if body.len() + chunk.len() > limit {
            let reason = format!("it is longer than {limit} bytes");
            return Err(CallError::Body { call, reason });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an error body says, in one line.
pub(crate) fn message_of(body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(error) if error.detail.is_empty() => error.message,
        Ok(error) => format!("{} ({})", error.message, error.detail),
        Err(_) => {
            String::from_utf8_lossy(body).lines().next().unwrap_or_default().trim().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_no_of_the_server_itself_is_final() {
        let verdict = |status, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            refusal("call", status, body.as_bytes()).verdict()
        };
        let ours = r#"{"message": "no"}"#;
        assert_eq!(verdict(400, ours), Verdict::Never);
        assert_eq!(verdict(404, ours), Verdict::Never);
        assert_eq!(verdict(404, "default backend - 404"), Verdict::Later);
        assert_eq!(verdict(400, ""), Verdict::Later);
        assert_eq!(verdict(413, "<html>"), Verdict::Never);
        assert_eq!(verdict(401, ""), Verdict::Refused);
        assert_eq!(verdict(409, ""), Verdict::Never);
        assert_eq!(verdict(503, "<html>"), Verdict::Later);
    }
}
