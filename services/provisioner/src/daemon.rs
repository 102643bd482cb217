//! The daemon: registers, takes jobs up to its capacity, and leaves in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use berth_proto::v1;
use berth_service_kit::{Context, Health, Tasks};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Backoff, CallError, Client};
use crate::config::{Config, Experiment};
use crate::environment::Base;
use crate::job::{self, Workshop};
use crate::journal::{GivingUp, Incarnation, Journal, Noted};
use crate::register;
use crate::reuse::Kept;
use crate::stop::{Reason, Stop};
use crate::terraform::Setup;
use crate::workdir::WorkRoot;

/// How long one long poll for a job lasts.
const POLL: Duration = Duration::from_secs(30);
/// How often the PEM files of TLS are looked at.
const RENEW: Duration = Duration::from_secs(10);

/// The jobs that a daemon runs now, by id. Clones are one.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<Mutex<BTreeMap<String, Stop>>>);

impl Running {
    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.jobs().len()).unwrap_or(u32::MAX)
    }

    /// Asks one job to stop, if it runs here.
    pub(crate) fn cancel(&self, job_id: &str) {
        if let Some(stop) = self.jobs().get(job_id) {
            stop.ask(Reason::Canceled);
        }
    }

    fn stop_all(&self, how: impl Fn(&Stop)) {
        self.jobs().values().for_each(how);
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Stop>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the provisioner daemon until shutdown.
///
/// On shutdown it takes no new jobs. Those in hand go on for half of `process.grace`, are then
/// cancelled, and killed after three quarters; what is left is for their reports.
///
/// # Errors
/// When the configuration cannot be used, another daemon holds the work directory, or the drain
/// does not end in time.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let host = Host {
        shutdown: ctx.shutdown.clone(),
        tasks: ctx.tasks.clone(),
        health: ctx.health.clone(),
        metrics: ctx.metrics.clone(),
    };
    start(&ctx.config, &host).await?;
    ctx.drain().await
}

/// The process around the daemon.
struct Host {
    shutdown: CancellationToken,
    tasks: Tasks,
    health: Health,
    metrics: Registry,
}

async fn start(config: &Config, host: &Host) -> anyhow::Result<()> {
    let grace = config.process.grace.as_duration();
    let config = config.provisioner.clone().checked()?;
    let base = Base::new(&config, own_environment());
    let terraform = match Setup::find(&config, base.variables()).await {
        Ok(setup) => {
            tracing::info!(program = %setup.program.display(), version = setup.version, "terraform");
            Some(Arc::new(setup))
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "no terraform: only exec templates are served");
            None
        }
    };
    let root = WorkRoot::open(&config.work_dir, &config.name)?;
    let (journal, giving_up) = Journal::open(&root)?;
    let client = Client::new(&config).await?;
    let running = Running::default();
    let hello = register::hello(&config, terraform.is_some(), Incarnation::enter(&root));
    let (leave, gone) = (CancellationToken::new(), CancellationToken::new());
    let (registered, daemon_id) = watch::channel(None);
    let (drain, draining) = watch::channel(false);
    let registration = register::Registration {
        client: client.clone(),
        hello,
        running: running.clone(),
        registered,
        drain,
        leave: leave.clone(),
        gone: gone.clone(),
        latch: host.health.latch("broker"),
    };
    host.tasks.spawn("registration", registration.keep());
    let (renewing, shutdown) = (client.clone().renew(RENEW), host.shutdown.clone());
    host.tasks.spawn("certificates", async move {
        tokio::select! {
            () = renewing => {}
            () = shutdown.cancelled() => {}
        }
    });
    let kept = config.experiments.contains(&Experiment::ReuseTerraformWorkspace);
    let kept = kept.then(|| Kept::open(root.beside("workspaces"))).transpose()?.map(Arc::new);
    let giving_up = tokio::spawn(giving_up.run(client.clone()));
    let workshop = Arc::new(Workshop { client, root, base, terraform, kept });
    let jobs = Jobs {
        slots: Arc::new(Semaphore::new(config.capacity as usize)),
        force_after: config.force_cancel_interval.as_duration(),
        grace,
        shutdown: host.shutdown.clone(),
        metrics: Metrics::new(&host.metrics, &config.name).context("register metrics")?,
        workshop,
        running,
        daemon_id,
        draining,
        leave,
        journal,
        asked: None,
    };
    host.tasks.spawn("jobs", async move {
        jobs.take().await;
        GivingUp::finish(giving_up).await;
        gone.cancel();
    });
    Ok(())
}

/// This process' environment; variables that are not UTF-8 are left out.
fn own_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

struct Metrics {
    current: IntGaugeVec,
    done: IntCounterVec,
    name: String,
}

impl Metrics {
    fn new(registry: &Registry, name: &str) -> prometheus::Result<Self> {
        let current =
            Opts::new("coderd_provisionerd_jobs_current", "Jobs that this daemon runs now.");
        let current = IntGaugeVec::new(current, &["provisioner"])?;
        let done = Opts::new("berth_provisioner_jobs_total", "Jobs that this daemon has ended.");
        let done = IntCounterVec::new(done, &["provisioner", "outcome"])?;
        registry.register(Box::new(current.clone()))?;
        registry.register(Box::new(done.clone()))?;
        current.with_label_values(&[name]).set(0);
        Ok(Self { current, done, name: name.to_owned() })
    }
}

