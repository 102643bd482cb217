//! The job queue: taking jobs, holding them, ending them. A job that ended never changes again:
//! every statement that changes one says so in its condition.

mod acquire;
mod end;
mod input;
mod reap;

pub use acquire::{AGEING_SECONDS, Filter, HOLDERS_MAX, Held, Taken, acquire, release};
pub use end::{Ended, EndedBuild, Success, mark_succeeded};
pub use input::{
    BuildInput, BuildOwner, RunningAgent, find_build_input, list_running_agents, put_owner_key,
};
pub use reap::{Lost, cancel_unserved, end_leases, fail_lost, requeue_lost};

use berth_domain::build::Tags;
use berth_domain::id::{DaemonId, FileId, JobId, LeaseToken, OrganizationId, UserId};
use berth_domain::state::{JobErrorCode, JobKind, JobStatus, ProvisionerType};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// A job to be queued that is no workspace build (those are queued by `build::queue`).
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Whose daemons may run it.
    pub organization_id: OrganizationId,
    /// Who asked.
    pub initiator_id: UserId,
    /// What for.
    pub kind: JobKind,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// Rank of its class.
    pub class: i16,
    /// The template's archive.
    pub file_id: FileId,
    /// `{"template_version_id"}`, and for a dry run `"parameters": [{name, value}]`.
    pub input: serde_json::Value,
    /// Normalised tags.
    pub tags: Tags,
    /// W3C trace context of whoever asks.
    pub trace: serde_json::Value,
    /// When.
    pub now: Timestamp,
}

/// What a report is checked against, read under the job's row lock.
#[derive(Debug, Clone)]
pub struct Locked {
    /// The job.
    pub id: JobId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Who asked for it.
    pub initiator_id: UserId,
    /// What for.
    pub kind: JobKind,
    /// What to do.
    pub input: serde_json::Value,
    /// The holding that may report; `None` once the job is back in the queue.
    pub lease: Option<LeaseToken>,
    /// Where it stands.
    pub status: JobStatus,
    /// Digest of the report that ended it.
    pub report_digest: Option<Vec<u8>>,
    /// Whether apply ever began.
    pub apply_started: bool,
    /// Times it was taken.
    pub attempts: i32,
    /// Bytes of log stored.
    pub logs_length: i32,
    /// Whether the log is full.
    pub logs_overflowed: bool,
    /// Number of the newest line stored.
    pub last_log_number: i64,
}

/// How a job ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// Why it failed; `None` on success.
    pub failure: Option<(JobErrorCode, &'a str)>,
    /// Digest of the report.
    pub digest: &'a [u8],
    /// When.
    pub now: Timestamp,
}

/// Queues a job that is no workspace build.
#[tracing::instrument(name = "db.job.insert", skip_all, fields(job.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewJob) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into provisioner_jobs (
            id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
            trace_metadata, created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
        new.id.0,
        new.organization_id.0,
        new.initiator_id.0,
        new.kind.as_str(),
        new.provisioner.as_str(),
        new.class,
        new.file_id.0,
        new.input,
        serde_json::json!(new.tags),
        new.trace,
        at(new.now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A job, its row locked until the transaction ends.
#[tracing::instrument(name = "db.job.lock", level = "debug", skip_all, fields(job.id = %id), err)]
pub async fn lock(db: impl Executor<'_>, id: JobId) -> Result<Option<Locked>, DbError> {
    let row = sqlx::query!(
        "
        select id, organization_id, initiator_id, kind, input, lease_token, status, report_digest,
               apply_started, attempts, logs_length, logs_overflowed, last_log_number
        from provisioner_jobs where id = $1 for update",
        id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Locked {
            id: JobId(row.id),
            organization_id: OrganizationId(row.organization_id),
            initiator_id: UserId(row.initiator_id),
            kind: row.kind.parse()?,
            input: row.input,
            lease: row.lease_token.map(LeaseToken),
            status: row.status.parse()?,
            report_digest: row.report_digest,
            apply_started: row.apply_started,
            attempts: row.attempts,
            logs_length: row.logs_length,
            logs_overflowed: row.logs_overflowed,
            last_log_number: row.last_log_number,
        })
    })
    .transpose()
}

