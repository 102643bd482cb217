//! An agent's end of its terminals: the WebSocket that it keeps open to one replica. What comes from
//! it goes to the attachment that it names, which some replica has; what is for it comes by NATS.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::response::Response;
use berth_bus::Bus;
use berth_bus::terminal::Arrival;
use berth_db::agent::terminal;
use berth_domain::id::{AgentId, AttachmentId};
use berth_domain::terminal::{
    End, MAX_ATTACHMENTS, MAX_FRAME, OUTPUT_WINDOW, Reply, Request, cost,
};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::app::App;
use crate::auth::AgentCaller;
use crate::error::ApiError;
use crate::live::answer::Upgrade;
use crate::stream_limit::Holder;

/// How long NATS may take.
const SUBSCRIBE: Duration = Duration::from_secs(5);
/// How often the agent is asked whether it lives, and looked up; how long it may say nothing.
const PING_EVERY: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(45);
/// How long the agent may take to take a frame.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// Another connection of the agent has taken over.
const SUPERSEDED: u16 = 4000;
/// The kind of the frame by which a new connection says so: its id follows.
const HELLO: u8 = 255;

/// `GET /workspaceagents/me/terminals`
pub(super) async fn serve(
    State(app): State<App>,
    caller: AgentCaller,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|_| ApiError::invalid("This is a WebSocket; ask for one."))?;
    let agent = caller.agent.id;
    let place = app.streams.take(Holder::Agent(agent))?;
    let bus = app.backbone.bus.clone();
    // Before the answer, so that an agent that is connected can be reached.
    let subscribed = timeout(SUBSCRIBE, bus.frames(bus.subjects().terminals_in(agent))).await;
    let frames = subscribed
        .map_err(|_| ApiError::Unavailable(anyhow::anyhow!("NATS does not answer")))?
        .map_err(|error| ApiError::Unavailable(error.into()))?;
    let line = Line { id: app.backbone.ids.next(), agent, bus, served: Mutex::default() };
    Ok(upgrade
        .max_message_size(MAX_FRAME)
        .max_frame_size(MAX_FRAME)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            line.talk(app, socket, frames).await;
            drop(place);
        }))
}

/// How much the agent may send to an attachment.
struct Allowance {
    spent: u64,
    limit: u64,
}

/// Why the connection is closed.
enum Leave {
    Agent,
    Superseded,
    /// The agent is another one now, or none: it may come again as what it is.
    Retired,
    Stopping,
    /// It sent what it may not.
    Bad,
}

/// One agent's connection.
struct Line {
    id: Uuid,
    agent: AgentId,
    bus: Bus,
    served: Mutex<HashMap<AttachmentId, Allowance>>,
}

impl Line {
    async fn talk(self, app: App, socket: WebSocket, frames: impl Stream<Item = Arrival> + Unpin) {
        let (mut sink, mut stream) = socket.split();
        self.send(self.bus.subjects().terminals_in(self.agent), self.hello()).await;
        tracing::debug!(agent.id = %self.agent, "agent connected for terminals");
        let leave = tokio::select! {
            leave = self.pass_down(frames, &mut sink) => leave,
            leave = self.pass_up(&mut stream) => leave,
            leave = self.watch(&app) => leave,
        };
        if !matches!(leave, Leave::Superseded) {
            let left: Vec<_> = self.served().drain().map(|(id, _)| id).collect();
            for id in left {
                let frame = Reply::Ended(End::Away).encode(id);
                self.send(self.bus.subjects().terminal_out(self.agent, id), frame).await;
            }
        }
        let (code, reason) = match leave {
            Leave::Agent => return,
            Leave::Superseded => (SUPERSEDED, "another connection of this agent took over"),
            Leave::Retired => (1012, "the agent was replaced; connect again"),
            Leave::Stopping => (1012, "the server restarts; connect again"),
            Leave::Bad => (1008, "more was sent than may be"),
        };
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // The agent may be gone.
        let _ = timeout(SUBSCRIBE, sink.send(close)).await;
    }

    fn served(&self) -> MutexGuard<'_, HashMap<AttachmentId, Allowance>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is lost on the way its reader notices.
    async fn send(&self, subject: String, frame: impl Into<axum::body::Bytes>) {
        let _ = self.bus.send_frame(subject, frame.into()).await;
    }

