//! The API as tests ask it: one replica in this process, over a database of the test's.

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use berth_backbone::{Backbone, Clock};
use berth_bus::subjects::Stream;
use berth_bus::{Bus, BusConfig};
use berth_testkit::{SOON, servers, subject_space};
use futures_util::StreamExt as _;
use http::{Request, StatusCode, header};
use prometheus::Registry;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::app::App;
use crate::config::Config;
use crate::live::{Live, follow};

/// When a replica starts; its clock stands still.
pub(crate) const NOW: &str = "2026-11-21T12:00:00Z";

/// Seals what replicas store.
const ENCRYPTION_KEY: &str = "test:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Null where it is no JSON.
    pub(crate) body: Value,
}

impl Answer {
    async fn read(response: Response) -> Self {
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        Self { status, body: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    /// The body, of an answer with this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        self.body
    }

    /// The fields that were refused.
    #[track_caller]
    pub(crate) fn refused(self) -> Vec<String> {
        assert_eq!(self.status, 400, "{:#}", self.body);
        let fields = self.body["validations"].as_array().cloned().unwrap_or_default();
        fields.iter().map(|it| it["field"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// Server-sent events as they come. Dropped, the client is gone.
pub(crate) struct Events {
    body: BodyDataStream,
    text: String,
}

impl Events {
    /// The next event's name and data; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
                let name = field("event: ").unwrap_or_default().to_owned();
                let data = field("data: ").and_then(|it| serde_json::from_str(it).ok());
                self.text = rest.to_owned();
                return Some((name, data.unwrap_or_default()));
            }
            let bytes = tokio::time::timeout(SOON, self.body.next()).await;
            let bytes = bytes.expect("the stream says that it lives")?.unwrap();
            self.text += std::str::from_utf8(&bytes).unwrap();
        }
    }

    /// The next event that is no ping.
    pub(crate) async fn told(&mut self) -> Option<(String, Value)> {
        loop {
            let event = self.next().await?;
            if event.0 != "ping" {
                return Some(event);
            }
        }
    }
}

/// One replica. Its events stay in the outbox.
pub(crate) struct Replica {
    pub(crate) app: App,
    router: Router,
}

impl Replica {
    pub(crate) async fn over(url: &str, connections: u32, config: Config) -> Self {
        let nats = servers().await.nats_url.clone();
        let bus = BusConfig { url: nats, prefix: subject_space(), ..BusConfig::default() };
        Self::over_both(url, connections, &bus, config).await
    }

    /// The same over this NATS, which may be none.
    pub(crate) async fn over_both(
        url: &str,
        connections: u32,
        bus: &BusConfig,
        mut config: Config,
    ) -> Self {
        config.encryption.keys = ENCRYPTION_KEY.into();
        let db = berth_db::connect(url, connections, "test").unwrap();
        let bus = Bus::connect(bus, "test").await.unwrap();
        let clock = Clock::manual(NOW.parse().unwrap());
        let (backbone, _publisher) = Backbone::over("api", (db, bus), clock);
        let live = Live::silent(CancellationToken::new());
        let app = App::over(config, backbone, live, &Registry::new()).unwrap();
        let router = crate::routes::router(app.clone());
        Self { app, router }
    }

    /// Lets the streams of this replica hear of claims, until the test ends.
    pub(crate) fn hear_claims(&self) {
        let bus = self.app.backbone.bus.clone();
        tokio::spawn(follow::notices(self.app.live.clone(), bus, Stream::Claims));
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.app.backbone.clock.advance(jiff::SignedDuration::from_secs(seconds));
    }

    /// Sends a request with this session or token.
    pub(crate) async fn send(
        &self,
        token: Option<&str>,
        request: http::request::Builder,
        body: Body,
    ) -> Answer {
        Answer::read(self.ask(token, request, body).await).await
    }

    async fn ask(
        &self,
        token: Option<&str>,
        request: http::request::Builder,
        body: Body,
    ) -> Response {
        let request = match token {
            Some(token) => request.header("Coder-Session-Token", token),
            None => request,
        };
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Asks for a stream; another answer than 200 is no stream.
    pub(crate) async fn open(
        &self,
        token: Option<&str>,
        request: http::request::Builder,
    ) -> Result<Events, Answer> {
        let response = self.ask(token, request, Body::empty()).await;
        if response.status() != StatusCode::OK {
            return Err(Answer::read(response).await);
        }
        Ok(Events { body: response.into_body().into_data_stream(), text: String::new() })
    }

    /// Opens a request to `path` under `/api/v2`.
    pub(crate) fn request(path: &str) -> http::request::Builder {
        Request::builder().uri(format!("/api/v2{path}"))
    }
}
