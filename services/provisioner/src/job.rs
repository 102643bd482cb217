//! Carries one job from acquired to reported.

use std::sync::Arc;

use berth_proto::v1;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::archive::{self, Limits};
use crate::client::{CallError, Client};
use crate::environment::{self, Base};
use crate::exec::Exec;
use crate::leftovers;
use crate::report::Reporter;
use crate::reuse::Kept;
use crate::session::{self, Asking, Code, Driver, Failure, Session};
use crate::stop::{Reason, Stop};
use crate::terraform::{MODULES, Reuse, Setup, Terraform};
use crate::trace;
use crate::transfer::{self, TransferError};
use crate::workdir::{JobDir, WorkRoot};

/// What all jobs of a daemon share.
pub(crate) struct Workshop {
    pub(crate) client: Client,
    pub(crate) root: WorkRoot,
    pub(crate) base: Base,
    /// None where there is no Terraform.
    pub(crate) terraform: Option<Arc<Setup>>,
    /// None where the experiment is off.
    pub(crate) kept: Option<Arc<Kept>>,
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed,
    Canceled,
    /// The daemon had to end it before apply: another is to run it.
    GivenUp,
    /// The broker no longer wanted to hear of it.
    Dropped,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::GivenUp => "given_up",
            Self::Dropped => "dropped",
        }
    }
}

/// Runs `job` until the broker has its result. Its trace begins here and links to who queued it.
pub(crate) async fn run(
    workshop: Arc<Workshop>,
    daemon_id: String,
    job: v1::Job,
    stop: Stop,
) -> Outcome {
    let span = tracing::info_span!(
        parent: None,
        "job.run",
        job.id = %job.id,
        job.kind = kind(&job),
        organization.id = %job.organization_id,
        outcome = tracing::field::Empty,
    );
    trace::link(&span, &job.trace);
    async {
        let outcome = held(&workshop, daemon_id, &job, stop).await;
        tracing::Span::current().record("outcome", outcome.as_str());
        tracing::info!(outcome = outcome.as_str(), "job done");
        outcome
    }
    .instrument(span)
    .await
}

/// The kind of a job, for people.
fn kind(job: &v1::Job) -> &'static str {
    match job.input {
        Some(v1::job::Input::TemplateImport(_)) => "template_version_import",
        Some(v1::job::Input::TemplateDryRun(_)) => "template_version_dry_run",
        Some(v1::job::Input::WorkspaceBuild(_)) => "workspace_build",
        Some(v1::job::Input::Rehearsal(_)) => "prebuild_rehearsal",
        None => "unknown",
    }
}

/// Runs the session beside what keeps the lease, and reports. The lease is kept until the report
/// has been answered.
async fn held(workshop: &Arc<Workshop>, daemon_id: String, job: &v1::Job, stop: Stop) -> Outcome {
    let reporter = Reporter::new(job, stop);
    // Aborted when this ends.
    let mut keeping = JoinSet::new();
    let (pump, client) = (reporter.clone(), workshop.client.clone());
    keeping.spawn(async move { pump.pump(&client).await }.in_current_span());
    let guard = reporter.clone();
    keeping.spawn(async move { guard.guard_lease().await }.in_current_span());

    let mut timings = Vec::new();
    let mut outcome = session(workshop, daemon_id, job, (&reporter, &mut timings)).await;
    if let Err(failure) = &mut outcome {
        failure.message = reporter.veiled(&failure.message);
        let level = match failure.code {
            Code::Canceled => v1::LogLevel::Warn,
            _ => v1::LogLevel::Error,
        };
        reporter.daemon(level, &failure.message);
    }
    reporter.concludes();
    if !reporter.flushed().await {
        tracing::warn!("the broker gave the job up; its result is dropped");
        return Outcome::Dropped;
    }
    if outcome.is_err() && is_given_up(&reporter) {
        return Outcome::GivenUp;
    }
    report(&workshop.client, job, outcome, timings).await
}

/// Whether a job that ended early is better run again, elsewhere or later: nobody wanted it to end,
/// and nothing was applied.
fn is_given_up(reporter: &Reporter) -> bool {
    let reason = reporter.stop().reason();
    matches!(reason, Some(Reason::LeaseLost | Reason::ShuttingDown)) && !reporter.applies()
}

