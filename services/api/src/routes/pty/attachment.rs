//! A person's end of a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_db::agent::terminal::Place;
use berth_domain::id::{AgentId, AttachmentId};
use berth_domain::terminal::{
    End, INPUT_WINDOW, MAX_DATA, MAX_SIDE, OUTPUT_WINDOW, Open, PING_SECONDS, Reply, Request, Size,
    cost,
};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::metrics::OpenTerminal;
use crate::routes::pty::allowed_place;
use crate::routes::pty::wire::{Frames, Wire};

/// How often the person's program is asked whether it lives, and how long it may say nothing.
const PING_EVERY: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_mins(1);
/// An agent that was not heard of for so long is away.
const AGENT_SILENCE: Duration = Duration::from_secs(3 * PING_SECONDS);
/// How long the last word may take.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What a person's program says. Nothing it says is kept.
#[derive(Deserialize)]
struct Said {
    /// What was typed.
    #[serde(default)]
    data: Option<String>,
    /// The same for what is no text, in base64. Ours.
    #[serde(default)]
    bytes: Option<String>,
    /// Nothing more will be typed. Ours.
    #[serde(default)]
    end: bool,
    /// The shell is to end. Ours.
    #[serde(default)]
    hang_up: bool,
    #[serde(default)]
    height: Option<u32>,
    #[serde(default)]
    width: Option<u32>,
}

/// Why a terminal is closed.
enum Leave {
    /// The person left.
    Person,
    Agent(End),
    /// The person may have it no more.
    Revoked,
    /// This replica ends.
    Stopping,
    /// The person's program said what is not understood.
    Bad(String),
}

impl Leave {
    /// The close frame's code and reason, and what the log says.
    fn words(&self) -> (u16, String, &'static str) {
        let again = "the way to the agent was lost; connect again".to_owned();
        match self {
            Self::Person => (1000, String::new(), "left"),
            Self::Agent(End::Exited { code }) => (1000, format!("exit {code}"), "exited"),
            Self::Agent(End::Away) => (1012, again, "agent away"),
            Self::Agent(End::Lost) => (1012, again, "frames lost"),
            Self::Agent(End::Slow) => (1013, "read too slowly for others".to_owned(), "slow"),
            Self::Agent(End::Over) => (1001, "the agent ended the shell".to_owned(), "over"),
            Self::Agent(End::Refused { .. }) => (1011, "refused".to_owned(), "refused"),
            Self::Revoked => (1008, "this terminal is yours no more".to_owned(), "revoked"),
            Self::Stopping => (1012, "the server restarts; connect again".to_owned(), "stopping"),
            Self::Bad(why) => (1007, why.chars().take(100).collect(), "bad message"),
        }
    }
}

/// What the directions of one attachment know of each other.
struct Known {
    begun: Instant,
    /// When the agent was heard, in milliseconds since the beginning.
    heard: AtomicU64,
    /// The person's program does not take more at the moment.
    is_full: AtomicBool,
    /// Costs up to which the agent may send.
    output_limit: AtomicU64,
    /// Costs up to which we may send.
    input_limit: watch::Sender<u64>,
    /// Bytes of input sent.
    typed: AtomicU64,
}

/// An open terminal.
pub(super) struct Attachment {
    app: App,
    caller: Caller,
    agent: AgentId,
    place: Place,
    wire: Wire,
    frames: Frames,
    offset: u64,
    held: (OwnedSemaphorePermit, OpenTerminal),
}

impl Attachment {
    /// Asks the agent for a shell, or for the one that is named.
    pub(super) async fn begin(
        app: App,
        caller: Caller,
        agent: AgentId,
        place: Place,
        wanted: Open,
    ) -> Result<Self, ApiError> {
        let turn = Arc::clone(&app.terminals).try_acquire_owned().map_err(|_| {
            let most = app.config.terminals.most;
            ApiError::Unavailable(anyhow::anyhow!(
                "{most} terminals are open here (terminals.most)"
            ))
        })?;
        // Not to be guessed: it is part of a subject.
        let id = AttachmentId(app.backbone.ids.secret());
        let wire = Wire::new(app.backbone.bus.clone(), agent, id);
        let (frames, offset) = wire.open(wanted, &place.agent_name).await?;
        let held = (turn, app.metrics.terminal_opened());
        Ok(Self { app, caller, agent, place, wire, frames, offset, held })
    }

