//! The registration: a stream that lasts as long as the daemon, and is opened again when it breaks.

use std::time::Duration;

use berth_proto::v1::register_response::Message;
use berth_proto::{API_VERSION, v1};
use berth_service_kit::Latch;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::client::{Backoff, CallError, Client};
use crate::config::ProvisionerConfig;
use crate::daemon::Running;
use crate::journal::Incarnation;

/// How often the daemon says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A registration that lasted this long was a good one: the next wait is the shortest again.
const GOOD: Duration = Duration::from_secs(30);

/// Who the daemon is.
pub(crate) fn hello(
    config: &ProvisionerConfig,
    terraform: bool,
    incarnation: Incarnation,
) -> v1::Hello {
    let types = [terraform.then_some("terraform"), Some("exec")];
    v1::Hello {
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        api_version: API_VERSION.into(),
        provisioner_types: types.into_iter().flatten().map(str::to_owned).collect(),
        tags: config.tags.clone().into_iter().collect(),
        capacity: config.capacity,
        incarnation: incarnation.own,
        former_incarnation: incarnation.former,
    }
}

/// Keeps a daemon registered.
pub(crate) struct Registration {
    pub(crate) client: Client,
    pub(crate) hello: v1::Hello,
    pub(crate) running: Running,
    /// The id that the broker gave; `None` while not registered.
    pub(crate) registered: watch::Sender<Option<String>>,
    /// Whether the broker asked for no more jobs for now.
    pub(crate) drain: watch::Sender<bool>,
    /// Set off when the broker asks the daemon to leave.
    pub(crate) leave: CancellationToken,
    /// The last job is done, and with it the reason to be registered.
    pub(crate) gone: CancellationToken,
    pub(crate) latch: Latch,
}

impl Registration {
    /// Registers again and again until the daemon is gone.
    pub(crate) async fn keep(self) {
        let mut backoff = Backoff::new();
        loop {
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                ended = self.once() => ended,
                () = self.gone.cancelled() => return,
            };
            self.registered.send_replace(None);
            let why = match ended {
                Ok(()) => "the broker closed the stream".to_owned(),
                Err(error) => error.to_string(),
            };
            self.latch.set_failed(&*why);
            tracing::warn!(why, "not registered; again");
            if began.elapsed() >= GOOD {
                backoff = Backoff::new();
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = self.gone.cancelled() => return,
            }
        }
    }

    /// One registration, to its end.
    async fn once(&self) -> Result<(), CallError> {
        let (send, messages) = mpsc::channel(4);
        let hello = v1::register_request::Message::Hello(self.hello.clone());
        // The channel is empty and open: it takes the first message.
        let _ = send.send(v1::RegisterRequest { message: Some(hello) }).await;
        let mut answers = self.client.register(ReceiverStream::new(messages)).await?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                answer = answers.message() => match answer? {
                    Some(v1::RegisterResponse { message }) => self.heard(message),
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    let running_jobs = self.running.count();
                    let heartbeat = v1::Heartbeat { running_jobs };
                    let message = v1::register_request::Message::Heartbeat(heartbeat);
                    // When nobody takes it, the stream has ended, which is heard above.
                    let _ = send.try_send(v1::RegisterRequest { message: Some(message) });
                }
            }
        }
    }

    fn heard(&self, message: Option<Message>) {
        match message {
            Some(Message::Accepted(accepted)) => {
                // Whoever still is to drain is told so next.
                self.drain.send_replace(false);
                tracing::info!(daemon.id = accepted.daemon_id, "registered");
                self.registered.send_replace(Some(accepted.daemon_id));
                self.latch.set_ready();
            }
            Some(Message::JobCanceled(canceled)) => {
                tracing::info!(job.id = canceled.job_id, "asked to cancel a job");
                self.running.cancel(&canceled.job_id);
            }
            Some(Message::Drain(v1::Drain { stay: true })) => {
                tracing::info!(jobs = self.running.count(), "draining: no new jobs until told");
                self.drain.send_replace(true);
            }
            Some(Message::Resume(v1::Resume {})) => {
                tracing::info!("draining no more");
                self.drain.send_replace(false);
            }
            Some(Message::Drain(v1::Drain { stay: false })) => {
                tracing::info!("the broker asked this daemon to leave");
                self.leave.cancel();
            }
            // From a newer broker; nothing that this daemon knows.
            None => {}
        }
    }
}