async fn session(
    workshop: &Arc<Workshop>,
    daemon_id: String,
    job: &v1::Job,
    (reporter, timings): (&Reporter, &mut Vec<v1::Timing>),
) -> Result<v1::complete_job_request::Result, Failure> {
    use v1::complete_job_request::Result as Done;
    let mut driver = driver(workshop, job)?;
    let dir = workshop.root.job(&job.id).map_err(Failure::local)?;
    let fetched = tokio::select! {
        fetched = fetch(&workshop.client, daemon_id, job, &dir) => fetched,
        () = reporter.stop().asked() => Ok(()),
    };
    reporter.going()?;
    fetched?;
    let (env, secrets) = (workshop.base.of_job(job), environment::secrets(job));
    let session = Session::new(dir, (env, secrets), reporter.clone());
    let asking = Asking { client: &workshop.client, job };
    let done = match &job.input {
        Some(v1::job::Input::TemplateImport(_)) => {
            session::import(&mut driver, &session, &asking).await.map(Done::TemplateImport)
        }
        Some(v1::job::Input::TemplateDryRun(_)) => {
            session::dry_run(&mut driver, &session).await.map(Done::TemplateDryRun)
        }
        Some(v1::job::Input::WorkspaceBuild(build)) => {
            session::build(&mut driver, &session, build, &asking).await.map(Done::WorkspaceBuild)
        }
        Some(v1::job::Input::Rehearsal(it)) => {
            let claim = it.claim.clone().unwrap_or_default();
            session::rehearse(&mut driver, &session, &claim).await.map(Done::Rehearsal)
        }
        None => Err(Failure::new(
            Code::Infrastructure,
            "the job is of a kind that this daemon does not know; is the broker newer?",
        )),
    };
    *timings = session.take_timings();
    if !matches!(done, Ok(Done::WorkspaceBuild(_))) {
        // Only a workspace that was built may leave something running.
        let dir = session.dir.path().to_owned();
        tokio::task::spawn_blocking(move || leftovers::end(&dir)).await.map_err(Failure::local)?;
    }
    done
}

fn driver(workshop: &Workshop, job: &v1::Job) -> Result<Driver, Failure> {
    match (&*job.provisioner_type, &workshop.terraform) {
        ("terraform", Some(setup)) => {
            let kept = workshop.kept.as_ref().and_then(|kept| Reuse::of(kept, job));
            let archive = &job.archive_file_id;
            Ok(Driver::Terraform(Box::new(Terraform::new(Arc::clone(setup), archive, kept))))
        }
        ("exec", _) => Ok(Driver::Exec(Box::new(Exec::new(job.clone())))),
        (other, _) => Err(Failure::new(
            Code::Infrastructure,
            format!("this daemon has no provisioner of type {other:?}"),
        )),
    }
}

/// Downloads and unpacks the template.
async fn fetch(
    client: &Client,
    daemon_id: String,
    job: &v1::Job,
    dir: &JobDir,
) -> Result<(), Failure> {
    let archive = dir.file("archive");
    let template = (job.archive_file_id.clone(), "template", &archive);
    let modules = dir.file(MODULES);
    let modules = job.modules_file_id.clone().map(|file_id| (file_id, "modules", &modules));
    for (file_id, what, to) in [Some(template), modules].into_iter().flatten() {
        let wanted = v1::DownloadFileRequest { daemon_id: daemon_id.clone(), file_id };
        transfer::download(client, wanted, to).await.map_err(|error| {
            let text = match &error {
                TransferError::Call(cause) => cause.to_string(),
                other => other.to_string(),
            };
            Failure::new(Code::Infrastructure, format!("the {what} did not arrive: {text}"))
        })?;
    }
    let into = dir.template();
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpacked = archive::extract(&archive, &into, Limits::TEMPLATE);
        // Its space is worth more than a second look.
        let _ = std::fs::remove_file(&archive);
        unpacked
    });
    match unpacked.await.map_err(Failure::local)? {
        Ok(()) => Ok(()),
        Err(error) if error.is_local() => Err(Failure::local(error)),
        Err(error) => Err(Failure::new(Code::Invalid, format!("{:#}", anyhow::Error::from(error)))),
    }
}

/// Tells the broker the result until it answers. A definite refusal ends the matter: the job has
/// another result already, or belongs to another daemon.
async fn report(
    client: &Client,
    job: &v1::Job,
    outcome: Result<v1::complete_job_request::Result, Failure>,
    timings: Vec<v1::Timing>,
) -> Outcome {
    let (job_id, lease_token) = (job.id.clone(), job.lease_token.clone());
    let (failure, timings) = match outcome {
        Ok(done) => {
            let state = match &done {
                v1::complete_job_request::Result::WorkspaceBuild(it) => Some(it.state.clone()),
                _ => None,
            };
            let result = Some(done);
            let request = v1::CompleteJobRequest { job_id, lease_token, timings, result };
            match client.complete(request).await {
                Ok(()) => return Outcome::Succeeded,
                // It cannot take this result, so it must hear of a failure, with the state.
                Err(error) if error.is_about_content() => {
                    let text = format!("the broker could not take the result: {error}");
                    (Failure::new(Code::Infrastructure, text).with_state(state), Vec::new())
                }
                Err(error) => return dropped(&error),
            }
        }
        Err(failure) => (failure, timings),
    };
    let canceled = failure.code == Code::Canceled;
    let request = v1::FailJobRequest {
        job_id: job.id.clone(),
        lease_token: job.lease_token.clone(),
        error_code: failure.code.as_str().to_owned(),
        error: failure.message,
        state: failure.state,
        timings,
    };
    match client.fail(request).await {
        Ok(()) if canceled => Outcome::Canceled,
        Ok(()) => Outcome::Failed,
        Err(error) => dropped(&error),
    }
}

fn dropped(error: &CallError) -> Outcome {
    tracing::warn!(%error, "the broker refused the job's result; it is dropped");
    Outcome::Dropped
}