/// Renews a lease by `lease_seconds` from Postgres' `now()`. `apply` says that apply began.
#[tracing::instrument(name = "db.job.renew", level = "debug", skip_all, fields(job.id = %id), err)]
pub async fn renew(
    db: impl Executor<'_>,
    id: JobId,
    lease_seconds: f64,
    apply: bool,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update provisioner_jobs
        set lease_expires_at = now() + $2::double precision * interval '1 second',
            apply_started = apply_started or $3, updated_at = now()
        where id = $1 and completed_at is null",
        id.0,
        lease_seconds,
        apply
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Says how much log a job has.
#[tracing::instrument(name = "db.job.mark_logged", level = "debug", skip_all, fields(job.id = %id), err)]
pub async fn mark_logged(
    db: impl Executor<'_>,
    id: JobId,
    length: i32,
    overflowed: bool,
    last_number: i64,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update provisioner_jobs
        set logs_length = $2, logs_overflowed = $3, last_log_number = $4
        where id = $1",
        id.0,
        length,
        overflowed,
        last_number
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Merges the tags that a template sets itself into those of its import job, which every later job
/// of the version inherits.
#[tracing::instrument(name = "db.job.merge_tags", skip_all, fields(job.id = %id), err)]
pub async fn merge_tags(db: impl Executor<'_>, id: JobId, tags: &Tags) -> Result<(), DbError> {
    sqlx::query!(
        "update provisioner_jobs set tags = tags || $2 where id = $1",
        id.0,
        serde_json::json!(tags)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a job and tells its status from now on: `canceled` where a cancel was asked. `None`: it had
/// ended already.
#[tracing::instrument(name = "db.job.mark_completed", skip_all, fields(job.id = %id), err)]
pub async fn mark_completed(
    db: impl Executor<'_>,
    id: JobId,
    ending: Ending<'_>,
) -> Result<Option<JobStatus>, DbError> {
    let (code, error) = ending.failure.unzip();
    let status = sqlx::query_scalar!(
        r#"
        update provisioner_jobs
        set completed_at = $2, updated_at = $2, error = coalesce($3, ''), error_code = $4,
            report_digest = $5, lease_expires_at = null
        where id = $1 and completed_at is null
        returning status as "status!""#,
        id.0,
        at(ending.now),
        error,
        code.map(JobErrorCode::as_str),
        ending.digest
    )
    .fetch_optional(db)
    .await?;
    Ok(status.map(|it| it.parse()).transpose()?)
}

/// Who holds a running job.
#[tracing::instrument(name = "db.job.find_worker", level = "debug", skip_all, fields(job.id = %id), err)]
pub async fn find_worker(db: impl Executor<'_>, id: JobId) -> Result<Option<DaemonId>, DbError> {
    let worker = sqlx::query_scalar!(
        "select worker_id from provisioner_jobs where id = $1 and completed_at is null",
        id.0
    )
    .fetch_optional(db)
    .await?;
    Ok(worker.flatten().map(DaemonId))
}

/// How many jobs wait, by organization and class, for the metrics.
#[tracing::instrument(name = "db.job.depth", level = "debug", skip_all, err)]
pub async fn depth(db: impl Executor<'_>) -> Result<Vec<(String, i16, i64)>, DbError> {
    let rows = sqlx::query!(
        r#"
        select o.name, j.class, count(*) as "count!"
        from provisioner_jobs j join organizations o on o.id = j.organization_id
        where j.started_at is null and j.canceled_at is null and j.completed_at is null
        group by o.name, j.class"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.class, row.count)).collect())
}
