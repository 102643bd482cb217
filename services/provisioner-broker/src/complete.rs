//! The end of a job: its result or its failure, in one transaction with everything that follows.

mod build;
mod collect;
mod import;
mod rehearsal;
mod together;

use berth_backbone::{Vault, Work};
use berth_db::job::{self, Ending, Locked};
use berth_db::{DbError, build_state, job_log, job_timing};
use berth_domain::id::{BuildId, JobId, LeaseToken, OrganizationId};
use berth_domain::state::{JobErrorCode, JobKind, JobStatus, LogLevel};
use berth_proto::v1;
use berth_vault::VaultError;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::broker::Broker;
use crate::effect;
use crate::error::{self, SettleError, of_db, of_settle};
use crate::update::storable;

pub(crate) use together::Results;
use together::{Reported, Whole};

/// Longest error text that is stored, in bytes.
const ERROR_MAX: usize = 64 * 1024;

/// Who reports on which job, and what makes the report the same as another.
pub(crate) struct Report {
    pub(crate) job: JobId,
    pub(crate) organization: OrganizationId,
    pub(crate) lease: LeaseToken,
    pub(crate) digest: Vec<u8>,
}

/// What a report meets.
pub(crate) enum Checked {
    /// The job, held by the caller; its row is locked.
    Held(Box<Locked>),
    /// The job ended with this very report.
    Repeated,
}

/// Why a result was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The template's doing: the job fails with this text.
    #[error("{0}")]
    Template(String),
    /// What follows cannot be written.
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        Self::Settle(error.into())
    }
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        Self::Settle(error.into())
    }
}

impl Report {
    pub(crate) fn new(
        organization: OrganizationId,
        job: &str,
        lease: &str,
        parts: &[&[u8]],
    ) -> Result<Self, Status> {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        Ok(Self {
            job: error::id(job, "job")?,
            organization,
            lease: error::id(lease, "lease token")?,
            digest: digest.finalize().to_vec(),
        })
    }
}

/// Locks the reported job and checks that the caller may report on it.
pub(crate) async fn check(work: &mut Work, report: &Report) -> Result<Checked, Status> {
    let found = job::lock(work.conn(), report.job).await.map_err(of_db)?;
    let job = found
        .filter(|it| it.organization_id == report.organization)
        .ok_or_else(|| Status::not_found(format!("no job {}", report.job)))?;
    if job.lease != Some(report.lease) {
        return Err(Status::failed_precondition(
            "the lease token is not the job's: it was given to another daemon",
        ));
    }
    if !job.status.is_terminal() {
        return Ok(Checked::Held(Box::new(job)));
    }
    if job.report_digest.as_deref() == Some(report.digest.as_slice()) {
        return Ok(Checked::Repeated);
    }
    Err(Status::failed_precondition(format!("the job has ended already: it {}", job.status)))
}

/// Takes a result. A result that the template's rules refuse ends the job as failed.
#[tracing::instrument(name = "rpc.provisioner.complete_job", skip_all, fields(job.id = request.job_id), err(level = "info"))]
pub(crate) async fn complete(
    broker: &Broker,
    organization: OrganizationId,
    request: v1::CompleteJobRequest,
) -> Result<(), Status> {
    let v1::CompleteJobRequest { job_id, lease_token, timings, result } = request;
    let output = result.ok_or_else(|| Status::invalid_argument("the report has no result"))?;
    let mut bytes = Vec::with_capacity(output.encoded_len());
    output.encode(&mut bytes);
    let parts: [&[u8]; 2] = [b"complete", &bytes];
    let report = Report::new(organization, &job_id, &lease_token, &parts)?;
    let whole = Box::new(Whole { report, output, timings, bytes: bytes.len() });
    drop(bytes);
    let alone = match Reported::read(broker, whole) {
        Ok(reported) => match together::store(broker, reported).await? {
            None => return Ok(()),
            Some(back) => back.result,
        },
        Err(whole) => whole,
    };
    complete_alone(broker, &alone.report, &alone.output, &alone.timings).await
}

/// Stores one result in a transaction of its own, or tells why not.
async fn complete_alone(
    broker: &Broker,
    report: &Report,
    output: &v1::complete_job_request::Result,
    timings: &[v1::Timing],
) -> Result<(), Status> {
    use v1::complete_job_request::Result as Output;
    let state: Option<&[u8]> = match output {
        Output::WorkspaceBuild(it) => Some(&it.state),
        _ => None,
    };
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let job = match check(&mut work, report).await? {
        Checked::Held(job) => job,
        Checked::Repeated => return Ok(()),
    };
    let written = write((&broker.vault, &mut work), &job, report, output, timings).await;
    let reason = match written {
        Ok(status) => {
            work.commit().await.map_err(of_db)?;
            count(broker, job.kind, status);
            return Ok(());
        }
        Err(Refusal::Settle(SettleError::Db(error))) if error.is_unavailable() => {
            return Err(of_db(error));
        }
        Err(Refusal::Settle(error @ SettleError::Vault(_))) => return Err(of_settle(error)),
        Err(Refusal::Settle(error)) => {
            let text = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error = text, job.id = %job.id, "result cannot be stored");
            (JobErrorCode::Infrastructure, format!("the result could not be stored: {text}"))
        }
        Err(Refusal::Template(text)) => (JobErrorCode::Template, text),
    };
    drop(work);
    // What the tool made exists, whatever became of the rest of the report.
    end_in_failure(broker, report, (reason.0, &reason.1), state).await
}

