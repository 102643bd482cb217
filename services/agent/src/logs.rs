//! Log lines on their way to the server.
//!
//! While the server takes them, a script that writes faster than that is made to wait: nothing is
//! lost. While the server is away nobody waits: the oldest lines go when the buffer is full, and a
//! line in their place says how many. Once the server keeps no more of this agent's lines, none are
//! sent any more, and the agent's own log says how many there were.

mod buffer;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_domain::state::LogLevel;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::api::{CallError, Client, LogLine, LogSource, Verdict};
use crate::clock::Clock;
use crate::logs::buffer::{Batch, Buffer, MAX_BATCH, cost};
use crate::options::Timing;
use crate::retry::{Backoff, Trouble};

/// The lines of one agent, by source, in the order they were written.
#[derive(Debug)]
pub(crate) struct Logs {
    clock: Clock,
    buffer: Mutex<Buffer>,
    /// Something to send, or closed.
    wake: Notify,
    /// Room for more, or nobody should wait for it any longer.
    room: Notify,
}

impl Logs {
    /// No lines yet; `clock` says when each is written.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, buffer: Mutex::default(), wake: Notify::new(), room: Notify::new() }
    }

    /// Adds a line. Waits for room while the server is there to make some.
    pub(crate) async fn push(&self, source: Uuid, name: &str, level: LogLevel, output: String) {
        let line = LogLine { created_at: self.clock.now(), level, output };
        let more = cost(&line);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look, so that no notice falls between the two.
            room.as_mut().enable();
            {
                let mut buffer = self.lock();
                if buffer.full {
                    buffer.unsent.add(&line);
                    return;
                }
                if buffer.fits(more) || !buffer.online || buffer.closed {
                    buffer.append(source, name, line, more);
                    break;
                }
            }
            room.await;
        }
        self.wake.notify_one();
    }

    /// The agent has another identity from now on: its sources are registered anew.
    pub(crate) fn new_identity(&self) {
        let mut buffer = self.lock();
        buffer.epoch += 1;
        buffer.settle_full();
    }

    /// Lets `deliver` end when nothing is left.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    /// Sends batches until closed and empty.
    pub(crate) async fn deliver(&self, client: &Client, timing: Timing) {
        let mut sender = Sender {
            client,
            backoff: Backoff::new(timing),
            trouble: Trouble::new("logs"),
            registered: BTreeSet::new(),
            epoch: 0,
        };
        loop {
            while let Some(batch) = self.take() {
                self.send(&mut sender, batch).await;
            }
            {
                let mut buffer = self.lock();
                if buffer.closed {
                    buffer.settle_full();
                    return;
                }
            }
            self.wake.notified().await;
            // Lines come in bursts; a batch of them costs the server what one costs.
            let gathering = tokio::time::sleep(timing.log_flush);
            tokio::pin!(gathering);
            loop {
                tokio::select! {
                    () = &mut gathering => break,
                    () = self.wake.notified() => {
                        let buffer = self.lock();
                        if buffer.closed || buffer.bytes >= MAX_BATCH {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Sends one batch, for as long as it takes or until the server refuses it for good.
    async fn send(&self, sender: &mut Sender<'_>, batch: Batch) {
        loop {
            let error = match self.attempt(sender, &batch).await {
                Ok(()) => {
                    sender.trouble.worked();
                    sender.backoff.reset();
                    self.settle(&batch, true);
                    return;
                }
                Err(error) => error,
            };
            if error.status().is_some_and(|status| status.as_u16() == 413) {
                if self.fill(sender, &batch) {
                    tracing::warn!(error = %error.explain(), "no more log lines are sent");
                    return;
                }
                // It was said of the agent that this was before a claim.
                continue;
            }
            if error.verdict() == Verdict::Never {
                let lines = batch.lines.len();
                tracing::error!(error = %error.explain(), lines, "log lines refused for good");
                self.settle(&batch, true);
                return;
            }
            self.settle_offline();
            let wait = sender.backoff.next(error.verdict());
            sender.trouble.failed(&error, wait);
            self.wait_or_closed(wait).await;
        }
    }

    async fn attempt(&self, sender: &mut Sender<'_>, batch: &Batch) -> Result<(), CallError> {
        let epoch = self.lock().epoch;
        if std::mem::replace(&mut sender.epoch, epoch) != epoch {
            sender.registered.clear();
        }
        if !sender.registered.contains(&batch.source) {
            let source = LogSource {
                id: batch.source,
                display_name: batch.name.clone(),
                icon: String::new(),
            };
            match sender.client.log_source(&source).await {
                Ok(()) => {}
                // It exists, which is all we want; or the lines themselves will be refused.
                Err(error) if error.verdict() == Verdict::Never => {
                    tracing::debug!(error = %error.explain(), "log source not registered");
                }
                Err(error) => return Err(error),
            }
            sender.registered.insert(batch.source);
        }
        sender.client.logs(batch.source, &batch.lines).await
    }

    /// Waits, but not after the agent was closed while it waited: then the last try is now.
    async fn wait_or_closed(&self, wait: std::time::Duration) {
        let closed_before = self.lock().closed;
        let sleep = tokio::time::sleep(wait);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return,
                () = self.wake.notified() => {
                    if self.lock().closed && !closed_before {
                        return;
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<Batch> {
        self.lock().take()
    }

    /// Takes note that the server is full, unless this is another agent by now.
    fn fill(&self, sender: &Sender<'_>, batch: &Batch) -> bool {
        {
            let mut buffer = self.lock();
            if buffer.epoch != sender.epoch {
                return false;
            }
            buffer.fill(&batch.lines);
        }
        self.settle(batch, true);
        true
    }

    fn settle(&self, batch: &Batch, online: bool) {
        {
            let mut buffer = self.lock();
            buffer.bytes -= batch.cost;
            buffer.online = online;
        }
        self.room.notify_waiters();
    }

    fn settle_offline(&self) {
        self.lock().online = false;
        self.room.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `deliver` remembers between batches.
struct Sender<'a> {
    client: &'a Client,
    backoff: Backoff,
    trouble: Trouble,
    registered: BTreeSet<Uuid>,
    epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Uuid = Uuid::from_u128(1);

    #[tokio::test]
    async fn a_writer_waits_for_room_only_while_the_server_is_there() {
        let logs = Logs::new(Clock::system());
        logs.lock().online = false;
        let text = "x".repeat(64 << 10);
        for _ in 0..100 {
            logs.push(SOURCE, "script", LogLevel::Info, text.clone()).await;
        }
        logs.lock().online = true;
        let push = logs.push(SOURCE, "script", LogLevel::Info, text.clone());
        tokio::pin!(push);
        assert!(futures_util::poll!(&mut push).is_pending());
        logs.settle_offline();
        assert!(futures_util::poll!(&mut push).is_ready());
    }
}
