//! One attachment's line to its agent, whichever replica the agent is connected to.

use std::time::Duration;

use berth_bus::terminal::{Arrival, Asked};
use berth_bus::{Bus, BusError};
use berth_domain::id::{AgentId, AttachmentId};
use berth_domain::terminal::{End, Open, Reply, Request};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::ApiError;

/// How long NATS may take.
const SUBSCRIBE: Duration = Duration::from_secs(5);
/// How long an agent that is about to connect is waited for, and how often it is looked for.
const APPEAR: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(200);
/// How long the agent may take to start a shell.
const START: Duration = Duration::from_secs(10);

/// Frames from an agent.
pub(super) type Frames = BoxStream<'static, Arrival>;

/// Where frames of one attachment go.
#[derive(Clone)]
pub(super) struct Wire {
    bus: Bus,
    agent: AgentId,
    pub(super) id: AttachmentId,
}

impl Wire {
    pub(super) fn new(bus: Bus, agent: AgentId, id: AttachmentId) -> Self {
        Self { bus, agent, id }
    }

    pub(super) async fn send(&self, request: &Request<'_>) -> Result<(), BusError> {
        let subject = self.bus.subjects().terminals_in(self.agent);
        self.bus.send_frame(subject, request.encode(self.id).into()).await
    }

    /// Asks the agent for a shell. Answers with its frames from now on, and with the place of the
    /// first byte of output among them.
    pub(super) async fn open(&self, open: Open, agent: &str) -> Result<(Frames, u64), ApiError> {
        let unavailable = |error: BusError| ApiError::Unavailable(error.into());
        let silent = || ApiError::Unavailable(anyhow::anyhow!("NATS does not answer"));
        let out = self.bus.subjects().terminal_out(self.agent, self.id);
        let frames = timeout(SUBSCRIBE, self.bus.frames(out)).await.map_err(|_| silent())?;
        let mut frames = frames.map_err(unavailable)?.boxed();
        let joins = open.after.is_some();
        let frame = Request::Open(open).encode(self.id);
        let deadline = Instant::now() + APPEAR;
        loop {
            let subject = self.bus.subjects().terminals_in(self.agent);
            let asked = self.bus.ask_frame(subject, frame.clone().into(), SUBSCRIBE).await;
            match asked.map_err(unavailable)? {
                Asked::Answer(refusal) if refusal.is_empty() => break,
                Asked::Answer(refusal) => return Err(refused(&refusal, agent, joins)),
                Asked::Silence => return Err(silent()),
                Asked::NobodyThere if Instant::now() < deadline => sleep(LOOK).await,
                Asked::NobodyThere => {
                    return Err(ApiError::conflict(
                        format!(
                            "The agent {agent} is not connected for terminals: it starts, is \
                             away, or is older than they are. Try again."
                        ),
                        None,
                    ));
                }
            }
        }
        let deadline = Instant::now() + START;
        while let Ok(Some(arrival)) = timeout_at(deadline, frames.next()).await {
            match Reply::decode(&arrival.frame) {
                Ok((_, Reply::Opened { offset })) => return Ok((frames, offset)),
                Ok((_, Reply::Ended(_))) => return Err(refused(&arrival.frame, agent, joins)),
                _ => {}
            }
        }
        // It may come all the same, and would wait for nobody.
        let _ = self.send(&Request::Close).await;
        Err(ApiError::Unavailable(anyhow::anyhow!("the agent {agent} does not answer")))
    }
}

fn refused(frame: &[u8], agent: &str, joins: bool) -> ApiError {
    let Ok((_, Reply::Ended(End::Refused { message }))) = Reply::decode(frame) else {
        return ApiError::Unavailable(anyhow::anyhow!("the agent {agent} broke off"));
    };
    let message = format!("The agent {agent} opens no terminal: {message}.");
    // Whoever wants to go on with a shell need not ask again.
    if joins { ApiError::Precondition(message) } else { ApiError::conflict(message, None) }
}
