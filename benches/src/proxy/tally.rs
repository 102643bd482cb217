//! What went through a proxy: per statement, and in all.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::frames::Frame;

/// What one statement cost, or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    /// Statements executed.
    pub(crate) statements: u64,
    /// Statements that were prepared: each once a connection, with a round trip of its own.
    pub(crate) prepares: u64,
    /// Times that the client waited for an answer.
    pub(crate) round_trips: u64,
    /// Rows answered.
    pub(crate) rows: u64,
    /// Bytes from Postgres.
    pub(crate) bytes_read: u64,
    /// Bytes to Postgres.
    pub(crate) bytes_written: u64,
    /// From the last byte of the question to the last of the answer, at the proxy.
    pub(crate) server: Duration,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.statements += other.statements;
        self.prepares += other.prepares;
        self.round_trips += other.round_trips;
        self.rows += other.rows;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.server += other.server;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.add(one);
            sum
        })
    }
}

/// Which of a service's tasks a statement belongs to, told by what it reads. `begin` and `commit`
/// belong to the first statement between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// What the question is about.
    Work,
    /// The outbox relay's look once a second.
    Relay,
    /// The gauges of `/metrics`, every 15 s.
    Gauges,
    /// Whether the schema fits, at start.
    Schema,
    /// The slice of pools compared with their members.
    Audit,
    /// A question without a statement: the connection pool asks whether a connection that was given
    /// back still stands.
    Ping,
}

impl Task {
    /// Told by words that only that task's statements have.
    fn of(sql: &str) -> Self {
        let has = |word: &str| sql.contains(word);
        if sql.is_empty() {
            Self::Ping
        } else if has("outbox") && !has("claim_attempts") {
            Self::Relay
        } else if has("_sqlx_migrations") {
            Self::Schema
        } else if has("created_total") && has("replaced_total") && has("group by") {
            Self::Gauges
        } else if has("pool_digest") && !has("prebuild_decisions") {
            Self::Audit
        } else {
            Self::Work
        }
    }

    /// As the tables say it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Relay => "outbox relay",
            Self::Gauges => "gauges",
            Self::Schema => "schema",
            Self::Audit => "audit",
            Self::Ping => "connections given back",
        }
    }
}

/// Everything that went through since the last [`Tally::take`].
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lines: BTreeMap<(Task, String), Line>,
}

/// One statement's part.
#[derive(Debug)]
struct Line {
    cost: Cost,
    /// Microseconds of each execution.
    latency: Histogram<u64>,
}

impl Tally {
    fn add(&mut self, task: Task, sql: &str, cost: Cost) {
        let empty = || Line { cost: Cost::default(), latency: crate::figure::histogram() };
        let line = self.lines.entry((task, sql.to_owned())).or_insert_with(empty);
        line.cost.add(cost);
        if cost.statements > 0 {
            line.latency.saturating_record(crate::figure::micros(cost.server));
        }
    }

    /// What one task cost.
    pub(crate) fn of(&self, task: Task) -> Cost {
        self.lines.iter().filter(|((it, _), _)| *it == task).map(|(_, line)| line.cost).sum()
    }

    /// The tasks that asked anything.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        let mut all: Vec<Task> = self.lines.keys().map(|(task, _)| *task).collect();
        all.dedup();
        all
    }

    /// How often one task ran, where it asks each of its statements once: executions of the one
    /// asked most.
    pub(crate) fn runs(&self, task: Task) -> u64 {
        let ours = self.lines.iter().filter(|((it, _), _)| *it == task);
        ours.map(|(_, line)| line.cost.statements).max().unwrap_or_default()
    }

    /// Times of one task's slowest statement: the one with the most time in all.
    pub(crate) fn slowest(&self, task: Task) -> Option<&Histogram<u64>> {
        let ours = self.lines.iter().filter(|((it, _), _)| *it == task);
        ours.max_by_key(|(_, line)| line.cost.server).map(|(_, line)| &line.latency)
    }

    /// Adds what another counted.
    pub(crate) fn merge(&mut self, other: Self) {
        for (key, line) in other.lines {
            match self.lines.entry(key) {
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    known.cost.add(line.cost);
                    known.latency += line.latency;
                }
                Entry::Vacant(new) => {
                    new.insert(line);
                }
            }
        }
    }

    /// Every statement with its task, the most executed first.
    pub(crate) fn statements(&self) -> Vec<(Task, &str, Cost)> {
        let mut all: Vec<_> =
            self.lines.iter().map(|((task, sql), line)| (*task, sql.as_str(), line.cost)).collect();
        all.sort_by_key(|(_, _, cost)| std::cmp::Reverse(cost.statements));
        all
    }

    /// Empties it.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// What is known of one connection between its messages.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    /// Texts of prepared statements by name.
    prepared: BTreeMap<String, String>,
    /// The question being put together.
    open: Question,
    /// Questions whose answers are to come, in order.
    asked: VecDeque<Question>,
    /// `begin` waits to learn whose it is.
    begun: Option<Question>,
    /// Whose transaction is open.
    transaction: Option<Task>,
}

#[derive(Debug, Default)]
struct Question {
    sql: String,
    is_new: bool,
    cost: Cost,
    asked_at: Option<Instant>,
}

