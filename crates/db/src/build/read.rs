//! What readers of builds ask, and how one is cancelled.

use berth_domain::build::Tags;
use berth_domain::id::{
    BuildId, DaemonId, FileId, JobId, OrganizationId, PresetId, TemplateId, UserId, VersionId,
    WorkspaceId,
};
use berth_domain::state::{
    BuildReason, BuildStage, JobErrorCode, JobKind, JobStatus, PoolState, ProvisionerType,
    Transition,
};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

/// A build with its job and what is shown of version and people.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The workspace's name.
    pub workspace_name: String,
    /// The workspace's owner.
    pub owner_id: UserId,
    /// The owner's user name.
    pub owner_name: String,
    /// The owner's avatar.
    pub owner_avatar_url: String,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The workspace's template.
    pub template_id: TemplateId,
    /// The template's name.
    pub template_name: String,
    /// The template's display name.
    pub template_display_name: String,
    /// The template's icon.
    pub template_icon: String,
    /// The version it uses.
    pub version_id: VersionId,
    /// The version's name.
    pub version_name: String,
    /// The preset that its parameters came from.
    pub preset_id: Option<PresetId>,
    /// From 1.
    pub number: i32,
    /// What it does.
    pub transition: Transition,
    /// Who asked.
    pub initiator_id: UserId,
    /// His user name.
    pub initiator_name: String,
    /// Why.
    pub reason: BuildReason,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// Credits a day.
    pub daily_cost: i32,
    /// When the workspace stops by itself.
    pub deadline: Option<Timestamp>,
    /// The latest deadline that may be asked for.
    pub max_deadline: Option<Timestamp>,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Its job.
    pub job: Job,
}

/// A job as it is shown.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// What it is for.
    pub kind: JobKind,
    /// Where it stands.
    pub status: JobStatus,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When a daemon took it.
    pub started_at: Option<Timestamp>,
    /// When a cancel was asked.
    pub canceled_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Why it failed; empty: it did not.
    pub error: String,
    /// Whose fault it was.
    pub error_code: Option<JobErrorCode>,
    /// The archive it runs.
    pub file_id: FileId,
    /// Whose daemons may run it.
    pub tags: Tags,
    /// The daemon that holds or held it.
    pub worker_id: Option<DaemonId>,
    /// The daemon's name.
    pub worker_name: String,
    /// Whether log lines were dropped.
    pub logs_overflowed: bool,
    /// Its place in the queue, from 1; 0: not queued.
    pub queue_position: i64,
    /// Jobs in the same queue; 0: not queued.
    pub queue_size: i64,
}

/// Reads builds, in the order of `ids`.
#[tracing::instrument(name = "db.build.list", skip_all, fields(rows = ids.len()), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn list(db: impl Executor<'_>, ids: &[BuildId]) -> Result<Vec<Build>, DbError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        r#"
        select b.id, b.workspace_id, w.name as workspace_name, w.owner_id,
               u.username as owner_name, u.avatar_url as owner_avatar_url, w.organization_id,
               w.template_id, t.name as template_name, t.display_name as template_display_name,
               t.icon as template_icon, b.template_version_id, v.name as version_name, b.preset_id,
               b.build_number, b.transition, b.initiator_id, i.username as initiator_name,
               b.reason, b.stage, b.daily_cost, b.deadline, b.max_deadline, b.created_at,
               b.updated_at, j.id as job_id, j.organization_id as job_organization_id, j.kind,
               j.status as "status!", j.provisioner, j.created_at as job_created_at, j.started_at,
               j.canceled_at, j.completed_at, j.error, j.error_code, j.file_id, j.tags as "tags: Json<Tags>", j.worker_id,
               coalesce(d.name, '') as "worker_name!", j.logs_overflowed,
               coalesce(q.place, 0) as "queue_position!", coalesce(q.size, 0) as "queue_size!"
        from unnest($1::uuid[]) with ordinality as wanted (id, place)
        join workspace_builds b on b.id = wanted.id
        join workspaces w on w.id = b.workspace_id
        join templates t on t.id = w.template_id
        join template_versions v on v.id = b.template_version_id
        join users u on u.id = w.owner_id
        join users i on i.id = b.initiator_id
        join provisioner_jobs j on j.id = b.job_id
        left join provisioner_daemons d on d.id = j.worker_id
        left join queue_places(
            (select array_agg(job_id) from workspace_builds where id = any($1))
        ) q on q.id = j.id
        order by wanted.place"#,
        &ids
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Build {
                id: BuildId(row.id),
                workspace_id: WorkspaceId(row.workspace_id),
                workspace_name: row.workspace_name,
                owner_id: UserId(row.owner_id),
                owner_name: row.owner_name,
                owner_avatar_url: row.owner_avatar_url,
                organization_id: OrganizationId(row.organization_id),
                template_id: TemplateId(row.template_id),
                template_name: row.template_name,
                template_display_name: row.template_display_name,
                template_icon: row.template_icon,
                version_id: VersionId(row.template_version_id),
                version_name: row.version_name,
                preset_id: row.preset_id.map(PresetId),
                number: row.build_number,
                transition: row.transition.parse()?,
                initiator_id: UserId(row.initiator_id),
                initiator_name: row.initiator_name,
                reason: row.reason.parse()?,
                stage: row.stage.parse()?,
                daily_cost: row.daily_cost,
                deadline: maybe_time(row.deadline),
                max_deadline: maybe_time(row.max_deadline),
                created_at: row.created_at.to_jiff(),
                updated_at: row.updated_at.to_jiff(),
                job: Job {
                    id: JobId(row.job_id),
                    organization_id: OrganizationId(row.job_organization_id),
                    kind: row.kind.parse()?,
                    status: row.status.parse()?,
                    provisioner: row.provisioner.parse()?,
                    created_at: row.job_created_at.to_jiff(),
                    started_at: maybe_time(row.started_at),
                    canceled_at: maybe_time(row.canceled_at),
                    completed_at: maybe_time(row.completed_at),
                    error: row.error,
                    error_code: row.error_code.map(|it| it.parse()).transpose()?,
                    file_id: FileId(row.file_id),
                    tags: row.tags.0,
                    worker_id: row.worker_id.map(DaemonId),
                    worker_name: row.worker_name,
                    logs_overflowed: row.logs_overflowed,
                    queue_position: row.queue_position,
                    queue_size: row.queue_size,
                },
            })
        })
        .collect()
}

