//! What happens to every request before and after its handler.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tracing::{Instrument as _, field};
use uuid::Uuid;

use crate::app::App;
use crate::auth;
use crate::error::ApiError;
use crate::rate_limit::Kind;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: Uuid;
}

/// How a failure that we do not explain can be found in the logs.
pub(crate) fn request_reference() -> String {
    CURRENT.try_with(|id| format!("request {id}")).unwrap_or_default()
}

/// Where a request came from, for the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Its id.
    pub(crate) request_id: Uuid,
    /// Its sender's address.
    pub(crate) ip: IpAddr,
    /// Its sender's program.
    pub(crate) user_agent: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::internal(anyhow::anyhow!("the edge did not see the request")))
    }
}

/// Gives a request its id, span and limits, and counts it.
pub(crate) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let origin = Origin {
        request_id: app.backbone.ids.next(),
        ip: address(&request),
        user_agent: text(request.headers(), &header::USER_AGENT).chars().take(256).collect(),
    };
    let id = origin.request_id;
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unknown", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!(
        "http.request",
        otel.kind = "server",
        otel.name = format!("{method} {route}"),
        http.route = route,
        request.id = %id,
        http.status = field::Empty,
    );
    let headers = request.headers().iter();
    let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    berth_bus::trace::continue_from(&span, headers);
    let refused = limit(&app, &request, &origin).err();
    request.extensions_mut().insert(origin);

    let answer = async {
        match refused {
            Some(error) => error.into_response(),
            None => answer(&app, &route, request, next).await,
        }
    };
    let mut response = CURRENT.scope(id, answer.instrument(span.clone())).await;
    let status = response.status().as_u16();
    span.record("http.status", status);
    app.metrics.answered(method.as_str(), &route, status, started.elapsed());
    secure(response.headers_mut());
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Runs the handler: within its time, and without taking the connection down when it panics.
async fn answer(app: &App, route: &str, request: Request, next: Next) -> Response {
    let http = &app.config.http;
    let time = if route.ends_with("/files") { http.upload_timeout } else { http.timeout };
    let handler = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(time.into(), handler).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            app.metrics.panicked();
            ApiError::internal(anyhow::anyhow!("the handler of {route} panicked")).into_response()
        }
        Err(_) => {
            let error = anyhow::anyhow!("no answer from the handler of {route} in time");
            ApiError::Unavailable(error).into_response()
        }
    }
}

fn limit(app: &App, request: &Request, origin: &Origin) -> Result<(), ApiError> {
    let address = origin.ip.to_string();
    // Whoever shows an instance's identity has no credential yet: one sent all the same counts for
    // nothing, or everybody could have a count of his own for each.
    let shows_identity = request.uri().path().ends_with("-instance-identity");
    let credential = auth::credential(request.headers()).filter(|_| !shows_identity);
    let caller = credential.as_deref().unwrap_or(&address);
    let now = app.now();
    let mut counted = app.rate_limits.count(Kind::Request, caller, now);
    if counted.is_ok() && request.uri().path().ends_with("/users/login") {
        counted = app.rate_limits.count(Kind::Login, &address, now);
    }
    counted.map_err(|seconds| {
        app.metrics.limited();
        ApiError::TooMany(seconds)
    })
}

fn address(request: &Request) -> IpAddr {
    let info = request.extensions().get::<ConnectInfo<SocketAddr>>();
    info.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |info| info.0.ip())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn secure(headers: &mut HeaderMap) {
    let all = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in all {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    // Answers differ by caller; streams say `no-cache` themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
