//! What becomes of jobs that nobody runs any more. Set-based: any number of them costs one
//! statement. Ended rows are found by their ids: a join may read all of history.

use berth_domain::id::{JobId, LeaseToken, OrganizationId};
use berth_domain::state::ProvisionerType;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A job that was put back into the queue.
#[derive(Debug, Clone)]
pub struct Lost {
    /// The job.
    pub id: JobId,
    /// Whose daemons may run it.
    pub organization_id: OrganizationId,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
}

/// Ends leases before their time. Gives how many jobs were held under them.
#[tracing::instrument(name = "db.job.end_leases", skip_all, err)]
pub async fn end_leases(
    db: impl Executor<'_>,
    organization: OrganizationId,
    leases: &[LeaseToken],
) -> Result<u64, DbError> {
    let leases: Vec<Uuid> = leases.iter().map(|it| it.0).collect();
    let done = sqlx::query!(
        "
        update provisioner_jobs set lease_expires_at = now() - interval '1 second'
        where organization_id = $1 and lease_token = any($2)
          and started_at is not null and completed_at is null",
        organization.0,
        &leases
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Puts jobs back whose lease ended before apply began, each once.
#[tracing::instrument(name = "db.job.requeue_lost", level = "debug", skip_all, err)]
pub async fn requeue_lost(db: impl Executor<'_>) -> Result<Vec<Lost>, DbError> {
    let rows = sqlx::query!(
        "
        with lost as (
            select id from provisioner_jobs
            where started_at is not null and completed_at is null and canceled_at is null
              and lease_expires_at < now() and not apply_started and attempts < 2
            for update skip locked
        )
        update provisioner_jobs j
        set started_at = null, worker_id = null, lease_token = null, lease_expires_at = null,
            updated_at = now()
        where j.id = any(array(select id from lost))
        returning j.id, j.organization_id, j.provisioner"
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Lost {
                id: JobId(row.id),
                organization_id: OrganizationId(row.organization_id),
                provisioner: row.provisioner.parse()?,
            })
        })
        .collect()
}

/// Ends jobs whose lease ended and that are not to be run again. Gives those in which apply had
/// begun apart, second: their resources may exist.
#[tracing::instrument(name = "db.job.fail_lost", level = "debug", skip_all, err)]
pub async fn fail_lost(
    db: impl Executor<'_>,
    now: Timestamp,
) -> Result<(Vec<JobId>, Vec<JobId>), DbError> {
    let rows = sqlx::query!(
        "
        with lost as (
            select id from provisioner_jobs
            where started_at is not null and completed_at is null and lease_expires_at < now()
              and (apply_started or attempts >= 2 or canceled_at is not null)
            for update skip locked
        )
        update provisioner_jobs j
        set completed_at = $1, updated_at = $1, lease_expires_at = null,
            error = 'the provisioner daemon was lost: its lease on the job ended',
            error_code = case when j.canceled_at is null then 'infrastructure' else 'canceled' end
        where j.id = any(array(select id from lost))
        returning j.id, j.apply_started",
        at(now)
    )
    .fetch_all(db)
    .await?;
    let (applied, planned): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .map(|row| (JobId(row.id), row.apply_started))
        .partition(|(_, applied)| *applied);
    let ids = |rows: Vec<(JobId, bool)>| rows.into_iter().map(|(id, _)| id).collect();
    Ok((ids(planned), ids(applied)))
}

/// Cancels jobs that no daemon took for `pending_seconds`. Looks at the oldest of each kind of job that
/// waits; a job that went back into the queue lately is older than its wait.
#[tracing::instrument(name = "db.job.cancel_unserved", level = "debug", skip_all, err)]
pub async fn cancel_unserved(
    db: impl Executor<'_>,
    pending_seconds: f64,
    now: Timestamp,
) -> Result<Vec<JobId>, DbError> {
    let ids = sqlx::query_scalar!(
        "
        with recursive kind as (
            (
                select organization_id, provisioner, tag_set_id, class from provisioner_jobs
                where started_at is null and canceled_at is null and completed_at is null
                order by organization_id, provisioner, tag_set_id, class
                limit 1
            )
            union all
            select k.*
            from kind l cross join lateral (
                select j.organization_id, j.provisioner, j.tag_set_id, j.class
                from provisioner_jobs j
                where (j.organization_id, j.provisioner, j.tag_set_id, j.class)
                      > (l.organization_id, l.provisioner, l.tag_set_id, l.class)
                  and j.started_at is null and j.canceled_at is null and j.completed_at is null
                order by j.organization_id, j.provisioner, j.tag_set_id, j.class
                limit 1
            ) k
        ), unserved as (
            select u.id
            from kind k cross join lateral (
                select j.id from provisioner_jobs j
                where j.organization_id = k.organization_id and j.provisioner = k.provisioner
                  and j.tag_set_id = k.tag_set_id and j.class = k.class
                  and j.created_at < now() - $1::double precision * interval '1 second'
                  and j.updated_at < now() - $1::double precision * interval '1 second'
                  and j.started_at is null and j.canceled_at is null and j.completed_at is null
                for update skip locked
            ) u
        )
        update provisioner_jobs j
        set canceled_at = $2, completed_at = $2, updated_at = $2,
            error = 'no provisioner daemon took the job in time', error_code = 'no_provisioner'
        where j.id = any(array(select id from unserved))
        returning j.id",
        pending_seconds,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(JobId).collect())
}
