//! What a job tells the broker while it runs: log lines, its step, that it is alive.
//!
//! Everything is queued here and sent by one [`pump`](Reporter::pump), which goes on through broker
//! restarts: a line keeps its number however often it is sent, so the broker has each of them once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_proto::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::client::{Backoff, CallError, Client};
use crate::clock;
use crate::stop::{Reason, Stop};
use crate::veil::Veil;

/// How long lines are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(200);
/// How often a silent job says that it is alive; a short lease makes it a third of that.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most lines, and about most bytes, of one message.
const BATCH: (usize, usize) = (500, 256 * 1024);
/// Longest line, in bytes; the rest of it is cut off.
const MAX_LINE: usize = 64 * 1024;
/// Bytes of log that one job may write. The broker stores half of it; the rest is a margin, so that
/// what overflows is decided there.
const MAX_LOG: usize = 2 * 1024 * 1024;

/// The lease of the broker ended, or the job is to stop: nothing further may be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped(pub(crate) Reason);

/// The job's side: queues what is to be told. Clones are one.
#[derive(Clone)]
pub(crate) struct Reporter(Arc<Shared>);

struct Shared {
    job_id: String,
    lease_token: String,
    queue: Mutex<Queue>,
    veil: Mutex<Arc<Veil>>,
    news: Notify,
    /// The number of the last news that the broker has taken.
    taken: watch::Sender<u64>,
    lease: watch::Sender<Lease>,
    stop: Stop,
}

/// How long the broker holds the job for this daemon.
#[derive(Debug, Clone, Copy)]
struct Lease {
    granted: Instant,
    length: Duration,
    /// The broker said that it is no longer ours.
    lost: bool,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<v1::LogLine>,
    /// Lines ever queued, which is the number of the last.
    numbered: u64,
    bytes: usize,
    step: v1::Step,
    stage: &'static str,
    readme: Option<String>,
    variables: Vec<v1::TemplateVariable>,
    tags: HashMap<String, String>,
    tag_rules: Vec<v1::TagRule>,
    /// Grows with everything queued.
    news: u64,
    /// Something that must not wait for more lines.
    urgent: bool,
    /// The session is over.
    concluding: bool,
}

/// What an import tells beside its result.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) readme: Option<String>,
    pub(crate) variables: Vec<v1::TemplateVariable>,
    pub(crate) tags: HashMap<String, String>,
    /// What those of the tags are made of that depend on parameters.
    pub(crate) tag_rules: Vec<v1::TagRule>,
    /// Tags that depend on parameters in a way that nobody here can follow.
    pub(crate) unclear_tags: Vec<String>,
}

impl Reporter {
    /// A reporter for a job that was acquired just now.
    pub(crate) fn new(job: &v1::Job, stop: Stop) -> Self {
        let length = Duration::from_secs(job.lease_seconds.into());
        let lease = Lease { granted: Instant::now(), length, lost: false };
        Self(Arc::new(Shared {
            job_id: job.id.clone(),
            lease_token: job.lease_token.clone(),
            queue: Mutex::new(Queue { stage: "Setting up", ..Queue::default() }),
            veil: Mutex::new(Arc::new(Veil::of_job(job))),
            news: Notify::new(),
            taken: watch::Sender::new(0),
            lease: watch::Sender::new(lease),
            stop,
        }))
    }

    /// The wish to stop this job.
    pub(crate) fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// Queues what the tool said.
    pub(crate) fn tool(&self, level: v1::LogLevel, text: &str) {
        self.line(v1::LogSource::Provisioner, level, text);
    }

    /// Queues what the daemon has to say.
    pub(crate) fn daemon(&self, level: v1::LogLevel, text: &str) {
        self.line(v1::LogSource::Daemon, level, text);
    }

    fn line(&self, source: v1::LogSource, level: v1::LogLevel, text: &str) {
        // Before it is split and cut: a secret may have several lines.
        let text = self.veiled(text);
        let mut queue = self.queue();
        for output in text.split('\n') {
            queue.push(source, level, output);
        }
        drop(queue);
        self.0.news.notify_one();
    }

    /// The text without the secrets that came with the job.
    pub(crate) fn veiled(&self, text: &str) -> String {
        let veil = Arc::clone(&self.veil());
        veil.over(text).into_owned()
    }

