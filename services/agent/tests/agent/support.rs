//! The outside API as an agent sees it, played by a real HTTP server behind a line that can be cut.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) const TOKEN: &str = "3d2a6f6e-6b0c-4a87-9d2e-6b1b5f1f2a33";
pub(crate) const PREBUILDS_USER: &str = "c42fdf75-3097-471c-8c33-fb52454d81c0";
pub(crate) const ALICE: &str = "a11ce000-0000-4000-8000-000000000001";
const SCRIPT_SOURCE: &str = "50000000-0000-4000-8000-000000000001";
const PATIENCE: Duration = Duration::from_secs(20);

/// What `GET reinit` answers next.
pub(crate) enum Reinit {
    /// A stream that stays open; frames sent to `Api::stream` go out on it.
    Wait,
    /// A stream with this one frame, then its end.
    Once(String),
    /// 409 with this message.
    Conflict(&'static str),
}

pub(crate) fn claim_event(owner: &str) -> String {
    let data = json!({
        "workspace_id": ALICE, "workspaceID": ALICE, "reason": "prebuild_claimed", "owner_id": owner,
    });
    format!("event: data\ndata: {data}\n\n")
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) manifest: Value,
    pub(crate) token: String,
    /// Answers 503 to everything.
    pub(crate) unavailable: bool,
    pub(crate) reinit: VecDeque<Reinit>,
    pub(crate) reinit_requests: usize,
    pub(crate) manifest_requests: usize,
    pub(crate) heartbeats: usize,
    pub(crate) startups: Vec<Value>,
    pub(crate) lifecycle: Vec<String>,
    pub(crate) sources: Vec<String>,
    /// (source, level, output), as stored.
    pub(crate) logs: Vec<(String, String, String)>,
    pub(crate) largest_patch: usize,
    /// When each line was written, as stored.
    pub(crate) log_times: Vec<String>,
    /// Lines that are still kept; 413 says that these do not fit.
    pub(crate) room: Option<usize>,
    pub(crate) overflows: usize,
    /// Calls with a token that is not known.
    pub(crate) refused: usize,
    pub(crate) apps: Vec<Value>,
    pub(crate) metadata: Vec<Value>,
    /// Instance identities that were shown, by cloud.
    pub(crate) identities: Vec<(String, Value)>,
    /// What they are answered first; then the token.
    pub(crate) identity_refusals: VecDeque<(StatusCode, &'static str)>,
    streams: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>,
}

impl Seen {
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.logs.iter().map(|(_, _, output)| output.as_str()).collect()
    }
}

#[derive(Clone)]
pub(crate) struct Api {
    seen: Arc<Mutex<Seen>>,
    changed: Arc<watch::Sender<()>>,
    cut: Arc<watch::Sender<bool>>,
    address: SocketAddr,
}

impl Api {
    pub(crate) async fn start() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Self {
            seen: Arc::new(Mutex::new(Seen {
                manifest: manifest("prebuilds", PREBUILDS_USER, &json!([])),
                token: TOKEN.to_owned(),
                ..Seen::default()
            })),
            changed: Arc::new(watch::Sender::new(())),
            cut: Arc::new(watch::Sender::new(false)),
            address: line.local_addr().unwrap(),
        };
        tokio::spawn(carry(line, server.local_addr().unwrap(), api.cut.subscribe()));
        let router = Router::new()
            .route("/api/v2/workspaceagents/me/manifest", get(get_manifest))
            .route("/api/v2/workspaceagents/me/reinit", get(get_reinit))
            // A server from before there were terminals.
            .route("/api/v2/workspaceagents/me/terminals", get(async || StatusCode::NOT_FOUND))
            .route("/api/v2/workspaceagents/me/{call}", any(record))
            .layer(middleware::from_fn_with_state(api.clone(), check))
            .route("/api/v2/workspaceagents/{cloud}", post(identity))
            .with_state(api.clone());
        tokio::spawn(async move { axum::serve(server, router).await });
        api
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen());
        let _ = self.changed.send(());
    }

    /// The manifest of `owner` from now on, with one script that runs on start.
    pub(crate) fn given_script(&self, owner: &str, owner_id: &str, script: &str) {
        let scripts = json!([startup_script(script)]);
        self.change(|seen| seen.manifest = manifest(owner, owner_id, &scripts));
    }

    /// Breaks all connections and refuses new ones.
    pub(crate) fn cut(&self) {
        let _ = self.cut.send(true);
    }

    pub(crate) fn heal(&self) {
        let _ = self.cut.send(false);
    }

    /// Sends a frame on every open `reinit` stream.
    pub(crate) async fn stream(&self, frame: &str) {
        let streams = self.seen().streams.clone();
        for stream in streams {
            let _ = stream.send(Ok(Bytes::from(frame.to_owned()))).await;
        }
    }

    /// Ends every open `reinit` stream without an event.
    pub(crate) fn end_streams(&self) {
        self.seen().streams.clear();
    }

    /// Waits until what was seen satisfies `condition`.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &'static str,
        condition: impl Fn(&Seen) -> bool,
    ) -> impl Future<Output = ()> {
        let api = self.clone();
        let caller = std::panic::Location::caller();
        async move {
            let mut changed = api.changed.subscribe();
            let wait = async {
                while !condition(&api.seen()) {
                    changed.changed().await.unwrap();
                }
            };
            if tokio::time::timeout(PATIENCE, wait).await.is_err() {
                let seen = api.seen();
                panic!(
                    "{caller}: never {what}; lifecycle {:?}, reinit {}, log tail {:?}",
                    seen.lifecycle,
                    seen.reinit_requests,
                    &seen.lines()[seen.lines().len().saturating_sub(5)..],
                );
            }
        }
    }

    pub(crate) async fn until_lifecycle(&self, expected: &[&str]) {
        self.until("this lifecycle", |seen| seen.lifecycle.len() >= expected.len()).await;
        assert_eq!(self.seen().lifecycle, expected);
    }

    /// Lets the agent live for some more beats, in which it could do what it must not do.
    pub(crate) async fn beats(&self, count: usize) {
        let before = self.seen().heartbeats;
        self.until("so many heartbeats", |seen| seen.heartbeats >= before + count).await;
    }
}

