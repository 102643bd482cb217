//! Terminals: shells for people, through one WebSocket that the agent keeps open to the API.
//!
//! All shells and attachments share it. Each direction of each attachment has a window
//! (`berth_domain::terminal`), so a fast one neither fills memory nor keeps others waiting.

mod ring;
mod session;
mod shell;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_domain::id::{AttachmentId, UserId};
use berth_domain::terminal::{End, MAX_ATTACHMENTS, MAX_FRAME, Open, Reply, Request};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::api::{Client, Verdict};
use crate::environment::Environment;
use crate::options::Timing;
use crate::pty::session::{Joining, Outlet, Said, Session};
use crate::pty::shell::Shell;
use crate::retry::{Backoff, Trouble};
use crate::websocket::{Message, WebSocket};

/// Frames of all shells that may wait to be sent.
const QUEUE: usize = 32;
/// What one shell may not have heard yet.
const UNHEARD: usize = 64;
/// How long the API may take to take a frame.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// How long the last frames may take when all ends.
const LAST_FRAMES: Duration = Duration::from_millis(500);
/// The API's way to say that this agent's terminals are served by a newer connection.
const SUPERSEDED: u16 = 4000;
/// Shells that have ended and are kept for somebody who lost the connection just then.
const MAX_ENDED: usize = 16;

/// One shell as the others see it.
#[derive(Clone)]
struct Handle {
    said: mpsc::Sender<(AttachmentId, Said)>,
    over: Arc<AtomicBool>,
}

/// The shells of one owner.
pub(crate) struct Terminals {
    client: Client,
    environment: Arc<Environment>,
    timing: Timing,
    stop: CancellationToken,
    tasks: TaskTracker,
    shells: HashMap<(UserId, Uuid), Handle>,
    routes: HashMap<AttachmentId, Handle>,
    /// Attachments that are over: shells send, we take their routes away.
    left: (mpsc::UnboundedSender<AttachmentId>, mpsc::UnboundedReceiver<AttachmentId>),
}

impl Terminals {
    /// None yet; `tasks` waits for the shells' ends.
    pub(crate) fn new(
        client: Client,
        environment: Arc<Environment>,
        timing: Timing,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let (shells, routes) = (HashMap::new(), HashMap::new());
        let left = mpsc::unbounded_channel();
        Self { client, environment, timing, stop, tasks, shells, routes, left }
    }

    /// Keeps a connection to the API and serves what comes, until `stop`.
    pub(crate) async fn serve(mut self) {
        let stop = self.stop.clone();
        let mut backoff = Backoff::new(self.timing);
        let mut trouble = Trouble::new("terminals");
        while !stop.is_cancelled() {
            let client = self.client.clone();
            let Some(connected) = stop.run_until_cancelled(client.terminals()).await else {
                return;
            };
            let wait = match connected {
                Ok(socket) => {
                    trouble.worked();
                    let since = Instant::now();
                    let superseded = self.talk(socket).await;
                    if since.elapsed() > self.timing.retry_max {
                        backoff.reset();
                    }
                    if superseded { self.timing.refused } else { backoff.next(Verdict::Later) }
                }
                Err(error) => {
                    let wait = backoff.next(error.verdict().but_ask_again());
                    trouble.failed(&error, wait);
                    wait
                }
            };
            stop.run_until_cancelled(sleep(wait)).await;
        }
    }

    /// Serves one connection to its end. `true`: another one has taken its place.
    async fn talk(&mut self, socket: WebSocket) -> bool {
        let (sink, mut stream) = socket.split();
        let (out, frames) = mpsc::channel(QUEUE);
        let write = write(sink, frames);
        tokio::pin!(write);
        let stop = self.stop.clone();
        let superseded = tokio::select! {
            () = &mut write => return false,
            superseded = self.listen(&mut stream, &out) => superseded,
            () = stop.cancelled() => false,
        };
        drop(out);
        if stop.is_cancelled() {
            // The shells say that they end.
            let _ = timeout(LAST_FRAMES, write).await;
        }
        superseded
    }

    async fn listen(&mut self, stream: &mut SplitStream<WebSocket>, out: &Outlet) -> bool {
        self.let_go(out).await;
        loop {
            let Ok(Some(Ok(message))) = timeout(self.timing.stream_silence, stream.next()).await
            else {
                return false;
            };
            let frame = match message {
                Message::Binary(frame) => frame,
                Message::Close(close) => {
                    return close.is_some_and(|it| u16::from(it.code) == SUPERSEDED);
                }
                _ => continue,
            };
            match Request::decode(&frame) {
                Ok((id, request)) => self.pass_on(id, request, out).await,
                Err(error) => tracing::debug!(%error, "frame left out"),
            }
        }
    }