/// Looks one build up.
pub async fn find(db: impl Executor<'_>, id: BuildId) -> Result<Option<Build>, DbError> {
    Ok(list(db, &[id]).await?.pop())
}

/// Ids of a workspace's builds, newest first.
#[tracing::instrument(name = "db.build.list_ids", skip_all, fields(workspace.id = %workspace), err)]
pub async fn list_ids(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    limit: i64,
    offset: i64,
) -> Result<Vec<BuildId>, DbError> {
    let ids = sqlx::query_scalar!(
        "
        select id from workspace_builds where workspace_id = $1
        order by build_number desc limit $2 offset $3",
        workspace.0,
        limit,
        offset
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(BuildId).collect())
}

/// The build of a workspace with this number.
#[tracing::instrument(name = "db.build.find_id_by_number", skip_all, fields(workspace.id = %workspace), err)]
pub async fn find_id_by_number(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    number: i32,
) -> Result<Option<BuildId>, DbError> {
    let id = sqlx::query_scalar!(
        "select id from workspace_builds where workspace_id = $1 and build_number = $2",
        workspace.0,
        number
    )
    .fetch_optional(db)
    .await?;
    Ok(id.map(BuildId))
}

/// What became of a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canceled {
    /// No daemon had taken it: it has ended.
    Ended,
    /// A daemon holds it and is told.
    Asked,
    /// It had ended, or was asked to, before.
    TooLate,
}

/// Cancels a job: one that no daemon has taken ends at once.
#[tracing::instrument(name = "db.build.cancel", skip_all, fields(job.id = %job), err)]
pub async fn cancel(
    db: impl Executor<'_>,
    job: JobId,
    by: UserId,
    now: Timestamp,
) -> Result<Canceled, DbError> {
    let ended = sqlx::query_scalar!(
        r#"
        update provisioner_jobs
        set canceled_at = $2, canceled_by = $3, updated_at = $2,
            completed_at = case when started_at is null then $2::timestamptz end,
            error_code = case when started_at is null then 'canceled' else error_code end,
            error = case when started_at is null then 'canceled before it began' else error end
        where id = $1 and completed_at is null and canceled_at is null
        returning completed_at is not null as "ended!""#,
        job.0,
        at(now),
        by.0
    )
    .fetch_optional(db)
    .await?;
    Ok(match ended {
        Some(true) => Canceled::Ended,
        Some(false) => Canceled::Asked,
        None => Canceled::TooLate,
    })
}

/// Counts the end of a build on its workspace and, for a prebuild, puts it where it stands in its
/// pool now. Gives the revision and the pool.
#[tracing::instrument(name = "db.build.mark_ended", skip_all, fields(workspace.id = %workspace), err)]
pub async fn mark_ended(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    pool_state: PoolState,
    now: Timestamp,
) -> Result<(i64, Option<PresetId>), DbError> {
    let row = sqlx::query!(
        "
        update workspaces
        set revision = revision + 1, updated_at = $3,
            pool_state = case when pool_state is null then null else $2 end
        where id = $1
        returning revision, pool_preset_id",
        workspace.0,
        pool_state.as_str(),
        at(now)
    )
    .fetch_one(db)
    .await?;
    Ok((row.revision, row.pool_preset_id.map(PresetId)))
}

