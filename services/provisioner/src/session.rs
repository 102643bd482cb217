//! A job's session: the steps of each kind of job, whatever the tool.

mod import;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_proto::v1;
use jiff::Timestamp;
use tracing::Instrument;

pub(crate) use self::import::import;
use crate::client::Client;
use crate::clock;
use crate::environment;
use crate::exec::Exec;
use crate::modules;
use crate::report::{Findings, Reporter, Stopped};
use crate::stop::Reason;
use crate::terraform::{MODULES, Terraform};
use crate::workdir::JobDir;

/// Most timings that a job reports.
const MAX_TIMINGS: usize = 5000;
/// Longest error text, in bytes: it is shown beside the job, the log has the rest.
const MAX_ERROR: usize = 8 * 1024;

/// Why a job failed, as the broker stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Template,
    Infrastructure,
    Quota,
    Canceled,
    Invalid,
    /// Variables of the template have neither value nor default.
    RequiredVariables,
}

impl Code {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Infrastructure => "infrastructure",
            Self::Quota => "quota",
            Self::Canceled => "canceled",
            Self::Invalid => "invalid",
            Self::RequiredVariables => "required_template_variables",
        }
    }
}

/// A job's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// What apply wrote; `None` when it did not begin, so that the previous state stands.
    pub(crate) state: Option<Vec<u8>>,
}

impl Failure {
    /// A failure before apply.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_ERROR {
            message.truncate(message.floor_char_boundary(MAX_ERROR));
            message.push_str(" … (cut; see the log)");
        }
        Self { code, message, state: None }
    }

    /// The same failure, with what apply wrote.
    pub(crate) fn with_state(self, state: Option<Vec<u8>>) -> Self {
        Self { state, ..self }
    }

    /// A failure of this machine: `error` with all its causes.
    pub(crate) fn local(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Code::Infrastructure, format!("{:#}", error.into()))
    }
}

impl From<Stopped> for Failure {
    fn from(Stopped(reason): Stopped) -> Self {
        match reason {
            Reason::Canceled => Self::new(Code::Canceled, "the job was canceled"),
            Reason::LeaseLost => Self::new(
                Code::Infrastructure,
                "the provisioner daemon lost the broker, so it ended the job",
            ),
            Reason::ShuttingDown => Self::new(
                Code::Infrastructure,
                "the provisioner daemon was stopped before the job was done",
            ),
        }
    }
}

/// What a session works with.
pub(crate) struct Session {
    pub(crate) dir: JobDir,
    /// The tool's environment.
    env: BTreeMap<String, String>,
    /// What of it is for plans of a start alone.
    secrets: BTreeMap<String, String>,
    pub(crate) reporter: Reporter,
    timings: Arc<Mutex<Vec<v1::Timing>>>,
}

/// What a plan found, by any tool.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) resources: Vec<v1::Resource>,
    pub(crate) daily_cost: i32,
    pub(crate) replacements: Vec<v1::Replacement>,
    pub(crate) parameters: Vec<v1::Parameter>,
    pub(crate) presets: Vec<v1::Preset>,
    pub(crate) findings: Findings,
    /// Why the template cannot be imported, though it can be planned.
    pub(crate) refused: Option<String>,
}

/// The variables that a template declares.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    pub(crate) variables: Vec<v1::TemplateVariable>,
    /// Names of those that must be given a value and have none.
    pub(crate) missing: Vec<String>,
}

/// What apply made.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) state: Vec<u8>,
    pub(crate) resources: Vec<v1::Resource>,
}

/// The tools that carry out sessions.
pub(crate) enum Driver {
    Terraform(Box<Terraform>),
    Exec(Box<Exec>),
}

