//! Everything that runs for one manifest: from `starting` to the next claim or the agent's end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_domain::state::{AgentLifecycle, LogLevel};
use futures_util::future::join_all;
use jiff::SignedDuration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::api::{Client, MetadataValue, Startup, http_client};
use crate::clock::Clock;
use crate::cron::Cron;
use crate::environment::Environment;
use crate::leftovers::end_leftovers;
use crate::logs::Logs;
use crate::manifest::{App, AppHealth, Manifest, Metadata, Script};
use crate::options::Options;
use crate::outbox::Outbox;
use crate::pty::Terminals;
use crate::reports::Reports;
use crate::script::{Exit, Runner};

/// Most that a wait for the next cron run sleeps: the clock may be set meanwhile.
const CRON_NAP: Duration = Duration::from_secs(30);

/// A clock that goes back by less than this was corrected; the runs of that time were made already.
const SET_BACK: SignedDuration = SignedDuration::from_mins(1);

/// What outlives a session.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) client: Client,
    pub(crate) logs: Arc<Logs>,
    pub(crate) reports: Reports,
}

/// The scripts, checks and gatherers of one manifest.
pub(crate) struct Session {
    shared: Arc<Shared>,
    runner: Runner,
    scripts: Arc<[Script]>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Session {
    /// Reports `starting` and sets everything of `manifest` going.
    pub(crate) fn start(shared: &Arc<Shared>, manifest: Manifest) -> Self {
        let token = shared.client.known_token();
        let environment = Environment::new(&shared.options, &token, &manifest);
        if let Err(error) = environment.ensure_folders() {
            let folder = shared.options.data_dir.display();
            tracing::warn!(%folder, %error, "scripts have no folder for their data");
        }
        shared.reports.startup(Startup {
            version: concat!("v", env!("CARGO_PKG_VERSION")),
            expanded_directory: environment.expanded_directory.clone(),
            subsystems: subsystems(&environment.variables),
        });
        shared.reports.lifecycle(AgentLifecycle::Starting);
        let session = Self {
            shared: Arc::clone(shared),
            runner: Runner {
                environment: Arc::new(environment),
                logs: Arc::clone(&shared.logs),
                kill_grace: shared.options.timing.kill_grace,
                readers: TaskTracker::new(),
            },
            scripts: manifest.scripts.into(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        session.spawn_startup();
        session.spawn_healthchecks(manifest.apps);
        session.spawn_metadata(manifest.metadata);
        session.spawn_terminals();
        session
    }

    /// Ends all that runs, background processes included, without stop scripts and without reports:
    /// the workspace has a new owner.
    pub(crate) async fn abandon(self) {
        self.end().await;
    }

    /// Runs the stop scripts for at most `limit`, then ends everything. Gives the state to report.
    pub(crate) async fn shut_down(self, limit: Duration) -> AgentLifecycle {
        // Not a child of `stop`: what the scripts are to stop still runs beside them.
        let stop = CancellationToken::new();
        let state = {
            let scripts = self.scripts.iter().filter(|script| script.run_on_stop);
            let all = join_all(scripts.map(|script| self.runner.run(script, &stop)));
            tokio::pin!(all);
            if let Ok(exits) = timeout(limit, &mut all).await {
                final_state(&exits)
            } else {
                tracing::warn!(?limit, "stop scripts take too long");
                stop.cancel();
                all.await;
                AgentLifecycle::ShutdownTimeout
            }
        };
        self.end().await;
        state
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        let Options { scope, timing, .. } = &self.shared.options;
        // Both at once, so that the grace is given once.
        tokio::join!(self.tasks.wait(), end_leftovers(scope, timing.kill_grace));
        // Now nothing starts any more, so what is left after this is nothing.
        end_leftovers(scope, timing.kill_grace).await;
        // With no process left their pipes are at an end; one that hid from us is not waited for.
        self.runner.readers.close();
        let _ = timeout(timing.kill_grace, self.runner.readers.wait()).await;
    }

    /// Runs what runs on start, all at once. Only the blocking ones decide when the agent is ready,
    /// and whether; how the others end is in their logs. What runs by the clock begins after that,
    /// and never beside its own first run.
    fn spawn_startup(&self) {
        let (runner, stop) = (self.runner.clone(), self.stop.clone());
        let (shared, scripts) = (Arc::clone(&self.shared), Arc::clone(&self.scripts));
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let first = || scripts.iter().filter(|script| script.run_on_start);
            let mut beside: BTreeMap<Uuid, JoinHandle<Exit>> = BTreeMap::new();
            for script in first().filter(|script| !script.start_blocks_login) {
                let (runner, script, stop) = (runner.clone(), script.clone(), stop.clone());
                let id = script.log_source_id;
                let run = tasks.spawn(async move { runner.run(&script, &stop).await });
                beside.insert(id, run);
            }
            let blocking = first().filter(|script| script.start_blocks_login);
            let exits = join_all(blocking.map(|script| runner.run(script, &stop))).await;
            if stop.is_cancelled() {
                return;
            }
            shared.reports.lifecycle(start_state(&exits));
            for script in scripts.iter().filter(|script| !script.cron.is_empty()) {
                let clock = shared.options.clock.clone();
                let first = beside.remove(&script.log_source_id);
                let by_cron = run_by_cron(runner.clone(), script.clone(), clock, stop.clone());
                tasks.spawn(async move {
                    if let Some(first) = first {
                        let _ = first.await;
                    }
                    by_cron.await;
                });
            }
        });
    }

    fn spawn_healthchecks(&self, apps: Vec<App>) {
        let checked: Vec<App> = apps
            .into_iter()
            .filter(|app| !app.healthcheck.url.is_empty() && app.healthcheck.interval > 0)
            .collect();
        if checked.is_empty() {
            return;
        }
        // Its own client: an application never sees the token, whatever it answers.
        let http = match http_client() {
            Ok(http) => http,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "no health checks");
                return;
            }
        };
        let news = Arc::new(Outbox::default());
        for app in checked {
            let check = check_app(http.clone(), app, Arc::clone(&news));
            self.spawn_until_stopped(check);
        }
        let shared = Arc::clone(&self.shared);
        self.spawn_until_stopped(async move {
            news.deliver(&shared.client, shared.options.timing).await;
        });
    }

    fn spawn_metadata(&self, metadata: Vec<Metadata>) {
        if metadata.is_empty() {
            return;
        }
        let news = Arc::new(Outbox::default());
        for item in metadata {
            let (runner, stop) = (self.runner.clone(), self.stop.clone());
            let clock = self.shared.options.clock.clone();
            self.tasks.spawn(gather(runner, item, Arc::clone(&news), clock, stop));
        }
        let shared = Arc::clone(&self.shared);
        self.spawn_until_stopped(async move {
            news.deliver(&shared.client, shared.options.timing).await;
        });
    }

    fn spawn_terminals(&self) {
        let terminals = Terminals::new(
            self.shared.client.clone(),
            Arc::clone(&self.runner.environment),
            self.shared.options.timing,
            self.stop.clone(),
            self.tasks.clone(),
        );
        self.tasks.spawn(terminals.serve());
    }

    fn spawn_until_stopped(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(work).await;
        });
    }
}