/// Says how a claim's build ended.
#[tracing::instrument(name = "db.build.mark_claim_ended", skip_all, fields(build.id = %build), err)]
pub async fn mark_claim_ended(
    db: impl Executor<'_>,
    build: BuildId,
    status: JobStatus,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update claim_attempts a set build_status = $2
        from workspace_builds b
        where b.id = $1 and a.workspace_id = b.workspace_id and a.build_id = b.id",
        build.0,
        status.as_str()
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Moves the deadline of a build.
#[tracing::instrument(name = "db.build.mark_deadline", skip_all, fields(build.id = %build), err)]
pub async fn mark_deadline(
    db: impl Executor<'_>,
    build: BuildId,
    deadline: Timestamp,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update workspace_builds set deadline = $2, updated_at = $3 where id = $1",
        build.0,
        at(deadline),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// How long one step of a job took.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The job.
    pub job_id: JobId,
    /// When the step began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `init`, `plan`, `graph` or `apply`.
    pub stage: String,
    /// The provider, or the tool itself.
    pub source: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub resource: String,
}

/// Timings of a job, in order of time.
#[tracing::instrument(name = "db.build.list_timings", skip_all, fields(job.id = %job), err)]
pub async fn list_timings(db: impl Executor<'_>, job: JobId) -> Result<Vec<Timing>, DbError> {
    let rows = sqlx::query!(
        "
        select job_id, started_at, ended_at, stage, source, action, resource
        from provisioner_job_timings where job_id = $1 order by started_at",
        job.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Timing {
            job_id: JobId(row.job_id),
            started_at: row.started_at.to_jiff(),
            ended_at: row.ended_at.to_jiff(),
            stage: row.stage,
            source: row.source,
            action: row.action,
            resource: row.resource,
        })
        .collect())
}

/// A line of a job's log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// Grows from line to line.
    pub id: i64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Who wrote it.
    pub source: String,
    /// Its severity.
    pub level: String,
    /// The stage it belongs to.
    pub stage: String,
    /// The text.
    pub output: String,
}

/// Up to `limit` lines of a job's log after the line `after`, in order.
#[tracing::instrument(name = "db.build.list_logs", level = "debug", skip_all, fields(job.id = %job), err)]
pub async fn list_logs(
    db: impl Executor<'_>,
    job: JobId,
    after: i64,
    limit: i64,
) -> Result<Vec<LogLine>, DbError> {
    let rows = sqlx::query!(
        "
        select id, created_at, source, level, stage, output
        from provisioner_job_logs where job_id = $1 and id > $2 order by id limit $3",
        job.0,
        after,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| LogLine {
            id: row.id,
            created_at: row.created_at.to_jiff(),
            source: row.source,
            level: row.level,
            stage: row.stage,
            output: row.output,
        })
        .collect())
}

/// Whether a job has ended; a job that is gone has.
#[tracing::instrument(name = "db.build.is_ended", level = "debug", skip_all, fields(job.id = %job), err)]
pub async fn is_ended(db: impl Executor<'_>, job: JobId) -> Result<bool, DbError> {
    let ended = sqlx::query_scalar!(
        r#"select completed_at is not null as "ended!" from provisioner_jobs where id = $1"#,
        job.0
    )
    .fetch_optional(db)
    .await?;
    Ok(ended.unwrap_or(true))
}

/// The job of a template version's import, and the version's organization and template.
#[tracing::instrument(name = "db.build.find_import", skip_all, fields(version.id = %version), err)]
pub async fn find_import(
    db: impl Executor<'_>,
    version: VersionId,
) -> Result<Option<Import>, DbError> {
    let row = sqlx::query!(
        "
        select v.job_id, v.organization_id, v.created_by, t.user_acl as \"user_acl?\",
               t.group_acl as \"group_acl?\"
        from template_versions v left join templates t on t.id = v.template_id
        where v.id = $1",
        version.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Import {
        job_id: JobId(row.job_id),
        organization_id: OrganizationId(row.organization_id),
        created_by: UserId(row.created_by),
        user_acl: row.user_acl.unwrap_or_else(|| serde_json::json!({})),
        group_acl: row.group_acl.unwrap_or_else(|| serde_json::json!({})),
    }))
}

/// A version's import job and what decides who may read it.
#[derive(Debug, Clone)]
pub struct Import {
    /// The job.
    pub job_id: JobId,
    /// The version's organization.
    pub organization_id: OrganizationId,
    /// Who pushed it.
    pub created_by: UserId,
    /// The template's access list of users.
    pub user_acl: Value,
    /// The template's access list of groups.
    pub group_acl: Value,
}
