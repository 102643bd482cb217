//! Workspace, pool, claim attempt and quota of builds that ended.

use berth_domain::id::{
    BuildId, JobId, OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::quota::Quota;
use berth_domain::state::{BuildStage, JobErrorCode, JobStatus, Transition};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A build whose job changed, and what tells of it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its job.
    pub job_id: JobId,
    /// Where the job stands.
    pub job_status: JobStatus,
    /// Whose fault, if it failed.
    pub error_code: Option<JobErrorCode>,
    /// Why, if it failed.
    pub error: String,
    /// The build.
    pub build_id: BuildId,
    /// Its number.
    pub build_number: i32,
    /// What it does.
    pub transition: Transition,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// Its version.
    pub version_id: VersionId,
    /// The preset its parameters came from.
    pub preset_id: Option<PresetId>,
    /// Who asked for it.
    pub initiator_id: UserId,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name.
    pub workspace_name: String,
    /// Its owner.
    pub owner_id: UserId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its template.
    pub template_id: TemplateId,
    /// The pool it is in, while it is a prebuild.
    pub pool_preset_id: Option<PresetId>,
    /// Its revision from now on.
    pub revision: i64,
}

/// Brings the workspaces of the jobs' builds to what their jobs say: revision, pool state, deletion.
/// Jobs that run no build are left out of the answer. Called after agents were inserted: a prebuild
/// that started without agents is ready at once.
#[tracing::instrument(name = "db.completion.mark_workspaces", skip_all, fields(jobs = jobs.len()), err)]
pub async fn mark_workspaces(
    db: impl Executor<'_>,
    jobs: &[JobId],
    now: Timestamp,
) -> Result<Vec<Facts>, DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"
        with ended as (
            select j.id as job_id, j.status, j.error_code, j.error, b.id as build_id,
                   b.workspace_id, b.build_number, b.transition, b.stage,
                   b.template_version_id, b.preset_id, b.initiator_id,
                   exists (
                       select from workspace_agents a where a.build_id = b.id and a.parent_id is null
                   ) as has_agents
            from provisioner_jobs j
            join workspace_builds b on b.job_id = j.id
            where j.id = any($1)
        )
        update workspaces w
        set revision = w.revision + 1, updated_at = $2,
            deleted = w.deleted or (e.status = 'succeeded' and e.transition = 'delete'),
            pool_state = case
                when w.pool_state is null or w.latest_build_id <> e.build_id then w.pool_state
                when e.status = 'pending' or e.status = 'running' or e.status = 'canceling'
                    then w.pool_state
                when e.status = 'succeeded' and e.transition = 'start'
                    then case when e.has_agents then 'unready' else 'ready' end
                when e.status = 'succeeded' and e.transition = 'stop' then 'stopped'
                when e.status = 'succeeded' then w.pool_state
                when e.transition = 'delete' then 'failed_delete'
                else 'failed'
            end,
            pool_ready_at = case
                when w.pool_state is null or w.latest_build_id <> e.build_id then w.pool_ready_at
                when e.status = 'succeeded' and e.transition = 'start' and not e.has_agents then $2
                when e.status = 'succeeded' and e.transition = 'start' then null
                else w.pool_ready_at
            end
        from ended e
        where w.id = e.workspace_id
        returning e.job_id, e.status as "status!", e.error_code, e.error, e.build_id, e.build_number,
                  e.transition, e.stage, e.template_version_id, e.preset_id, e.initiator_id,
                  w.id as workspace_id, w.name, w.owner_id, w.organization_id, w.template_id,
                  w.pool_preset_id, w.revision"#,
        &jobs,
        at(now)
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Facts::try_from).collect()
}

