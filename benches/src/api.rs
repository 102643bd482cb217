//! The API, asked as a program would, by the user who owns the deployment.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use crate::data::TOKEN;
use crate::service::{Service, client};
use crate::stage::{Estate, Stage};

/// A running API and a client of it. Cheap to clone is only the client.
#[derive(Debug)]
pub(crate) struct Api {
    /// The process.
    pub(crate) service: Service,
    /// How to ask.
    pub(crate) client: Client,
}

/// Asks.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
}

impl Api {
    /// Starts one, past the proxy: what it asks of Postgres is not the question.
    pub(crate) async fn start(stage: &Stage, estate: &Estate) -> anyhow::Result<Self> {
        Self::start_at(stage, estate, &estate.url).await
    }

    /// Starts one with `url` as its way to the database.
    pub(crate) async fn start_at(
        stage: &Stage,
        estate: &Estate,
        url_of_database: &str,
    ) -> anyhow::Result<Self> {
        let listen = format!("127.0.0.1:{}", berth_devstack::free_port()?);
        let url = format!("http://{listen}");
        let more = [
            ("BERTH_HTTP__LISTEN", listen.as_str()),
            ("BERTH_HTTP__ACCESS_URL", &url),
            ("BERTH_RATE_LIMIT__REQUESTS", "0"),
        ];
        let service = stage.start(("api", 0), estate, url_of_database, &more).await?;
        Ok(Self { service, client: Client { http: client()?, url } })
    }
}

impl Client {
    /// Where it asks: host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends JSON below `/api/v2`; anything but success is an error with what was said.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let request = self.http.request(method, format!("{}/api/v2{path}", self.url));
        let request = request.header("Coder-Session-Token", TOKEN).json(body);
        let answer = request.send().await.with_context(|| path.to_owned())?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("{path} answered no JSON: {text}"))
    }
}