async fn write(
    (vault, work): (&Vault, &mut Work),
    job: &Locked,
    report: &Report,
    output: &v1::complete_job_request::Result,
    reported: &[v1::Timing],
) -> Result<JobStatus, Refusal> {
    use v1::complete_job_request::Result as Output;
    let ending = Ending { failure: None, digest: &report.digest, now: work.now() };
    let status = job::mark_completed(work.conn(), job.id, ending)
        .await?
        .expect("the row is locked and was checked not to have ended");
    if !reported.is_empty() {
        job_timing::insert(work.conn(), &timings(job.id, reported)).await?;
    }
    match (job.kind, output) {
        (JobKind::WorkspaceBuild, Output::WorkspaceBuild(it)) => {
            build::store((vault, work), job, status, it).await?;
        }
        (JobKind::TemplateVersionImport, Output::TemplateImport(it)) => {
            import::store(work, job, it).await?;
        }
        (JobKind::TemplateVersionDryRun, Output::TemplateDryRun(it)) => {
            import::store_dry_run(work, job, it).await?;
        }
        (JobKind::Rehearsal, Output::Rehearsal(it)) => rehearsal::store(work, job, it).await?,
        (kind, _) => {
            return Err(Refusal::Template(format!("the result is not one of a {kind} job")));
        }
    }
    let building: &[JobId] = if job.kind == JobKind::WorkspaceBuild { &[job.id] } else { &[] };
    effect::ended(work, &[job.id], building).await?;
    Ok(status)
}

/// Takes a failure.
#[tracing::instrument(name = "rpc.provisioner.fail_job", skip_all, fields(job.id = request.job_id, code = request.error_code), err(level = "info"))]
pub(crate) async fn fail(
    broker: &Broker,
    organization: OrganizationId,
    request: &v1::FailJobRequest,
) -> Result<(), Status> {
    let code: JobErrorCode = request
        .error_code
        .parse()
        .map_err(|error| Status::invalid_argument(format!("error_code: {error}")))?;
    let state = request.state.as_deref();
    let (code_text, error) = (request.error_code.as_bytes(), request.error.as_bytes());
    let parts: [&[u8]; 4] = [b"fail", code_text, error, state.unwrap_or_default()];
    let report = Report::new(organization, &request.job_id, &request.lease_token, &parts)?;
    let timings = timings(report.job, &request.timings);
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let job = match check(&mut work, &report).await? {
        Checked::Held(job) => job,
        Checked::Repeated => return Ok(()),
    };
    if !timings.is_empty() {
        job_timing::insert(work.conn(), &timings).await.map_err(of_db)?;
    }
    let failure = (code, request.error.as_str());
    let status = write_failure((&broker.vault, &mut work), &job, &report, failure, state)
        .await
        .map_err(of_settle)?;
    work.commit().await.map_err(of_db)?;
    count(broker, job.kind, status);
    Ok(())
}

/// Ends a job as failed on the broker's own account, with the reason in its log.
pub(crate) async fn end_in_failure(
    broker: &Broker,
    report: &Report,
    failure: (JobErrorCode, &str),
    state: Option<&[u8]>,
) -> Result<(), Status> {
    let mut work = broker.backbone.begin().await.map_err(of_db)?;
    let Checked::Held(job) = check(&mut work, report).await? else { return Ok(()) };
    let (now, text) = (work.now(), storable(failure.1.to_owned()));
    job_log::insert_notes(work.conn(), &[job.id], LogLevel::Error, &text, now)
        .await
        .map_err(of_db)?;
    let status = write_failure((&broker.vault, &mut work), &job, report, failure, state)
        .await
        .map_err(of_settle)?;
    work.commit().await.map_err(of_db)?;
    count(broker, job.kind, status);
    Ok(())
}

async fn write_failure(
    (vault, work): (&Vault, &mut Work),
    job: &Locked,
    report: &Report,
    (code, error): (JobErrorCode, &str),
    state: Option<&[u8]>,
) -> Result<JobStatus, SettleError> {
    let mut error = storable(error.to_owned());
    error.truncate(error.floor_char_boundary(ERROR_MAX));
    let ending = Ending { failure: Some((code, &error)), digest: &report.digest, now: work.now() };
    let status = job::mark_completed(work.conn(), job.id, ending)
        .await?
        .expect("the row is locked and was checked not to have ended");
    if let (Some(state), Some(build)) = (state, build_id(job))
        && let Some(workspace) = build_state::find_workspace(work.conn(), build).await?
    {
        let state = vault.seal_state(workspace, state)?;
        build_state::insert(work.conn(), build, &state).await?;
    }
    effect::failed(work, &[job.id]).await?;
    Ok(status)
}

/// The build that a job runs.
fn build_id(job: &Locked) -> Option<BuildId> {
    job.input.get("workspace_build_id")?.as_str()?.parse().ok()
}

fn count(broker: &Broker, kind: JobKind, status: JobStatus) {
    broker.metrics.ended.with_label_values(&[kind.as_str(), status.as_str()]).inc();
}

fn timings(job_id: JobId, timings: &[v1::Timing]) -> Vec<job_timing::Timing> {
    let time = Timestamp::from_microsecond;
    timings
        .iter()
        .filter_map(|it| {
            Some(job_timing::Timing {
                job_id,
                started_at: time(it.started_at_us).ok()?,
                ended_at: time(it.ended_at_us).ok()?,
                stage: match v1::Step::try_from(it.stage).unwrap_or_default() {
                    v1::Step::Init | v1::Step::Unspecified => "init",
                    v1::Step::Plan => "plan",
                    v1::Step::Apply => "apply",
                    v1::Step::Graph => "graph",
                },
                source: storable(it.source.clone()),
                action: storable(it.action.clone()),
                resource: storable(it.resource.clone()),
            })
        })
        .collect()
}