    pub(super) fn id(&self) -> AttachmentId {
        self.wire.id
    }

    /// Place of the first byte that will be shown.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Passes on what is typed and shown until one side has enough. Answers with why.
    pub(super) async fn talk(self, socket: WebSocket) -> &'static str {
        let Self { app, caller, agent, place, wire, mut frames, offset, held } = self;
        let known = Known {
            begun: Instant::now(),
            heard: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            output_limit: AtomicU64::new(OUTPUT_WINDOW),
            input_limit: watch::Sender::new(INPUT_WINDOW),
            typed: AtomicU64::new(0),
        };
        let (mut sink, mut stream) = socket.split();
        let guard = Guard { app: &app, caller: &caller, agent, place: &place };
        let leave = tokio::select! {
            leave = show(&mut frames, &mut sink, &wire, &known, offset) => leave,
            leave = take(&mut stream, &wire, &known) => leave,
            leave = guard.watch(&wire, &known) => leave,
        };
        if !matches!(leave, Leave::Agent(End::Exited { .. } | End::Over)) {
            // Lost with NATS, the agent misses our pings.
            let _ = wire.send(&Request::Close).await;
        }
        let (code, reason, why) = leave.words();
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // The person may be gone.
        let _ = timeout(LAST_WORD, sink.send(close)).await;
        drop(held);
        why
    }

    /// Lets the agent's shell go before anything was typed or shown.
    pub(super) async fn give_up(self) {
        // Lost with NATS, the agent misses our pings.
        let _ = self.wire.send(&Request::Close).await;
    }
}

/// From the agent to the person. Credit is given for what the person's program took.
async fn show(
    frames: &mut Frames,
    sink: &mut SplitSink<WebSocket, Message>,
    wire: &Wire,
    known: &Known,
    offset: u64,
) -> Leave {
    let (mut place, mut taken, mut told) = (offset, 0, OUTPUT_WINDOW);
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let arrival = tokio::select! {
            arrival = frames.next() => arrival,
            _ = pings.tick() => {
                if sink.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return Leave::Person;
                }
                continue;
            }
        };
        let Some(arrival) = arrival else { return Leave::Agent(End::Away) };
        let since = u64::try_from(known.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        known.heard.store(since, Ordering::Relaxed);
        let Ok((_, reply)) = Reply::decode(&arrival.frame) else { continue };
        match reply {
            Reply::Output { offset, bytes } => {
                taken += cost(bytes.len());
                let is_too_much = taken > known.output_limit.load(Ordering::Relaxed);
                if offset != place || is_too_much {
                    return Leave::Agent(End::Lost);
                }
                place += bytes.len() as u64;
                let bytes = arrival.frame.slice(arrival.frame.len() - bytes.len()..);
                known.is_full.store(true, Ordering::Relaxed);
                if sink.send(Message::Binary(bytes)).await.is_err() {
                    return Leave::Person;
                }
                known.is_full.store(false, Ordering::Relaxed);
                let limit = taken + OUTPUT_WINDOW;
                known.output_limit.store(limit, Ordering::Relaxed);
                if limit - told >= OUTPUT_WINDOW / 2 {
                    told = limit;
                    let _ = wire.send(&Request::Credit(limit)).await;
                }
            }
            Reply::Credit(limit) => raise(&known.input_limit, limit),
            Reply::Pong { sent, limit } => {
                raise(&known.input_limit, limit);
                if sent != place {
                    return Leave::Agent(End::Lost);
                }
            }
            Reply::Ended(end) => return Leave::Agent(end),
            Reply::Opened { .. } => {}
        }
    }
}

fn raise(limit: &watch::Sender<u64>, to: u64) {
    limit.send_if_modified(|limit| {
        let is_more = to > *limit;
        *limit = (*limit).max(to);
        is_more
    });
}

/// From the person to the agent. The person is not read while the agent takes no more.
async fn take(stream: &mut SplitStream<WebSocket>, wire: &Wire, known: &Known) -> Leave {
    let mut input = Input { wire, limit: known.input_limit.subscribe(), known, spent: 0 };
    loop {
        let message = match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(message))) => message,
            // Our pings stand behind output that was not read yet.
            Err(_) if known.is_full.load(Ordering::Relaxed) => continue,
            _ => return Leave::Person,
        };
        let bytes = match &message {
            Message::Text(text) => text.as_bytes(),
            // The field's page sends its JSON so.
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return Leave::Person,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        for said in serde_json::Deserializer::from_slice(bytes).into_iter::<Said>() {
            let passed = match said {
                Ok(said) => input.pass_on(said).await,
                // Not the error's own text: it may quote what was typed.
                Err(error) => Err(format!(
                    "a message is not the JSON that is expected (column {})",
                    error.column()
                )),
            };
            if let Err(why) = passed {
                return Leave::Bad(why);
            }
        }
    }
}