    /// Hides other secrets from now on.
    pub(crate) fn veil_with(&self, veil: Veil) {
        *self.veil() = Arc::new(veil);
    }

    fn veil(&self) -> MutexGuard<'_, Arc<Veil>> {
        // Nothing panics while holding it.
        self.0.veil.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what an import found.
    pub(crate) fn found(&self, findings: Findings) {
        self.urge(|queue| {
            queue.readme = findings.readme;
            queue.variables = findings.variables;
            queue.tags = findings.tags;
            queue.tag_rules = findings.tag_rules;
            queue.news += 1;
        });
    }

    /// Queues something that must not wait, and says which news it is.
    fn urge(&self, change: impl FnOnce(&mut Queue)) -> u64 {
        let mut queue = self.queue();
        change(&mut queue);
        queue.urgent = true;
        let news = queue.news;
        drop(queue);
        self.0.news.notify_one();
        news
    }

    /// Begins a step once the broker knows of it: from apply on, a lost job is not run again, so
    /// apply must not begin before the broker has been told.
    pub(crate) async fn enter(&self, step: v1::Step, stage: &'static str) -> Result<(), Stopped> {
        let news = self.urge(|queue| {
            queue.step = step;
            queue.stage = stage;
            queue.push(v1::LogSource::Daemon, v1::LogLevel::Info, stage);
            // Even when the log is full and takes no line.
            queue.news += 1;
        });
        let mut taken = self.0.taken.subscribe();
        tokio::select! {
            biased;
            () = self.0.stop.asked() => {}
            _ = taken.wait_for(|taken| *taken >= news) => {}
        }
        self.going()
    }

    /// Fails when the job is to stop.
    pub(crate) fn going(&self) -> Result<(), Stopped> {
        self.0.stop.reason().map_or(Ok(()), |reason| Err(Stopped(reason)))
    }

    /// Whether apply began, or the broker may think so.
    pub(crate) fn applies(&self) -> bool {
        matches!(self.queue().step, v1::Step::Apply | v1::Step::Graph)
    }

    /// The session is over; only its result is left to tell.
    pub(crate) fn concludes(&self) {
        self.queue().concluding = true;
    }

    /// Waits until the broker has everything queued so far. `false`: the job is no longer ours.
    pub(crate) async fn flushed(&self) -> bool {
        let news = self.urge(|_| {});
        let (mut taken, mut lease) = (self.0.taken.subscribe(), self.0.lease.subscribe());
        tokio::select! {
            _ = lease.wait_for(|lease| lease.lost) => false,
            _ = taken.wait_for(|taken| *taken >= news) => true,
        }
    }

    /// Sends what is queued and heartbeats, until the broker says that the job is not ours.
    pub(crate) async fn pump(&self, client: &Client) {
        let mut backoff = Backoff::new();
        loop {
            let batch = self.batch();
            let (lines, news) = (batch.logs.len(), batch.news);
            let asked = Instant::now();
            match client.update(batch.message(&self.0)).await {
                Ok(answer) => {
                    backoff = Backoff::new();
                    self.taken(lines, news, asked, answer);
                    self.rest().await;
                }
                Err(CallError::Unreachable(status)) => {
                    tracing::warn!(error = %status.message(), "cannot report progress; again");
                    backoff.wait().await;
                }
                Err(error @ CallError::Refused(_)) => {
                    if self.queue().concluding {
                        // The result may have been quicker than this heartbeat.
                        tracing::debug!(%error, "the job is no longer ours");
                    } else {
                        tracing::warn!(%error, "the job is no longer ours; ending it");
                    }
                    self.0.stop.force(Reason::LeaseLost);
                    self.0.lease.send_modify(|lease| lease.lost = true);
                    return;
                }
            }
        }
    }