impl Driver {
    /// Prepares the template; `state` is that of the previous build.
    async fn init(&mut self, session: &Session, state: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Terraform(it) => it.init(session, state).await,
            Self::Exec(it) => it.init(session, state).await,
        }
    }

    /// The variables that the template declares; `None` where a plan has to tell.
    async fn declared(&self, session: &Session) -> Option<Declared> {
        match self {
            Self::Terraform(it) => it.declared(session).await,
            Self::Exec(it) => Some(it.declared()),
        }
    }

    /// Plans; the last plan is the one that is applied.
    async fn plan(
        &mut self,
        session: &Session,
        transition: v1::Transition,
    ) -> Result<Planned, Failure> {
        match self {
            Self::Terraform(it) => it.plan(session, transition).await,
            Self::Exec(it) => it.plan(session, transition).await,
        }
    }

    /// The modules that the template fetched, packed into a file; `None` when there are none.
    async fn modules(&self, session: &Session) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Self::Terraform(_) => {
                let (template, to) = (session.template(), session.dir.file(MODULES));
                let pack = move || Ok(modules::pack(&template, &to)?.then_some(to));
                tokio::task::spawn_blocking(pack).await?
            }
            Self::Exec(_) => Ok(None),
        }
    }

    /// Carries the plan out. A failure has what was written.
    async fn apply(&mut self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Terraform(it) => it.apply(session).await,
            Self::Exec(it) => it.apply(session).await,
        }
    }

    /// Keeps what the workspace's next build can use.
    async fn leave(&self, session: &Session, transition: v1::Transition) {
        if let Self::Terraform(it) = self {
            it.leave(session, transition).await;
        }
    }

    /// Reads what apply made. A failure has the state.
    async fn graph(&mut self, session: &Session) -> Result<Applied, Failure> {
        match self {
            Self::Terraform(it) => it.graph(session).await,
            Self::Exec(it) => it.graph(session).await,
        }
    }
}

impl Session {
    /// A session in `dir`.
    pub(crate) fn new(
        dir: JobDir,
        (env, secrets): (BTreeMap<String, String>, BTreeMap<String, String>),
        reporter: Reporter,
    ) -> Self {
        Self { dir, env, secrets, reporter, timings: Arc::default() }
    }

    /// Where the template lies.
    pub(crate) fn template(&self) -> PathBuf {
        self.dir.template()
    }

    /// The environment for one transition.
    pub(crate) fn env_for(&self, transition: v1::Transition) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        environment::set_transition(&mut env, transition);
        env
    }

    /// The environment of a plan: that of a start has the owner's secrets.
    pub(crate) fn env_for_plan(&self, transition: v1::Transition) -> BTreeMap<String, String> {
        let mut env = self.env_for(transition);
        if transition == v1::Transition::Start {
            env.extend(self.secrets.clone());
        }
        env
    }

    /// Keeps a timing.
    pub(crate) fn timing(&self, timing: v1::Timing) {
        let mut timings = self.timings();
        if timings.len() < MAX_TIMINGS {
            timings.push(timing);
        }
    }

    /// The timings so far, which the session forgets.
    pub(crate) fn take_timings(&self) -> Vec<v1::Timing> {
        std::mem::take(&mut *self.timings())
    }

    fn timings(&self) -> MutexGuard<'_, Vec<v1::Timing>> {
        // Nothing panics while holding it.
        self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a step and times it to the end of `work`.
    async fn step<T>(
        &self,
        step: v1::Step,
        stage: &'static str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.reporter.enter(step, stage).await?;
        let started = clock::now();
        let span = tracing::info_span!("job.step", otel.name = format!("job.{}", action(step)));
        let outcome = work.instrument(span).await;
        let timing = timing_of(step, started);
        self.reporter.daemon(v1::LogLevel::Info, &completion(stage, &timing, outcome.as_ref()));
        self.timing(timing);
        outcome
    }
}

/// The name of a step.
fn action(step: v1::Step) -> &'static str {
    match step {
        v1::Step::Init | v1::Step::Unspecified => "init",
        v1::Step::Plan => "plan",
        v1::Step::Apply => "apply",
        v1::Step::Graph => "graph",
    }
}

/// What the log says at the end of a step.
fn completion<T>(stage: &str, timing: &v1::Timing, outcome: Result<&T, &Failure>) -> String {
    let tenths = (timing.ended_at_us - timing.started_at_us).max(0) / 100_000;
    let how = match outcome {
        Ok(_) => "done in",
        Err(failure) if failure.code == Code::Canceled => "canceled after",
        Err(_) => "failed after",
    };
    format!("{stage} {how} {}.{} s", tenths / 10, tenths % 10)
}

fn timing_of(step: v1::Step, started: Timestamp) -> v1::Timing {
    v1::Timing {
        started_at_us: started.as_microsecond(),
        ended_at_us: clock::now().as_microsecond(),
        stage: step.into(),
        source: "berth".into(),
        resource: String::new(),
        action: action(step).into(),
    }
}