struct Input<'a> {
    wire: &'a Wire,
    known: &'a Known,
    limit: watch::Receiver<u64>,
    /// Costs sent.
    spent: u64,
}

impl Input<'_> {
    async fn pass_on(&mut self, said: Said) -> Result<(), String> {
        if let (Some(width @ 1..), Some(height @ 1..)) = (said.width, said.height) {
            let fitting = |name: &str, side: u32| {
                let fits = u16::try_from(side).ok().filter(|it| *it <= MAX_SIDE);
                fits.ok_or_else(|| format!("{name} is {side}; use 1 to {MAX_SIDE}"))
            };
            let (width, height) = (fitting("width", width)?, fitting("height", height)?);
            let size = Size { width, height };
            self.say(&Request::Resize(size)).await;
        }
        if let Some(text) = said.data {
            self.send(text.as_bytes()).await;
        }
        if let Some(text) = said.bytes {
            let bytes = STANDARD.decode(text).map_err(|_| "bytes is not base64".to_owned())?;
            self.send(&bytes).await;
        }
        if said.end {
            self.say(&Request::EndInput).await;
        }
        if said.hang_up {
            self.say(&Request::HangUp).await;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(MAX_DATA) {
            let price = cost(bytes.len());
            // The sender lives as long as we do.
            let _ = self.limit.wait_for(|limit| self.spent + price <= *limit).await;
            self.spent += price;
            let length = bytes.len() as u64;
            let offset = self.known.typed.load(Ordering::Relaxed);
            self.say(&Request::Input { offset, bytes }).await;
            self.known.typed.store(offset + length, Ordering::Relaxed);
        }
    }

    /// What is lost on the way the agent notices.
    async fn say(&self, request: &Request<'_>) {
        let _ = self.wire.send(request).await;
    }
}

/// Looks whether the terminal may go on.
struct Guard<'a> {
    app: &'a App,
    caller: &'a Caller,
    agent: AgentId,
    place: &'a Place,
}

impl Guard<'_> {
    async fn watch(&self, wire: &Wire, known: &Known) -> Leave {
        let mut pings = interval(Duration::from_secs(PING_SECONDS));
        let mut looks = interval(self.app.config.terminals.check.into());
        for ticks in [&mut pings, &mut looks] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let watched = self.app.live.workspaces.watch(self.place.workspace_id);
        let mut notices = watched.notices();
        loop {
            let must_look = tokio::select! {
                () = self.app.live.stop.cancelled() => return Leave::Stopping,
                _ = pings.tick() => {
                    let heard = Duration::from_millis(known.heard.load(Ordering::Relaxed));
                    let is_full = known.is_full.load(Ordering::Relaxed);
                    if !is_full && known.begun.elapsed().saturating_sub(heard) > AGENT_SILENCE {
                        return Leave::Agent(End::Away);
                    }
                    let limit = known.output_limit.load(Ordering::Relaxed);
                    let sent = known.typed.load(Ordering::Relaxed);
                    let _ = wire.send(&Request::Ping { sent, limit }).await;
                    false
                }
                _ = looks.tick() => true,
                // Something happened to the workspace, or may have.
                Ok(()) = notices.changed() => true,
            };
            if must_look && !self.may_go_on().await {
                return Leave::Revoked;
            }
        }
    }

    /// Whether the same person may still have a terminal of the same agent of the same owner.
    async fn may_go_on(&self) -> bool {
        let looked = async {
            let caller = self.caller.renewed(self.app).await?;
            allowed_place(self.app, &caller, self.agent).await
        };
        match looked.await {
            Ok(place) => {
                place.owner_id == self.place.owner_id && place.is_started && !place.is_retired
            }
            Err(ApiError::Unavailable(_) | ApiError::Internal(_)) => {
                // While the database is away nothing is changed there, either.
                tracing::debug!(attachment.agent.id = %self.agent, "terminal not looked at");
                true
            }
            Err(_) => false,
        }
    }
}
