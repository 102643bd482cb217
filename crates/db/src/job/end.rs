//! Ending many jobs at once.

use berth_domain::id::{BuildId, JobId, LeaseToken, OrganizationId, WorkspaceId};
use berth_domain::state::{BuildStage, JobKind, JobStatus, Transition};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A report of success, and who makes it.
#[derive(Debug, Clone)]
pub struct Success<'a> {
    /// The job.
    pub id: JobId,
    /// Whose daemon reports.
    pub organization_id: OrganizationId,
    /// The holding that it reports under.
    pub lease: LeaseToken,
    /// What it takes the job for.
    pub kind: JobKind,
    /// Digest of the report.
    pub digest: &'a [u8],
}

/// A job that ended now.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The job.
    pub id: JobId,
    /// What it was for.
    pub kind: JobKind,
    /// `succeeded`, or `canceled` where a cancel was asked.
    pub status: JobStatus,
    /// The build that it ran.
    pub build: Option<EndedBuild>,
}

/// The build of a job that ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedBuild {
    /// The build.
    pub id: BuildId,
    /// Its workspace.
    pub workspace_id: WorkspaceId,
    /// What it did.
    pub transition: Transition,
    /// What it was in the life of a prebuild.
    pub stage: BuildStage,
}

/// Ends the jobs that the reporters hold, in one statement. Left out of the answer are those that are
/// not theirs, ended before, are of another kind, or are being changed by somebody else: such a report
/// has to be looked at alone. No job may be named twice.
#[tracing::instrument(name = "db.job.mark_succeeded", level = "debug", skip_all, fields(jobs = reports.len()), err)]
pub async fn mark_succeeded(
    db: impl Executor<'_>,
    reports: &[Success<'_>],
    now: Timestamp,
) -> Result<Vec<Ended>, DbError> {
    let ids: Vec<Uuid> = reports.iter().map(|it| it.id.0).collect();
    let organizations: Vec<Uuid> = reports.iter().map(|it| it.organization_id.0).collect();
    let leases: Vec<Uuid> = reports.iter().map(|it| it.lease.0).collect();
    let kinds: Vec<String> = reports.iter().map(|it| it.kind.to_string()).collect();
    let digests: Vec<Vec<u8>> = reports.iter().map(|it| it.digest.to_vec()).collect();
    let rows = sqlx::query!(
        r#"
        with free as materialized (
            -- Nobody is waited for: that could go round in a circle.
            select id from provisioner_jobs where id = any($1) for update skip locked
        ), ended as (
            update provisioner_jobs j
            set completed_at = $6, updated_at = $6, error = '', error_code = null,
                report_digest = r.digest, lease_expires_at = null
            from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bytea[])
                as r (id, organization_id, lease, kind, digest)
            where j.id = r.id and j.id = any(array(select id from free))
              and j.organization_id = r.organization_id and j.lease_token = r.lease
              and j.kind = r.kind and j.completed_at is null
            returning j.id, j.kind, j.status
        )
        select e.id, e.kind, e.status as "status!", b.id as "build_id?",
               b.workspace_id as "workspace_id?", b.transition as "transition?",
               b.stage as "stage?"
        from ended e left join workspace_builds b on b.job_id = e.id"#,
        &ids,
        &organizations,
        &leases,
        &kinds,
        &digests,
        at(now)
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let build = match (row.build_id, row.workspace_id, row.transition, row.stage) {
                (Some(id), Some(workspace), Some(transition), Some(stage)) => Some(EndedBuild {
                    id: BuildId(id),
                    workspace_id: WorkspaceId(workspace),
                    transition: transition.parse()?,
                    stage: stage.parse()?,
                }),
                _ => None,
            };
            let (kind, status) = (row.kind.parse()?, row.status.parse()?);
            Ok(Ended { id: JobId(row.id), kind, status, build })
        })
        .collect()
}