/// Plans a template version with given values.
pub(crate) async fn dry_run(
    driver: &mut Driver,
    session: &Session,
) -> Result<v1::TemplateDryRunResult, Failure> {
    session.step(v1::Step::Init, "Initializing", driver.init(session, &[])).await?;
    let plan = driver.plan(session, v1::Transition::Start);
    let planned = session.step(v1::Step::Plan, "Planning", plan).await?;
    // The plan was read with the planning; the step is there so that all sessions look alike.
    let read = std::future::ready(Ok(planned.resources));
    let resources = session.step(v1::Step::Graph, "Reading resources", read).await?;
    Ok(v1::TemplateDryRunResult { resources })
}

/// Plans the claim of a prebuild for a stand-in, to see what it replaces.
pub(crate) async fn rehearse(
    driver: &mut Driver,
    session: &Session,
    claim: &v1::WorkspaceBuild,
) -> Result<v1::RehearsalResult, Failure> {
    let init = driver.init(session, &claim.state);
    session.step(v1::Step::Init, "Initializing", init).await?;
    let plan = driver.plan(session, v1::Transition::Start);
    let planned = session.step(v1::Step::Plan, "Planning", plan).await?;
    let replacements = planned.replacements;
    if replacements.is_empty() {
        session.reporter.daemon(v1::LogLevel::Info, "A claim replaces nothing.");
    }
    warn_of(&replacements, &session.reporter);
    Ok(v1::RehearsalResult { replacements })
}

/// The job, for what the broker has to be asked in between.
pub(crate) struct Asking<'a> {
    pub(crate) client: &'a Client,
    pub(crate) job: &'a v1::Job,
}

/// Builds a workspace.
pub(crate) async fn build(
    driver: &mut Driver,
    session: &Session,
    build: &v1::WorkspaceBuild,
    asking: &Asking<'_>,
) -> Result<v1::WorkspaceBuildResult, Failure> {
    let metadata = build.metadata.clone().unwrap_or_default();
    let transition = v1::Transition::try_from(metadata.transition).unwrap_or_default();
    let init = driver.init(session, &build.state);
    session.step(v1::Step::Init, "Initializing", init).await?;
    let plan = driver.plan(session, transition);
    let planned = session.step(v1::Step::Plan, "Planning", plan).await?;
    let claim = metadata.stage == i32::from(v1::BuildStage::Claim);
    let replacements = if claim { planned.replacements } else { Vec::new() };
    warn_of(&replacements, &session.reporter);
    if transition != v1::Transition::Delete {
        tokio::select! {
            within = within_quota(asking, planned.daily_cost) => within?,
            () = session.reporter.stop().asked() => session.reporter.going()?,
        }
    }
    session.step(v1::Step::Apply, "Applying", driver.apply(session)).await?;
    let graph = driver.graph(session);
    let applied = session.step(v1::Step::Graph, "Reading resources", graph).await;
    match applied {
        Ok(Applied { state, resources }) => {
            driver.leave(session, transition).await;
            Ok(v1::WorkspaceBuildResult { state, resources, replacements })
        }
        Err(failure) if failure.state.is_some() => Err(failure),
        // Stopped on the way in; what apply wrote must not be lost for that.
        Err(failure) => Err(match driver {
            Driver::Terraform(it) => failure.with_state(it.written(session).await),
            Driver::Exec(it) => failure.with_state(it.written()),
        }),
    }
}

/// Tells whoever reads the log what a claim will replace, and why that is slow for the user.
fn warn_of(replacements: &[v1::Replacement], reporter: &Reporter) {
    for v1::Replacement { resource, paths } in replacements {
        let paths = paths.join(", ");
        let text = format!("The claim replaces {resource}, because these changed: {paths}");
        reporter.daemon(v1::LogLevel::Warn, &text);
    }
}

async fn within_quota(asking: &Asking<'_>, daily_cost: i32) -> Result<(), Failure> {
    let request = v1::CommitQuotaRequest {
        job_id: asking.job.id.clone(),
        lease_token: asking.job.lease_token.clone(),
        daily_cost,
    };
    let answer = asking.client.commit_quota(request).await.map_err(Failure::local)?;
    if answer.ok {
        return Ok(());
    }
    let v1::CommitQuotaResponse { credits_consumed, budget, .. } = answer;
    Err(Failure::new(
        Code::Quota,
        format!(
            "insufficient quota: the workspace costs {daily_cost} a day, and {credits_consumed} of \
             {budget} credits are in use; delete or stop another workspace, or ask for more"
        ),
    ))
}
