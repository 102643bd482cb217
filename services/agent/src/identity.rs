//! Shows the deployment which cloud instance the agent runs on, in exchange for the agent's token.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{CallError, message_of, read};
use crate::api::{http_client, http_client_without_proxy};
use crate::credentials::header;
use crate::options::{Cloud, Instance, Token};

/// For one request to the metadata service, which is on the machine itself.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a document, a signature, or an answer.
const MAX_DOCUMENT: usize = 64 << 10;
/// Seconds that a session of AWS' metadata service lasts: three requests.
const AWS_SESSION: &str = "60";
const AZURE_VERSION: &str = "2021-02-01";

/// Fetches the instance's document and shows it.
pub(crate) struct Exchange {
    cloud: Cloud,
    /// The metadata service's address, without a slash at its end.
    metadata: String,
    /// Whom Google's tokens are for: the deployment.
    audience: String,
    endpoint: String,
    agent_name: String,
    inside: reqwest::Client,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Session {
    session_token: String,
}

impl Exchange {
    /// For the deployment at `root`, without `/api/v2`.
    pub(crate) fn new(root: &str, instance: &Instance) -> anyhow::Result<Self> {
        let Instance { cloud, metadata_url, agent_name } = instance;
        let metadata = metadata_url.as_deref().unwrap_or_else(|| cloud.metadata_url());
        Url::parse(metadata)
            .with_context(|| format!("the metadata service's address {metadata:?} is no URL"))?;
        let root = root.trim_end_matches('/');
        Ok(Self {
            cloud: *cloud,
            metadata: metadata.trim_end_matches('/').to_owned(),
            audience: root.to_owned(),
            endpoint: format!("{root}/api/v2/workspaceagents/{cloud}"),
            agent_name: agent_name.trim().to_owned(),
            inside: http_client_without_proxy()?,
            http: http_client()?,
        })
    }

    /// Asks once.
    pub(crate) async fn ask(&self) -> Result<HeaderValue, CallError> {
        let mut body = match self.cloud {
            Cloud::Aws => self.aws().await?,
            Cloud::Azure => self.azure().await?,
            Cloud::Google => self.google().await?,
        };
        if !self.agent_name.is_empty() {
            body["agent_name"] = json!(self.agent_name);
        }
        let request = self.http.post(&self.endpoint).json(&body).timeout(CALL_TIMEOUT);
        let response = request.send().await.map_err(|error| lost("the deployment", error))?;
        let status = response.status();
        let answer = read("POST identity", response, MAX_DOCUMENT).await?;
        if !status.is_success() {
            return Err(CallError::Identity {
                reason: format!("the server answered {status}: {}", message_of(&answer)),
                // The instance is there before its build is done and its agent known.
                is_refused: matches!(status.as_u16(), 400 | 401 | 403 | 409 | 413),
            });
        }
        let session = serde_json::from_slice::<Session>(&answer).ok();
        let token = session.and_then(|it| header(&Token::new(&it.session_token)));
        token.ok_or_else(|| odd("the server's answer has no token".to_owned()))
    }

    /// By a session, as `IMDSv2` wants it. The stronger of the two signatures, where the region has it.
    async fn aws(&self) -> Result<Value, CallError> {
        let at = |path: &str| format!("{}/latest/{path}", self.metadata);
        let session = self
            .inside
            .put(at("api/token"))
            .header("X-aws-ec2-metadata-token-ttl-seconds", AWS_SESSION);
        let session = self.metadata(session).await?;
        let get = |path: &str| {
            let request = self.inside.get(at(&format!("dynamic/instance-identity/{path}")));
            self.metadata(request.header("X-aws-ec2-metadata-token", &session))
        };
        let document = get("document").await?;
        let signature = match get("rsa2048").await {
            Ok(signature) => signature,
            Err(_) => get("signature").await?,
        };
        Ok(json!({ "document": document, "signature": signature }))
    }

    async fn azure(&self) -> Result<Value, CallError> {
        let url =
            format!("{}/metadata/attested/document?api-version={AZURE_VERSION}", self.metadata);
        let text = self.metadata(self.inside.get(url).header("Metadata", "true")).await?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        let (encoding, signature) = (&answer["encoding"], &answer["signature"]);
        if !signature.is_string() {
            return Err(odd("the metadata service's answer has no signature".to_owned()));
        }
        Ok(json!({ "encoding": encoding, "signature": signature }))
    }

    async fn google(&self) -> Result<Value, CallError> {
        let path = "computeMetadata/v1/instance/service-accounts/default/identity";
        let request = self
            .inside
            .get(format!("{}/{path}", self.metadata))
            .query(&[("audience", self.audience.as_str()), ("format", "full")])
            .header("Metadata-Flavor", "Google");
        Ok(json!({ "json_web_token": self.metadata(request).await?.trim() }))
    }

    /// One answer of the metadata service.
    async fn metadata(&self, request: RequestBuilder) -> Result<String, CallError> {
        const WHO: &str = "the instance's metadata service";
        let request = request.timeout(METADATA_TIMEOUT);
        let response = request.send().await.map_err(|error| lost(WHO, error))?;
        let status = response.status();
        let body = read("metadata", response, MAX_DOCUMENT).await?;
        if status != StatusCode::OK {
            return Err(odd(format!("{WHO} answered {status}")));
        }
        String::from_utf8(body).map_err(|_| odd(format!("{WHO} answered with what is no text")))
    }
}

fn lost(who: &str, error: reqwest::Error) -> CallError {
    let error = anyhow::Error::from(error.without_url());
    odd(format!("no answer from {who}: {error:#}"))
}

fn odd(reason: String) -> CallError {
    CallError::Identity { reason, is_refused: false }
}