/// The state after the blocking startup scripts. A failure says more than a timeout.
fn start_state(exits: &[Exit]) -> AgentLifecycle {
    if exits.iter().any(|exit| matches!(exit, Exit::Failed(_))) {
        AgentLifecycle::StartError
    } else if exits.contains(&Exit::TimedOut) {
        AgentLifecycle::StartTimeout
    } else {
        AgentLifecycle::Ready
    }
}

/// The state after the stop scripts.
fn final_state(exits: &[Exit]) -> AgentLifecycle {
    if exits.iter().any(|exit| matches!(exit, Exit::Failed(_))) {
        AgentLifecycle::ShutdownError
    } else if exits.contains(&Exit::TimedOut) {
        AgentLifecycle::ShutdownTimeout
    } else {
        AgentLifecycle::Off
    }
}

/// What image builders say the agent runs in: a list in `CODER_AGENT_SUBSYSTEM`.
fn subsystems(variables: &BTreeMap<String, String>) -> Vec<String> {
    let list = variables.get("CODER_AGENT_SUBSYSTEM").map_or("", String::as_str);
    list.split(',')
        .map(str::trim)
        .filter(|it| matches!(*it, "envbox" | "envbuilder" | "exectrace"))
        .map(ToOwned::to_owned)
        .collect()
}

