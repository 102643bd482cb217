//! Log lines on their way to the server.
//!
//! While the server takes them, a script that writes faster than that is made to wait: nothing is
//! lost. While the server is away nobody waits: the oldest lines go when the buffer is full, and a
//! line in their place says how many. Once the server keeps no more of this agent's lines, none are
//! sent any more, and the agent's own log says how many there were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_domain::state::LogLevel;
use jiff::Timestamp;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::api::{CallError, Client, LogLine, LogSource, Verdict};
use crate::clock::Clock;
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
#[derive(Debug)]
pub(crate) struct Logs {
    clock: Clock,
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
    /// What was not sent because of that.
    unsent: Dropped,
    /// Of the next line. Not its time: that may be set back.
    next: u64,
    /// Grows when the agent's identity changes, which makes earlier registrations void.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Source {
    name: String,
    lines: VecDeque<Waiting>,
    /// What was dropped before these.
    dropped: Dropped,
}

#[derive(Debug)]
struct Waiting {
    /// Among the lines of all sources.
    place: u64,
    cost: usize,
    line: LogLine,
}

#[derive(Debug, Default)]
struct Dropped {
    lines: u64,
    bytes: u64,
    /// When the last of them was written.
    at: Timestamp,
}

impl Dropped {
    fn add(&mut self, line: &LogLine) {
        self.lines += 1;
        self.bytes += line.output.len() as u64;
        self.at = line.created_at;
    }

    /// The line that stands in their place.
    fn told(self) -> LogLine {
        let Self { lines, bytes, at } = self;
        let output = format!(
            "[berth agent: {lines} lines ({bytes} bytes) are missing here: the server was away \
             and the agent's buffer of {MAX_BUFFER} bytes was full]"
        );
        LogLine { created_at: at, level: LogLevel::Warn, output }
    }
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
            unsent: Dropped::default(),
            next: 0,
            epoch: 0,
        }
    }
}

impl Buffer {
    fn fits(&self, more: usize) -> bool {
        self.bytes + more <= MAX_BUFFER
    }

    fn append(&mut self, id: Uuid, name: &str, line: LogLine, cost: usize) {
        while !self.fits(cost) && self.drop_oldest() {}
        self.bytes += cost;
        let source = self.sources.entry(id).or_default();
        if source.name != name {
            name.clone_into(&mut source.name);
        }
        source.lines.push_back(Waiting { place: self.next, cost, line });
        self.next += 1;
    }

    /// The source whose next line is the oldest.
    fn oldest(&self) -> Option<Uuid> {
        let next = |(id, source): (&Uuid, &Source)| Some((source.lines.front()?.place, *id));
        self.sources.iter().filter_map(next).min().map(|(_, id)| id)
    }

    /// The server takes no more: what waits is not sent.
    fn fill(&mut self, unsent: &[LogLine]) {
        self.full = true;
        for line in unsent {
            self.unsent.add(line);
        }
        for (_, source) in std::mem::take(&mut self.sources) {
            for Waiting { line, cost, .. } in source.lines {
                self.bytes -= cost;
                self.unsent.add(&line);
            }
        }
    }

    /// Says what was not sent since the server was full. Then it may be sent to again.
    fn settle_full(&mut self) {
        if std::mem::take(&mut self.full) {
            let Dropped { lines, bytes, .. } = std::mem::take(&mut self.unsent);
            tracing::warn!(lines, bytes, "log lines were not kept: the server had no room left");
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(source) = self.oldest().and_then(|id| self.sources.get_mut(&id)) else {
            return false;
        };
        let Some(Waiting { line, cost, .. }) = source.lines.pop_front() else { return false };
        source.dropped.add(&line);
        self.bytes -= cost;
        true
    }

    fn take(&mut self) -> Option<Batch> {
        let only_dropped = || {
            let (id, _) = self.sources.iter().find(|(_, source)| source.dropped.lines > 0)?;
            Some(*id)
        };
        let id = self.oldest().or_else(only_dropped)?;
        let source = self.sources.get_mut(&id)?;
        let mut batch = Batch { source: id, name: source.name.clone(), lines: Vec::new(), cost: 0 };
        let mut size = BATCH_OVERHEAD;
        if source.dropped.lines > 0 {
            let line = std::mem::take(&mut source.dropped).told();
            size += cost(&line);
            batch.lines.push(line);
        }
        while let Some(Waiting { cost, .. }) = source.lines.front() {
            if size + cost > MAX_BATCH {
                break;
            }
            size += cost;
            batch.cost += cost;
            batch.lines.extend(source.lines.pop_front().map(|it| it.line));
        }
        if source.lines.is_empty() {
            self.sources.remove(&id);
        }
        Some(batch)
    }
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

    fn line(second: i64, text: &str) -> LogLine {
        LogLine {
            created_at: Timestamp::from_second(second).unwrap(),
            level: LogLevel::Info,
            output: text.to_owned(),
        }
    }

    fn append(buffer: &mut Buffer, source: Uuid, line: LogLine) {
        let cost = cost(&line);
        buffer.append(source, "script", line, cost);
    }

    #[test]
    fn a_full_buffer_keeps_the_newest_lines_and_says_what_went() {
        let mut buffer = Buffer::default();
        let text = "x".repeat(64 << 10);
        for second in 0..100 {
            append(&mut buffer, SOURCE, line(second, &text));
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
            append(&mut buffer, source, line(second.into(), &"\"é\u{1b}".repeat(100)));
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

    #[test]
    fn a_clock_that_is_set_back_changes_no_order() {
        let mut buffer = Buffer::default();
        let other = Uuid::from_u128(2);
        append(&mut buffer, SOURCE, line(7200, "first"));
        append(&mut buffer, other, line(10, "second"));
        let order = [(); 2].map(|()| buffer.take().unwrap().lines.remove(0).output);
        assert_eq!(order, ["first", "second"]);
    }

    #[test]
    fn a_full_server_empties_the_buffer_and_all_is_counted() {
        let mut buffer = Buffer::default();
        for second in 0..10 {
            append(&mut buffer, SOURCE, line(second, "text"));
        }
        buffer.fill(&[line(10, "in flight")]);
        assert_eq!((buffer.unsent.lines, buffer.unsent.bytes, buffer.bytes), (11, 49, 0));
        assert!(buffer.take().is_none());
    }

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