    /// Tells the other ends of attachments that an earlier connection had that they are no more.
    async fn let_go(&mut self, out: &Outlet) {
        for (id, shell) in std::mem::take(&mut self.routes) {
            // One that has ended needs not be told.
            let _ = shell.said.send((id, Said::Close)).await;
            tell(out, id, &Reply::Ended(End::Away)).await;
        }
    }

    async fn pass_on(&mut self, id: AttachmentId, request: Request<'_>, out: &Outlet) {
        let said = match request {
            Request::Open(open) => {
                if let Err(message) = self.open(id, open, out).await {
                    tell(out, id, &Reply::Ended(End::Refused { message })).await;
                }
                return;
            }
            Request::Input { offset, bytes } => Said::Input { offset, bytes: bytes.to_vec() },
            Request::EndInput => Said::EndInput,
            Request::Resize(size) => Said::Resize(size),
            Request::Credit(limit) => Said::Credit(limit),
            Request::Ping { sent, limit } => Said::Ping { sent, limit },
            Request::Close => Said::Close,
            Request::HangUp => Said::HangUp,
        };
        let over = matches!(said, Said::Close);
        if let Some(shell) = self.routes.get(&id)
            && (shell.said.send((id, said)).await.is_err() || over)
        {
            self.routes.remove(&id);
        }
    }

    async fn open(&mut self, id: AttachmentId, open: Open, out: &Outlet) -> Result<(), String> {
        self.shells.retain(|_, shell| !shell.said.is_closed());
        while let Ok(left) = self.left.1.try_recv() {
            self.routes.remove(&left);
        }
        if self.routes.len() >= MAX_ATTACHMENTS {
            return Err(format!("this agent has {MAX_ATTACHMENTS} terminals open; close one"));
        }
        let key = (open.user_id, open.reconnect);
        let kept = self.shells.get(&key);
        let shell = match (kept, open.after) {
            (Some(shell), Some(_)) => shell.clone(),
            (Some(shell), None) if !shell.over.load(Ordering::Acquire) => shell.clone(),
            (None, Some(_)) => return Err("the shell is no more".to_owned()),
            (_, None) => {
                let shell = self.start(&open)?;
                self.shells.insert(key, shell.clone());
                shell
            }
        };
        let keep = Duration::from_secs(open.keep_seconds);
        let joining = Joining { after: open.after, size: open.size, keep, out: out.clone() };
        let joined = shell.said.send((id, Said::Attach(joining))).await;
        joined.map_err(|_| "the shell ended just now".to_owned())?;
        self.routes.insert(id, shell);
        Ok(())
    }

    fn start(&mut self, open: &Open) -> Result<Handle, String> {
        let mut ended = 0;
        self.shells.retain(|_, shell| {
            let is_over = shell.over.load(Ordering::Acquire);
            ended += usize::from(is_over);
            !is_over || ended <= MAX_ENDED
        });
        if self.shells.len() - ended.min(MAX_ENDED) >= MAX_ATTACHMENTS {
            return Err(format!("this agent keeps {MAX_ATTACHMENTS} shells; end one"));
        }
        let shell = Shell::start(&self.environment, open)?;
        let over = Arc::new(AtomicBool::new(false));
        // Long enough to be joined; then what the API says counts.
        let session = Session::new(shell, SEND_WITHIN, Arc::clone(&over), self.left.0.clone());
        let (said, hears) = mpsc::channel(UNHEARD);
        self.tasks.spawn(session.run(hears, self.stop.clone(), self.timing.kill_grace));
        Ok(Handle { said, over })
    }
}

async fn tell(out: &Outlet, id: AttachmentId, reply: &Reply<'_>) {
    // Without a connection there is nobody to tell.
    let _ = out.send(Message::Binary(reply.encode(id).into())).await;
}

/// Writes until nobody has more to say, or the API takes no more.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut frames: mpsc::Receiver<Message>) {
    while let Some(frame) = frames.recv().await {
        debug_assert!(frame.len() <= MAX_FRAME, "a frame of {} bytes", frame.len());
        if !matches!(timeout(SEND_WITHIN, sink.send(frame)).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = timeout(LAST_FRAMES, sink.close()).await;
}