impl Conversation {
    /// A message of the client.
    pub(crate) fn asks(&mut self, frame: &Frame, now: Instant) {
        self.open.cost.bytes_written += frame.wire_bytes();
        match frame.kind {
            b'P' => {
                let mut texts = frame.texts();
                let (name, sql) = (texts.next().unwrap_or_default(), texts.next());
                self.open.sql = sql.unwrap_or_default();
                self.open.is_new = true;
                self.prepared.insert(name, self.open.sql.clone());
            }
            b'B' => {
                let name = frame.texts().nth(1).unwrap_or_default();
                self.open.sql = self.prepared.get(&name).cloned().unwrap_or_default();
            }
            b'E' => self.open.cost.statements += 1,
            b'Q' => {
                self.open.sql = frame.texts().next().unwrap_or_default();
                self.open.cost.statements += 1;
                self.ask(now);
            }
            b'S' => self.ask(now),
            _ => {}
        }
    }

    fn ask(&mut self, now: Instant) {
        let mut question = std::mem::take(&mut self.open);
        question.cost.round_trips = 1;
        question.cost.prepares = u64::from(question.is_new);
        question.asked_at = Some(now);
        self.asked.push_back(question);
    }

    /// A message of Postgres; a question that it ends goes to the tally.
    pub(crate) fn answers(&mut self, frame: &Frame, now: Instant, tally: &mut Tally) {
        // Before the first question, these are the handshake's.
        let Some(question) = self.asked.front_mut() else { return };
        question.cost.bytes_read += frame.wire_bytes();
        match frame.kind {
            b'D' => question.cost.rows += 1,
            b'Z' => {
                if let Some(mut question) = self.asked.pop_front() {
                    let took = question.asked_at.map(|it| now.saturating_duration_since(it));
                    question.cost.server = took.unwrap_or_default();
                    self.count(question, tally);
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, question: Question, tally: &mut Tally) {
        let word = question.sql.trim_start().split([' ', ';', '\n']).next().unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "begin" => self.begun = Some(question),
            "commit" | "rollback" => {
                let task = self.transaction.take().unwrap_or(Task::Work);
                if let Some(begun) = self.begun.take() {
                    tally.add(task, &begun.sql, begun.cost);
                }
                tally.add(task, &question.sql, question.cost);
            }
            _ => {
                let own = Task::of(&question.sql);
                if let Some(begun) = self.begun.take() {
                    self.transaction = Some(own);
                    tally.add(own, &begun.sql, begun.cost);
                }
                tally.add(self.transaction.unwrap_or(own), &question.sql, question.cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Frame {
        Frame { kind, body: body.to_vec() }
    }

    /// Plays messages: upper case letters are the client's, `z` and `d` are answers.
    fn played(messages: &[(u8, &[u8])]) -> Tally {
        let (mut tally, mut conversation) = (Tally::default(), Conversation::default());
        let now = Instant::now();
        for (kind, body) in messages {
            if kind.is_ascii_uppercase() {
                conversation.asks(&frame(*kind, body), now);
            } else {
                let answer = frame(kind.to_ascii_uppercase(), body);
                conversation.answers(&answer, now, &mut tally);
            }
        }
        tally
    }

    #[test]
    fn a_prepared_statement_counts_each_time_it_runs() {
        let tally = played(&[
            (b'z', b"I"),
            (b'P', b"s1\0select 1\0\0\0"),
            (b'D', b"Ss1\0"),
            (b'S', b""),
            (b'z', b"I"),
            (b'B', b"\0s1\0"),
            (b'E', b"\0\0\0\0\0"),
            (b'S', b""),
            (b'd', b"row"),
            (b'z', b"I"),
            (b'B', b"\0s1\0"),
            (b'E', b"\0\0\0\0\0"),
            (b'S', b""),
            (b'd', b"row"),
            (b'z', b"I"),
        ]);

        let cost = tally.of(Task::Work);
        assert_eq!((cost.statements, cost.prepares, cost.round_trips, cost.rows), (2, 1, 3, 2));
        // Each of the three answers ends in 6 bytes; a row is 8.
        assert_eq!(cost.bytes_read, 3 * 6 + 2 * 8);
    }

    #[test]
    fn a_ping_is_nobodys_work() {
        let tally = played(&[(b'S', b""), (b'z', b"I")]);
        assert_eq!(tally.of(Task::Work), Cost::default());
        assert_eq!((tally.of(Task::Ping).statements, tally.of(Task::Ping).round_trips), (0, 1));
    }

    #[test]
    fn begin_and_commit_belong_to_what_is_between_them() {
        let tally = played(&[
            (b'Q', b"BEGIN\0"),
            (b'z', b"T"),
            (b'Q', b"select id from outbox\0"),
            (b'z', b"T"),
            (b'Q', b"select 1\0"),
            (b'z', b"T"),
            (b'Q', b"ROLLBACK\0"),
            (b'z', b"I"),
            (b'Q', b"select 2\0"),
            (b'z', b"I"),
        ]);

        assert_eq!(tally.of(Task::Relay).statements, 4);
        assert_eq!(tally.of(Task::Work).statements, 1);
    }
}