    /// Ends the job's tool before the lease does, politely at first. Never returns.
    pub(crate) async fn guard_lease(&self) {
        let mut lease = self.0.lease.subscribe();
        loop {
            let Lease { granted, length, .. } = *lease.borrow_and_update();
            let polite = granted + length - (length / 4).min(Duration::from_secs(15));
            let last = granted + length - (length / 20).min(Duration::from_secs(2));
            tokio::select! {
                renewed = lease.changed() => if renewed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep_until(polite) => {
                    if self.0.stop.reason().is_none() {
                        tracing::warn!("the lease cannot be renewed; ending the tool");
                    }
                    self.0.stop.ask(Reason::LeaseLost);
                    tokio::time::sleep_until(last).await;
                    self.0.stop.force(Reason::LeaseLost);
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    fn batch(&self) -> Batch {
        let mut queue = self.queue();
        queue.urgent = false;
        let mut bytes = 0;
        let within = |line: &&v1::LogLine| {
            bytes += line.output.len();
            bytes <= BATCH.1
        };
        let logs: Vec<_> = queue.lines.iter().take(BATCH.0).take_while(within).cloned().collect();
        // What an import found goes with the last of its lines.
        let all = logs.len() == queue.lines.len();
        Batch {
            // Only with the last of it is anything taken: whoever waits, waits for everything.
            news: if all { queue.news } else { 0 },
            logs,
            step: queue.step,
            readme: queue.readme.clone().filter(|_| all),
            variables: if all { queue.variables.clone() } else { Vec::new() },
            tags: if all { queue.tags.clone() } else { HashMap::new() },
            tag_rules: if all { queue.tag_rules.clone() } else { Vec::new() },
        }
    }

    fn taken(&self, lines: usize, news: u64, asked: Instant, answer: v1::UpdateJobResponse) {
        let mut queue = self.queue();
        queue.lines.drain(..lines);
        if queue.news == news {
            queue.readme = None;
            queue.variables.clear();
            queue.tags.clear();
            queue.tag_rules.clear();
        }
        drop(queue);
        let length = Duration::from_secs(answer.lease_seconds.into());
        self.0.lease.send_modify(|lease| {
            // From the question on, not from the answer: it may have been long on its way.
            lease.granted = asked;
            if !length.is_zero() {
                lease.length = length;
            }
        });
        self.0.taken.send_modify(|taken| *taken = (*taken).max(news));
        if answer.canceled {
            self.0.stop.ask(Reason::Canceled);
        }
    }

    /// Waits until there is something to send.
    async fn rest(&self) {
        let length = self.0.lease.borrow().length;
        let heartbeat = tokio::time::sleep(HEARTBEAT.min(length / 3));
        tokio::pin!(heartbeat);
        loop {
            let (urgent, waiting) = {
                let queue = self.queue();
                (queue.urgent || queue.lines.len() >= BATCH.0, !queue.lines.is_empty())
            };
            if urgent {
                return;
            }
            tokio::select! {
                () = &mut heartbeat => return,
                () = tokio::time::sleep(GATHER), if waiting => return,
                () = self.0.news.notified() => {}
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while holding it.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, source: v1::LogSource, level: v1::LogLevel, output: &str) {
        if self.bytes > MAX_LOG {
            return;
        }
        // Postgres stores no zero byte.
        let mut output = output.replace('\0', "\u{fffd}");
        if output.len() > MAX_LINE {
            output.truncate(output.floor_char_boundary(MAX_LINE));
            output.push_str(" … (cut)");
        }
        self.bytes += output.len() + 1;
        if self.bytes > MAX_LOG {
            "The log of this job is full; what follows is not kept.".clone_into(&mut output);
        }
        self.numbered += 1;
        self.news += 1;
        self.lines.push_back(v1::LogLine {
            created_at_us: clock::now().as_microsecond(),
            source: source.into(),
            level: level.into(),
            stage: self.stage.to_owned(),
            output,
            number: self.numbered,
        });
    }
}

/// One message's worth of news.
struct Batch {
    /// The last news that is in it.
    news: u64,
    logs: Vec<v1::LogLine>,
    step: v1::Step,
    readme: Option<String>,
    variables: Vec<v1::TemplateVariable>,
    tags: HashMap<String, String>,
    tag_rules: Vec<v1::TagRule>,
}

impl Batch {
    fn message(self, shared: &Shared) -> v1::UpdateJobRequest {
        v1::UpdateJobRequest {
            job_id: shared.job_id.clone(),
            lease_token: shared.lease_token.clone(),
            logs: self.logs,
            step: self.step.into(),
            readme: self.readme,
            template_variables: self.variables,
            workspace_tags: self.tags,
            tag_rules: self.tag_rules,
        }
    }
}
