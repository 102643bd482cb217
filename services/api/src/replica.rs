//! The API as tests ask it: one replica in this process, over a database of the test's.

use axum::Router;
use axum::body::Body;
use berth_backbone::{Backbone, Clock};
use berth_bus::{Bus, BusConfig};
use berth_testkit::{servers, subject_space};
use http::{Request, header};
use prometheus::Registry;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::app::App;
use crate::config::Config;
use crate::live::Live;

/// When a replica starts; its clock stands still.
pub(crate) const NOW: &str = "2026-11-21T12:00:00Z";

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Null where it is no JSON.
    pub(crate) body: Value,
}

impl Answer {
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

/// One replica. Its events stay in the outbox.
pub(crate) struct Replica {
    pub(crate) app: App,
    router: Router,
}

impl Replica {
    pub(crate) async fn over(url: &str, connections: u32, config: Config) -> Self {
        let db = berth_db::connect(url, connections, "test").unwrap();
        let url = servers().await.nats_url.clone();
        let bus = BusConfig { url, prefix: subject_space(), ..BusConfig::default() };
        let bus = Bus::connect(&bus, "test").await.unwrap();
        let clock = Clock::manual(NOW.parse().unwrap());
        let (backbone, _publisher) = Backbone::over("api", (db, bus), clock);
        let live = Live::silent(CancellationToken::new());
        let app = App::over(config, backbone, live, &Registry::new()).unwrap();
        let router = crate::routes::router(app.clone());
        Self { app, router }
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
        let request = match token {
            Some(token) => request.header("Coder-Session-Token", token),
            None => request,
        };
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        Answer { status, body: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    /// Opens a request to `path` under `/api/v2`.
    pub(crate) fn request(path: &str) -> http::request::Builder {
        Request::builder().uri(format!("/api/v2{path}"))
    }
}