    fn hello(&self) -> Vec<u8> {
        [&[0; 16][..], &[HELLO], self.id.as_bytes()].concat()
    }

    /// From NATS to the agent.
    async fn pass_down(
        &self,
        mut frames: impl Stream<Item = Arrival> + Unpin,
        sink: &mut SplitSink<WebSocket, Message>,
    ) -> Leave {
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let arrival = tokio::select! {
                arrival = frames.next() => arrival,
                _ = pings.tick() => {
                    if sink.send(Message::Ping(Vec::new().into())).await.is_err() {
                        return Leave::Agent;
                    }
                    continue;
                }
            };
            let Some(Arrival { frame, reply }) = arrival else { return Leave::Stopping };
            if let Some(other) = frame.strip_prefix(&[&[0; 16][..], &[HELLO]].concat()[..]) {
                // Ids grow with time: of two that meet, the newer stays.
                if other > &self.id.as_bytes()[..] {
                    return Leave::Superseded;
                }
                continue;
            }
            let refusal = self.note(&frame);
            if let Some(reply) = reply {
                let answer = refusal
                    .as_ref()
                    .map_or_else(Vec::new, |(id, end)| Reply::Ended(end.clone()).encode(*id));
                self.send(reply, answer).await;
            }
            if refusal.is_some() {
                continue;
            }
            let sent = timeout(SEND_WITHIN, sink.send(Message::Binary(frame))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Leave::Agent;
            }
        }
    }

    /// Keeps account of who may be sent how much. Answers with why a frame is not passed on.
    fn note(&self, frame: &[u8]) -> Option<(AttachmentId, End)> {
        let (id, request) = Request::decode(frame).ok()?;
        let mut served = self.served();
        match request {
            Request::Open(_) if served.len() >= MAX_ATTACHMENTS => {
                let message = format!("it has {MAX_ATTACHMENTS} terminals open; close one");
                return Some((id, End::Refused { message }));
            }
            Request::Open(_) => {
                served.insert(id, Allowance { spent: 0, limit: OUTPUT_WINDOW });
            }
            Request::Credit(limit) | Request::Ping { limit, .. } => {
                if let Some(it) = served.get_mut(&id) {
                    it.limit = it.limit.max(limit);
                }
            }
            Request::Close => drop(served.remove(&id)),
            Request::Input { .. } | Request::EndInput | Request::Resize(_) | Request::HangUp => {}
        }
        None
    }

    /// From the agent to NATS: only to attachments of its own, and no more than they take.
    async fn pass_up(&self, stream: &mut SplitStream<WebSocket>) -> Leave {
        loop {
            let frame = match timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(Message::Binary(frame)))) => frame,
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return Leave::Agent,
                Ok(Some(Ok(_))) => continue,
            };
            let Ok((id, reply)) = Reply::decode(&frame) else { return Leave::Bad };
            match self.admit(id, &reply) {
                Some(true) => {
                    self.send(self.bus.subjects().terminal_out(self.agent, id), frame).await;
                }
                Some(false) => return Leave::Bad,
                None => {}
            }
        }
    }

    /// Whether a frame goes on; `None`: nobody waits for it.
    fn admit(&self, id: AttachmentId, reply: &Reply<'_>) -> Option<bool> {
        let mut served = self.served();
        match reply {
            Reply::Ended(_) => {
                // Of attachments of an earlier connection, too.
                served.remove(&id);
                Some(true)
            }
            Reply::Output { bytes, .. } => {
                let it = served.get_mut(&id)?;
                it.spent += cost(bytes.len());
                Some(it.spent <= it.limit)
            }
            _ => served.contains_key(&id).then_some(true),
        }
    }

    async fn watch(&self, app: &App) -> Leave {
        let mut looks = interval(PING_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = app.live.stop.cancelled() => return Leave::Stopping,
                _ = looks.tick() => {}
            }
            match terminal::find_place(app.db(), self.agent).await {
                Ok(Some(place)) if !place.is_retired => {}
                Ok(_) => return Leave::Retired,
                Err(error) => tracing::debug!(error = %error, "agent is looked up again"),
            }
        }
    }
}