/// Takes jobs and runs them.
struct Jobs {
    workshop: Arc<Workshop>,
    running: Running,
    daemon_id: watch::Receiver<Option<String>>,
    /// The broker asked for no more jobs for now. It gives none to those that ask all the same: a poll
    /// that is under way is left to it.
    draining: watch::Receiver<bool>,
    slots: Arc<Semaphore>,
    force_after: Duration,
    grace: Duration,
    shutdown: CancellationToken,
    /// The broker asked the daemon to leave.
    leave: CancellationToken,
    metrics: Metrics,
    journal: Journal,
    /// The lease that is being asked for.
    asked: Option<Noted>,
}

impl Jobs {
    /// Takes jobs until the daemon is to stop; then sees those in hand to their end.
    async fn take(mut self) {
        let mut jobs = JoinSet::new();
        let mut backoff = Backoff::new();
        loop {
            while let Some(ended) = jobs.try_join_next() {
                self.ended(ended);
            }
            let (shutdown, leave) = (self.shutdown.clone(), self.leave.clone());
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = leave.cancelled() => break,
                next = self.next(&mut backoff) => next,
            };
            let Some((slot, daemon_id, job)) = next else { continue };
            backoff = Backoff::new();
            self.start(&mut jobs, (slot, daemon_id, job));
        }
        // A job may be on its way.
        self.asked.take().into_iter().for_each(|noted| self.journal.give_up(noted));
        self.finish(jobs).await;
        // Having been told to leave, the process ends; otherwise it is ending already.
        self.shutdown.cancel();
    }

    /// The next job, once there is room for it, the broker knows this daemon, and it does not drain.
    async fn next(
        &mut self,
        backoff: &mut Backoff,
    ) -> Option<(OwnedSemaphorePermit, String, v1::Job)> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        self.draining.wait_for(|it| !it).await.ok()?;
        let daemon_id = self.daemon_id.wait_for(Option::is_some).await.ok()?.clone()?;
        let noted = self.journal.note();
        let lease = noted.token().to_owned();
        self.asked = Some(noted);
        match self.workshop.client.acquire(daemon_id.clone(), lease, POLL).await {
            Ok(Some(job)) => Some((slot, daemon_id, job)),
            Ok(None) => {
                self.asked.take().into_iter().for_each(Noted::forget);
                None
            }
            Err(error) => {
                // The broker may have taken a job for us before the connection broke.
                self.asked.take().into_iter().for_each(|noted| self.journal.give_up(noted));
                let refused = matches!(error, CallError::Refused(_));
                tracing::warn!(%error, refused, "cannot ask for a job; again");
                backoff.wait().await;
                None
            }
        }
    }

    fn start(
        &mut self,
        jobs: &mut JoinSet<(String, job::Outcome)>,
        (slot, daemon_id, job): (OwnedSemaphorePermit, String, v1::Job),
    ) {
        let stop = Stop::new(self.force_after);
        let id = job.id.clone();
        self.running.jobs().insert(id.clone(), stop.clone());
        self.metrics.current.with_label_values(&[&self.metrics.name]).inc();
        let held = Held { running: self.running.clone(), id: id.clone(), _slot: slot };
        let run = job::run(Arc::clone(&self.workshop), daemon_id, job, stop);
        let (noted, journal) = (self.asked.take(), self.journal.clone());
        jobs.spawn(async move {
            let _held = held;
            let outcome = run.await;
            match (noted, outcome) {
                (Some(noted), job::Outcome::GivenUp) => journal.give_up(noted),
                (Some(noted), _) => noted.forget(),
                (None, _) => {}
            }
            (id, outcome)
        });
    }

    fn ended(&self, ended: Result<(String, job::Outcome), tokio::task::JoinError>) {
        let name = &*self.metrics.name;
        self.metrics.current.with_label_values(&[name]).dec();
        let outcome = match ended {
            Ok((_, outcome)) => outcome.as_str(),
            Err(error) => {
                // Its lease runs out and the broker deals with it.
                tracing::error!(%error, "a job's task is gone");
                "dropped"
            }
        };
        self.metrics.done.with_label_values(&[name, outcome]).inc();
    }

    /// Waits for the jobs in hand; once the process is stopping, only as long as it may.
    async fn finish(&self, mut jobs: JoinSet<(String, job::Outcome)>) {
        let hurry = async {
            self.shutdown.cancelled().await;
            tracing::info!(jobs = self.running.count(), "finishing the jobs in hand");
            tokio::time::sleep(self.grace / 2).await;
            self.running.stop_all(|stop| stop.ask(Reason::ShuttingDown));
            tokio::time::sleep(self.grace / 4).await;
            self.running.stop_all(|stop| stop.force(Reason::ShuttingDown));
            std::future::pending::<()>().await;
        };
        let all = async {
            while let Some(ended) = jobs.join_next().await {
                self.ended(ended);
            }
        };
        tokio::select! {
            () = all => {}
            () = hurry => {}
        }
    }
}

/// Keeps a job among the running ones until its task is over, however it ends.
struct Held {
    running: Running,
    id: String,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.running.jobs().remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