pub(crate) fn startup_script(script: &str) -> Value {
    json!({
        "id": SCRIPT_SOURCE, "log_source_id": SCRIPT_SOURCE, "display_name": "Startup",
        "script": script, "run_on_start": true, "start_blocks_login": true, "timeout": 0,
    })
}

pub(crate) fn manifest(owner: &str, owner_id: &str, scripts: &Value) -> Value {
    json!({
        "agent_id": "a9e00000-0000-4000-8000-000000000001", "agent_name": "main",
        "workspace_id": ALICE, "workspace_name": "dev", "owner_id": owner_id, "owner_name": owner,
        "directory": "~", "environment_variables": {"FROM_MANIFEST": "$HOME/x"},
        "scripts": scripts, "apps": [], "metadata": [],
    })
}

/// Carries bytes between the agent and the server while the line is whole.
async fn carry(line: TcpListener, server: SocketAddr, cut: watch::Receiver<bool>) {
    while let Ok((mut near, _)) = line.accept().await {
        let mut cut = cut.clone();
        if *cut.borrow_and_update() {
            continue;
        }
        tokio::spawn(async move {
            let mut far = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn check(State(api): State<Api>, request: Request, next: middleware::Next) -> Response {
    let (token, unavailable) = {
        let seen = api.seen();
        (seen.token.clone(), seen.unavailable)
    };
    if unavailable {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"message": "not now"})))
            .into_response();
    }
    if request.headers().get("Coder-Session-Token").is_none_or(|it| *it != token) {
        let of_manifest = usize::from(request.uri().path().ends_with("/manifest"));
        api.change(|seen| {
            seen.manifest_requests += of_manifest;
            seen.refused += 1;
        });
        let body = json!({"message": "Workspace agent not authorized."});
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    next.run(request).await
}

async fn get_manifest(State(api): State<Api>) -> Json<Value> {
    api.change(|seen| seen.manifest_requests += 1);
    Json(api.seen().manifest.clone())
}

async fn get_reinit(State(api): State<Api>, request: Request) -> Response {
    assert_eq!(request.uri().query(), Some("wait=true"));
    let next = api.seen().reinit.pop_front().unwrap_or(Reinit::Wait);
    let response = match next {
        Reinit::Conflict(message) => {
            (StatusCode::CONFLICT, Json(json!({"message": message}))).into_response()
        }
        Reinit::Once(frame) => sse(Body::from(frame)),
        Reinit::Wait => {
            let (frames, body) = mpsc::channel(8);
            frames.try_send(Ok(Bytes::from_static(b"event: ping\n\n"))).unwrap();
            api.seen().streams.push(frames);
            sse(Body::from_stream(ReceiverStream::new(body).fuse()))
        }
    };
    api.change(|seen| seen.reinit_requests += 1);
    response
}

async fn identity(
    State(api): State<Api>,
    Path(cloud): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let refusal = api.seen().identity_refusals.pop_front();
    api.change(|seen| seen.identities.push((cloud, body)));
    match refusal {
        Some((status, message)) => (status, Json(json!({"message": message}))).into_response(),
        None => Json(json!({"session_token": api.seen().token})).into_response(),
    }
}

fn sse(body: Body) -> Response {
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn record(State(api): State<Api>, request: Request) -> Response {
    let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let call = format!("{} {call}", request.method());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let size = body.len();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut status = StatusCode::NO_CONTENT;
    api.change(|seen| match call.as_str() {
        "POST startup" => seen.startups.push(body),
        "POST report-lifecycle" => {
            assert!(text(&body["changed_at"]).ends_with('Z'));
            seen.lifecycle.push(text(&body["state"]));
        }
        "POST heartbeat" => seen.heartbeats += 1,
        "POST log-source" => seen.sources.push(text(&body["id"])),
        "PATCH logs" => {
            let source = text(&body["log_source_id"]);
            assert!(seen.sources.contains(&source), "log source {source} was not registered");
            seen.largest_patch = seen.largest_patch.max(size);
            let lines = body["logs"].as_array().unwrap();
            if seen.room.is_some_and(|room| seen.logs.len() + lines.len() > room) {
                seen.overflows += 1;
                status = StatusCode::PAYLOAD_TOO_LARGE;
                return;
            }
            for line in lines {
                seen.log_times.push(text(&line["created_at"]));
                seen.logs.push((source.clone(), text(&line["level"]), text(&line["output"])));
            }
        }
        "POST app-health" => seen.apps.push(body["apps"].clone()),
        "POST metadata" => seen.metadata.extend(body["metadata"].as_array().unwrap().clone()),
        other => panic!("no such call: {other}"),
    });
    if status == StatusCode::NO_CONTENT {
        return status.into_response();
    }
    (status, Json(json!({"message": "0 lines were stored"}))).into_response()
}