/// Runs a script whenever its cron expression says, never twice at once.
async fn run_by_cron(runner: Runner, script: Script, clock: Clock, stop: CancellationToken) {
    let cron: Cron = match script.cron.parse() {
        Ok(cron) => cron,
        Err(error) => {
            runner.log(&script, LogLevel::Error, format!("not scheduled: {error}")).await;
            return;
        }
    };
    let zone = jiff::tz::TimeZone::system();
    loop {
        // From the end of the last run on: a moment that passed during it is skipped.
        let since = clock.now();
        let next = cron.next_after(&since.to_zoned(zone.clone()));
        let Some(next) = next.map(|next| next.timestamp()) else {
            let text = format!("not scheduled: {:?} never comes", script.cron);
            runner.log(&script, LogLevel::Error, text).await;
            return;
        };
        let mut now = since;
        while now < next && since.duration_since(now) < SET_BACK {
            let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
            if stop.run_until_cancelled(sleep(left.min(CRON_NAP))).await.is_none() {
                return;
            }
            now = clock.now();
        }
        if now < next {
            // The clock was set back: `next` may be hours away that have runs of their own.
            continue;
        }
        runner.run(&script, &stop).await;
        if stop.is_cancelled() {
            return;
        }
    }
}

/// Asks one application for its health for ever.
async fn check_app(http: reqwest::Client, app: App, news: Arc<Outbox<AppHealth>>) {
    let check = &app.healthcheck;
    let every = Duration::from_secs(check.interval);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = Looks::new(check.threshold);
    loop {
        ticks.tick().await;
        let answer = http.get(&check.url).timeout(every).send().await;
        // Anything but a server error shows that something serves: a login page is healthy.
        let is_good = answer.is_ok_and(|it| !it.status().is_server_error());
        if let Some(health) = looks.note(is_good) {
            tracing::info!(app = app.slug, ?health, "application health");
            news.put(app.id, health);
        }
    }
}

/// What an application's answers come to.
#[derive(Debug)]
struct Looks {
    known: AppHealth,
    failures: u64,
    threshold: u64,
}

impl Looks {
    /// Nothing known; `threshold` failures in a row, at least one, make it unhealthy.
    fn new(threshold: u64) -> Self {
        Self { known: AppHealth::Initializing, failures: 0, threshold: threshold.max(1) }
    }

    /// Takes one more answer. Gives the health if that changes it.
    fn note(&mut self, is_good: bool) -> Option<AppHealth> {
        self.failures = if is_good { 0 } else { self.failures + 1 };
        let health = match self.failures {
            0 => AppHealth::Healthy,
            some if some < self.threshold => self.known,
            _ => AppHealth::Unhealthy,
        };
        (std::mem::replace(&mut self.known, health) != health).then_some(health)
    }
}

/// Runs one metadata script again and again; the newest value is the one that is sent.
async fn gather(
    runner: Runner,
    metadata: Metadata,
    news: Arc<Outbox<MetadataValue>>,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut ticks = interval(Duration::from_secs(metadata.interval.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let outcome = runner.capture(&metadata, &stop).await;
        if stop.is_cancelled() {
            return;
        }
        let (value, error) = match outcome {
            Ok(value) => (value, String::new()),
            Err(error) => (String::new(), error),
        };
        let key = metadata.key.clone();
        let (collected_at, collected) = (clock.now(), Instant::now());
        let value = MetadataValue { key, value, error, collected_at, age: 0, collected };
        news.put(value.key.clone(), value);
        if metadata.interval == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_failures_in_a_row_make_an_application_unhealthy_and_one_answer_makes_it_healthy() {
        use AppHealth::{Healthy, Unhealthy};
        let check = |threshold, answers: &[bool], expected: &[Option<AppHealth>]| {
            let mut looks = Looks::new(threshold);
            let told: Vec<_> = answers.iter().map(|it| looks.note(*it)).collect();
            assert_eq!(told, expected, "{answers:?} with {threshold}");
        };
        check(3, &[false, false, true], &[None, None, Some(Healthy)]);
        check(2, &[false, false, false], &[None, Some(Unhealthy), None]);
        check(
            2,
            &[true, false, true, false, false],
            &[Some(Healthy), None, None, None, Some(Unhealthy)],
        );
        check(0, &[true, false, true], &[Some(Healthy), Some(Unhealthy), Some(Healthy)]);
    }

    #[test]
    fn one_failure_decides_and_says_more_than_a_timeout() {
        let failed = Exit::Failed("exit status: 1".to_owned());
        assert_eq!(start_state(&[]), AgentLifecycle::Ready);
        assert_eq!(start_state(&[Exit::Done, Exit::Done]), AgentLifecycle::Ready);
        assert_eq!(start_state(&[Exit::Done, Exit::TimedOut]), AgentLifecycle::StartTimeout);
        assert_eq!(start_state(&[Exit::TimedOut, failed]), AgentLifecycle::StartError);
    }
}
