//! Log lines on their way to the server.
//!
//! While the server takes them, a script that writes faster than that is made to wait: nothing is
//! lost. While the server is away nobody waits: the oldest lines go when the buffer is full, and a
//! line in their place says how many.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_domain::state::LogLevel;
use jiff::Timestamp;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::api::{CallError, Client, LogLine, LogSource, Verdict};
use crate::clock;
use crate::lines::json_len;
use crate::options::Timing;
use crate::retry::{Backoff, Trouble};

/// Bytes of lines (as JSON) kept while they cannot be sent.
pub(crate) const MAX_BUFFER: usize = 4 << 20;
/// Bytes of one `PATCH`.
pub(crate) const MAX_BATCH: usize = 256 << 10;
/// What a line takes besides its text, time, level and names of fields; rounded up.
const LINE_OVERHEAD: usize = 96;
/// What a batch takes besides its lines.
const BATCH_OVERHEAD: usize = 128;

/// The lines of one agent, by source, in the order they were written.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    buffer: Mutex<Buffer>,
    /// Something to send, or closed.
    wake: Notify,
    /// Room for more, or nobody should wait for it any longer.
    room: Notify,
}

#[derive(Debug)]
struct Buffer {
    sources: BTreeMap<Uuid, Source>,
    /// Of everything in `sources` and of the batch in flight.
    bytes: usize,
    /// The last call worked.
    online: bool,
    closed: bool,
    /// The server has as many lines of this agent as it keeps.
    full: bool,
    /// Grows when the agent's identity changes, which makes earlier registrations void.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Source {
    name: String,
    lines: VecDeque<LogLine>,
    dropped_lines: u64,
    dropped_bytes: u64,
}

#[derive(Debug)]
struct Batch {
    source: Uuid,
    name: String,
    lines: Vec<LogLine>,
    cost: usize,
}

fn cost(line: &LogLine) -> usize {
    json_len(&line.output) + LINE_OVERHEAD
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            bytes: 0,
            // Until a call has failed: a burst at the very start should wait, not be dropped.
            online: true,
            closed: false,
            full: false,
            epoch: 0,
        }
    }
}

impl Buffer {
    fn fits(&self, more: usize) -> bool {
        self.bytes + more <= MAX_BUFFER
    }

    fn append(&mut self, id: Uuid, name: &str, line: LogLine) {
        let more = cost(&line);
        while !self.fits(more) && self.drop_oldest() {}
        self.bytes += more;
        let source = self.sources.entry(id).or_default();
        if source.name != name {
            name.clone_into(&mut source.name);
        }
        source.lines.push_back(line);
    }

    /// The source whose next line is the oldest.
    fn oldest(&self) -> Option<Uuid> {
        let next = |(id, source): (&Uuid, &Source)| Some((source.lines.front()?.created_at, *id));
        self.sources.iter().filter_map(next).min().map(|(_, id)| id)
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(source) = self.oldest().and_then(|id| self.sources.get_mut(&id)) else {
            return false;
        };
        let Some(line) = source.lines.pop_front() else { return false };
        source.dropped_lines += 1;
        source.dropped_bytes += line.output.len() as u64;
        self.bytes -= cost(&line);
        true
    }

    fn take(&mut self) -> Option<Batch> {
        let only_dropped = || {
            let (id, _) = self.sources.iter().find(|(_, source)| source.dropped_lines > 0)?;
            Some(*id)
        };
        let id = self.oldest().or_else(only_dropped)?;
        let source = self.sources.get_mut(&id)?;
        let mut batch = Batch { source: id, name: source.name.clone(), lines: Vec::new(), cost: 0 };
        let mut size = BATCH_OVERHEAD;
        if source.dropped_lines > 0 {
            let first = source.lines.front().map_or_else(clock::now, |line| line.created_at);
            let line = dropped(source.dropped_lines, source.dropped_bytes, first);
            size += cost(&line);
            batch.lines.push(line);
            (source.dropped_lines, source.dropped_bytes) = (0, 0);
        }
        while let Some(line) = source.lines.front() {
            let more = cost(line);
            if size + more > MAX_BATCH {
                break;
            }
            size += more;
            batch.cost += more;
            batch.lines.extend(source.lines.pop_front());
        }
        if source.lines.is_empty() {
            self.sources.remove(&id);
        }
        Some(batch)
    }
}

fn dropped(lines: u64, bytes: u64, at: Timestamp) -> LogLine {
    let output = format!(
        "[berth agent: {lines} lines ({bytes} bytes) are missing here: the server was away and \
         the agent's buffer of {MAX_BUFFER} bytes was full]"
    );
    LogLine { created_at: at, level: LogLevel::Warn, output }
}

impl Logs {
    /// Adds a line. Waits for room while the server is there to make some.
    pub(crate) async fn push(&self, source: Uuid, name: &str, level: LogLevel, output: String) {
        let line = LogLine { created_at: clock::now(), level, output };
        let more = cost(&line);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look, so that no notice falls between the two.
            room.as_mut().enable();
            {
                let mut buffer = self.lock();
                if buffer.full {
                    return;
                }
                if buffer.fits(more) || !buffer.online || buffer.closed {
                    buffer.append(source, name, line);
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
        buffer.full = false;
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
            if self.lock().closed {
                return;
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
                tracing::warn!("the server keeps no more lines of this agent; the rest is dropped");
                self.lock().full = true;
                self.settle(&batch, true);
                return;
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

    fn line(second: i64, text: &str) -> LogLine {
        LogLine {
            created_at: Timestamp::from_second(second).unwrap(),
            level: LogLevel::Info,
            output: text.to_owned(),
        }
    }

    #[test]
    fn a_full_buffer_keeps_the_newest_lines_and_says_what_went() {
        let mut buffer = Buffer::default();
        let text = "x".repeat(64 << 10);
        for second in 0..100 {
            buffer.append(SOURCE, "script", line(second, &text));
            assert!(buffer.bytes <= MAX_BUFFER);
        }
        let kept = i64::try_from(buffer.sources[&SOURCE].lines.len()).unwrap();
        let batch = buffer.take().unwrap();
        let gone = 100 - kept;
        let bytes = gone * (64 << 10);
        let said = &batch.lines[0].output;
        assert!(said.contains(&format!("{gone} lines ({bytes} bytes)")), "{said}");
        assert_eq!(batch.lines[1].created_at.as_second(), gone);
    }

    #[test]
    fn a_batch_is_no_larger_than_its_bound_and_of_one_source() {
        let mut buffer = Buffer::default();
        for second in 0..2000 {
            let source = Uuid::from_u128(u128::from(second % 3 == 0));
            buffer.append(source, "script", line(second.into(), &"\"é\u{1b}".repeat(100)));
        }
        let mut lines = 0;
        while let Some(batch) = buffer.take() {
            let body = serde_json::json!({"log_source_id": batch.source, "logs": batch.lines});
            assert!(body.to_string().len() <= MAX_BATCH);
            lines += batch.lines.len();
            buffer.bytes -= batch.cost;
        }
        assert_eq!((lines, buffer.bytes), (2000, 0));
        assert!(buffer.sources.is_empty());
    }

    #[tokio::test]
    async fn a_writer_waits_for_room_only_while_the_server_is_there() {
        let logs = Logs::default();
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