/// Counts the ends of prebuild builds in their pools and marks the pools to be looked at. Only a
/// failure that the template caused counts against a pool, and once per build: a reaped or cancelled
/// job, a lost daemon and an exceeded quota are not the template's doing. A success counts for it once
/// the prebuild is ready: with agents, that is when they say so, or a template whose agents never
/// start would never open the breaker. Input that the builder refused for good is not tried again.
/// What failed for another reason sets the pool back: once for all builds made before the last time.
///
/// The pools are locked in the order of their keys, so that batches that end together do not wait
/// for each other in a circle.
#[tracing::instrument(name = "db.completion.mark_pools", skip_all, fields(jobs = jobs.len()), err)]
pub async fn mark_pools(
    db: impl Executor<'_>,
    jobs: &[JobId],
    now: Timestamp,
) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    sqlx::query!(
        r#"
        with ended as (
            select w.pool_preset_id as preset_id, b.id as build_id, b.daily_cost, b.created_at,
                   w.pool_state = 'ready' as is_ready,
                   b.transition = 'start' and j.status = 'succeeded' as is_made,
                   b.transition = 'start' and j.status = 'failed' as is_failed,
                   coalesce(j.error_code = 'template', false) as is_own,
                   coalesce(j.error_code = 'invalid', false) as is_refused
            from provisioner_jobs j
            join workspace_builds b on b.job_id = j.id and b.stage = 'prebuild'
            join workspaces w on w.id = b.workspace_id
            where j.id = any($1) and w.pool_preset_id is not null
        ), own as (
            insert into prebuild_failures (build_id, preset_id, failed_at, kind)
            select build_id, preset_id, $2, 'build' from ended where is_failed and is_own
            on conflict do nothing
            returning build_id
        ), counted as (
            select e.preset_id,
                   count(*) filter (where e.is_made) as made,
                   count(*) filter (where e.is_ready) as ready,
                   count(*) filter (where e.is_failed and (o.build_id is not null or not e.is_own))
                       as failed,
                   count(o.build_id)::int as own,
                   bool_or(e.is_failed and e.is_refused) as is_refused,
                   max(e.created_at)
                       filter (where e.is_failed and not e.is_own and not e.is_refused)
                       as set_back,
                   (array_agg(e.daily_cost order by e.created_at desc) filter (where e.is_made))[1]
                       as daily_cost
            from ended e left join own o on o.build_id = e.build_id
            group by e.preset_id
        ), locked as (
            select p.preset_id,
                   coalesce(c.set_back > coalesce(p.setback_at, '-infinity'), false) as is_set_back
            from prebuild_pools p join counted c on c.preset_id = p.preset_id
            order by p.preset_id
            for no key update of p
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select preset_id, $2 from counted
        )
        update prebuild_pools p
        set created_total = p.created_total + c.made,
            failed_total = p.failed_total + c.failed,
            consecutive_failures =
                case when c.ready > 0 then 0 else p.consecutive_failures + c.own end,
            last_failure_at = case when c.own > 0 then $2 else p.last_failure_at end,
            setbacks = case when c.made > 0 then 0 else p.setbacks + l.is_set_back::int end,
            setback_at = case when l.is_set_back then $2 else p.setback_at end,
            daily_cost = coalesce(c.daily_cost, p.daily_cost),
            prebuild_status =
                case when c.is_refused then 'validation_failed' else p.prebuild_status end
        from locked l join counted c on c.preset_id = l.preset_id
        where p.preset_id = l.preset_id"#,
        &jobs,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Counts a claim that replaced resources.
#[tracing::instrument(name = "db.completion.count_replaced", skip_all, fields(preset.id = %preset), err)]
pub async fn count_replaced(db: impl Executor<'_>, preset: PresetId) -> Result<(), DbError> {
    sqlx::query!(
        "update prebuild_pools set replaced_total = replaced_total + 1 where preset_id = $1",
        preset.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends the sessions that were made for workspaces.
#[tracing::instrument(name = "db.completion.revoke_keys", skip_all, fields(workspaces = workspaces.len()), err)]
pub async fn revoke_keys(db: impl Executor<'_>, workspaces: &[WorkspaceId]) -> Result<(), DbError> {
    let ids: Vec<Uuid> = workspaces.iter().map(|it| it.0).collect();
    sqlx::query!("delete from api_keys where workspace_id = any($1)", &ids).execute(db).await?;
    Ok(())
}

/// Records in the claim attempts how the builds that followed them ended. A second claim build of a
/// workspace speaks for the same attempt.
#[tracing::instrument(name = "db.completion.mark_attempts", skip_all, fields(jobs = jobs.len()), err)]
pub async fn mark_attempts(db: impl Executor<'_>, jobs: &[JobId]) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    sqlx::query!(
        "
        update claim_attempts a set build_status = j.status
        from workspace_builds b join provisioner_jobs j on j.id = b.job_id
        where b.job_id = any($1) and a.workspace_id = b.workspace_id
          and (a.build_id = b.id or (a.outcome = 'hit' and b.stage = 'claim'))",
        &jobs
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has the build that is tried in place of a failed claim take its place: it is charged what that one
/// was, and the claim's attempt speaks for it and tells of the other, its number and whose fault it was.
#[tracing::instrument(name = "db.completion.replace_claim", skip_all, fields(build.id = %failed.build_id), err)]
pub async fn replace_claim(
    db: impl Executor<'_>,
    failed: &Facts,
    next: BuildId,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        with charged as (
            update workspace_builds n set daily_cost = f.daily_cost
            from workspace_builds f where f.id = $2 and n.id = $3
        )
        update claim_attempts
        set build_id = $3, build_status = null,
            detail = detail || jsonb_build_object('retried', jsonb_build_object(
                'build_id', $2::uuid, 'build_number', $4::int, 'error_class', $5::text))
        where workspace_id = $1 and build_id = $2 and outcome = 'hit'",
        failed.workspace_id.0,
        failed.build_id.0,
        next.0,
        failed.build_number,
        failed.error_code.map(JobErrorCode::as_str)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// How many claim builds a workspace has had.
#[tracing::instrument(name = "db.completion.count_claim_builds", skip_all, fields(workspace.id = %workspace), err)]
pub async fn count_claim_builds(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
) -> Result<i64, DbError> {
    let count = sqlx::query_scalar!(
        r#"
        select count(*) as "count!" from workspace_builds
        where workspace_id = $1 and stage = 'claim'"#,
        workspace.0
    )
    .fetch_one(db)
    .await?;
    Ok(count)
}

/// Sets what a build costs a day, and the deadline of a started workspace that has a time to live.
#[tracing::instrument(name = "db.completion.set_cost", skip_all, fields(build.id = %build), err)]
pub async fn set_cost(
    db: impl Executor<'_>,
    build: BuildId,
    daily_cost: i32,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update workspace_builds b
        set daily_cost = $2, updated_at = $3::timestamptz,
            deadline = case
                when b.transition = 'start' and w.pool_preset_id is null and w.ttl_ms > 0
                then $3::timestamptz + w.ttl_ms * interval '1 millisecond'
            end
        from workspaces w
        where b.id = $1 and w.id = b.workspace_id",
        build.0,
        daily_cost,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes down with its pool what a prebuild would have cost that the quota refused, so that no other
/// is tried before there is room. Any other build has no pool.
#[tracing::instrument(name = "db.completion.note_refused_cost", skip_all, fields(build.id = %build), err)]
pub async fn note_refused_cost(
    db: impl Executor<'_>,
    build: BuildId,
    daily_cost: i32,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update prebuild_pools p set daily_cost = $2
        from workspace_builds b join workspaces w on w.id = b.workspace_id
        where b.id = $1 and b.stage = 'prebuild' and p.preset_id = w.pool_preset_id
          and p.daily_cost is distinct from $2",
        build.0,
        daily_cost
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Gives failed builds the cost of the build before, where they never began to apply: what they did
/// not replace still runs.
#[tracing::instrument(name = "db.completion.carry_costs", skip_all, fields(jobs = jobs.len()), err)]
pub async fn carry_costs(db: impl Executor<'_>, jobs: &[JobId]) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    sqlx::query!(
        "
        update workspace_builds b
        set daily_cost = case when j.apply_started then greatest(b.daily_cost, p.daily_cost) else p.daily_cost end
        from workspace_builds p, provisioner_jobs j
        where b.job_id = any($1) and j.id = b.job_id
          and p.workspace_id = b.workspace_id and p.build_number = b.build_number - 1",
        &jobs
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A build that asks what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The build.
    pub build_id: BuildId,
    /// What the owner may spend, and spends elsewhere.
    pub quota: Quota,
    /// Credits a day of the workspace's build before this one.
    pub previous: i64,
    /// Credits a day that this build is charged already: a claim is, from the moment on in which the
    /// prebuild changed hands.
    pub charged: i64,
}

/// What decides whether the build of a job may cost more than it is charged. Waits for others who ask
/// for the same owner in the same organization, until the transaction ends. `None`: the job runs no
/// build.
#[tracing::instrument(name = "db.completion.quota", skip_all, fields(job.id = %job), err)]
pub async fn quota(db: &mut crate::Connection, job: JobId) -> Result<Option<Charge>, DbError> {
    let found = sqlx::query!(
        r#"
        select b.id, b.workspace_id, b.build_number, b.daily_cost, w.owner_id, w.organization_id,
               pg_advisory_xact_lock(
                   hashtextextended(w.owner_id::text || w.organization_id::text, 0)
               )::text as locked
        from workspace_builds b join workspaces w on w.id = b.workspace_id
        where b.job_id = $1"#,
        job.0
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(build) = found else { return Ok(None) };
    // A statement of its own: it sees what others committed while this one waited for the lock.
    let row = sqlx::query!(
        r#"
        select
            coalesce((
                select sum(g.quota_allowance) from groups g
                where g.organization_id = $2
                  and (
                      (g.id = g.organization_id and exists (
                          select from organization_members m
                          where m.organization_id = $2 and m.user_id = $1
                      ))
                      or exists (
                          select from group_members gm where gm.group_id = g.id and gm.user_id = $1
                      )
                  )
            ), 0)::bigint as "budget!",
            coalesce((
                select sum(b.daily_cost)
                from workspaces w join workspace_builds b on b.id = w.latest_build_id
                where w.owner_id = $1 and w.organization_id = $2 and not w.deleted and w.id <> $3
            ), 0)::bigint as "consumed!",
            coalesce((
                select p.daily_cost from workspace_builds p
                where p.workspace_id = $3 and p.build_number = $4 - 1
            ), 0)::bigint as "previous!""#,
        build.owner_id,
        build.organization_id,
        build.workspace_id,
        build.build_number
    )
    .fetch_one(db)
    .await?;
    Ok(Some(Charge {
        build_id: BuildId(build.id),
        quota: Quota { budget: row.budget, consumed: row.consumed },
        previous: row.previous,
        charged: build.daily_cost.into(),
    }))
}

struct Row {
    job_id: Uuid,
    status: String,
    error_code: Option<String>,
    error: String,
    build_id: Uuid,
    build_number: i32,
    transition: String,
    stage: String,
    template_version_id: Uuid,
    preset_id: Option<Uuid>,
    initiator_id: Uuid,
    workspace_id: Uuid,
    name: String,
    owner_id: Uuid,
    organization_id: Uuid,
    template_id: Uuid,
    pool_preset_id: Option<Uuid>,
    revision: i64,
}

impl TryFrom<Row> for Facts {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            job_id: JobId(row.job_id),
            job_status: row.status.parse()?,
            error_code: row.error_code.map(|it| it.parse()).transpose()?,
            error: row.error,
            build_id: BuildId(row.build_id),
            build_number: row.build_number,
            transition: row.transition.parse()?,
            stage: row.stage.parse()?,
            version_id: VersionId(row.template_version_id),
            preset_id: row.preset_id.map(PresetId),
            initiator_id: UserId(row.initiator_id),
            workspace_id: WorkspaceId(row.workspace_id),
            workspace_name: row.name,
            owner_id: UserId(row.owner_id),
            organization_id: OrganizationId(row.organization_id),
            template_id: TemplateId(row.template_id),
            pool_preset_id: row.pool_preset_id.map(PresetId),
            revision: row.revision,
        })
    }
}
