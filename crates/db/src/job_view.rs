//! Jobs as people see them: with their place in the queue and what they are about.

use berth_domain::build::Tags;
use berth_domain::id::{
    DaemonId, FileId, JobId, OrganizationId, TemplateId, VersionId, WorkspaceId,
};
use berth_domain::state::{JobErrorCode, JobKind, JobStatus};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{DbError, Executor, maybe_time};

/// A job.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Whose daemons may run it.
    pub organization_id: OrganizationId,
    /// What it is for.
    pub kind: JobKind,
    /// Where it stands.
    pub status: JobStatus,
    /// The archive that it runs.
    pub file_id: FileId,
    /// Whose daemons may run it.
    pub tags: Tags,
    /// Daemons that could take it now, at most 100, where it waits for one.
    pub available_workers: Vec<DaemonId>,
    /// What it was told.
    pub input: Value,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When a daemon took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// When somebody asked to stop it.
    pub canceled_at: Option<Timestamp>,
    /// Why it failed; empty otherwise.
    pub error: String,
    /// Whose fault that is.
    pub error_code: Option<JobErrorCode>,
    /// Its log is not complete.
    pub logs_overflowed: bool,
    /// The daemon that has or had it.
    pub worker_id: Option<DaemonId>,
    /// That daemon's name; empty without one.
    pub worker_name: String,
    /// Its place among the jobs that wait for the same daemons, from 1; 0 once it is taken.
    pub queue_position: i64,
    /// How many are pending there; 0 once it is taken.
    pub queue_size: i64,
    /// The template, if there is one.
    pub template_id: Option<TemplateId>,
    /// Its name.
    pub template_name: String,
    /// What people see of it.
    pub template_display_name: String,
    /// Its icon.
    pub template_icon: String,
    /// The version.
    pub version_id: Option<VersionId>,
    /// Its name.
    pub version_name: String,
    /// The workspace, for builds.
    pub workspace_id: Option<WorkspaceId>,
    /// Its name.
    pub workspace_name: String,
}

/// Which jobs.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// These; `None`: those of the organization.
    pub ids: Option<Vec<Uuid>>,
    /// Of this organization; `None`, beside `ids` only: of any.
    pub organization: Option<OrganizationId>,
    /// In one of these states; `None`: in any.
    pub statuses: Option<Vec<JobStatus>>,
    /// At most.
    pub limit: i64,
}

impl Filter {
    /// Exactly these jobs.
    #[must_use]
    pub fn by_ids(ids: Vec<Uuid>) -> Self {
        Self {
            limit: i64::try_from(ids.len()).unwrap_or(i64::MAX),
            ids: Some(ids),
            ..Self::default()
        }
    }
}

/// Lists jobs, newest first.
#[tracing::instrument(name = "db.job_view.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<Vec<JobView>, DbError> {
    let statuses: Option<Vec<String>> =
        filter.statuses.as_ref().map(|all| all.iter().map(ToString::to_string).collect());
    let is_open_only =
        filter.statuses.as_ref().is_some_and(|all| !all.iter().any(|it| it.is_terminal()));
    let rows = sqlx::query_as!(
        Row,
        r#"
        with found as (
            -- One of three, each with an index of its own: by id, by organization, and what is open
            -- in an organization, where history is not looked at.
            select id, organization_id, status, created_at
            from provisioner_jobs where $1::uuid[] is not null and id = any($1)
            union all
            (
                select id, organization_id, status, created_at from provisioner_jobs
                where $1::uuid[] is null and not $5 and organization_id = $2
                  and ($3::text[] is null or status = any($3))
                order by organization_id, created_at desc
                limit $4
            )
            union all
            select id, organization_id, status, created_at from provisioner_jobs
            where $1::uuid[] is null and $5 and organization_id = $2
              and started_at is null and canceled_at is null and completed_at is null
            union all
            select id, organization_id, status, created_at from provisioner_jobs
            where $1::uuid[] is null and $5 and organization_id = $2
              and started_at is not null and completed_at is null
        ), listed as materialized (
            select id, status from found
            where ($2::uuid is null or organization_id = $2)
              and ($3::text[] is null or status = any($3))
            order by created_at desc, id desc
            limit $4
        )
        select j.id, j.organization_id, j.kind, j.status as "status!", j.file_id, j.input,
               j.tags as "tags: Json<Tags>",
               case when l.status = 'pending' then undrained(available_daemons(j)) end
                   as available_workers,
               j.created_at, j.started_at, j.completed_at, j.canceled_at, j.error, j.error_code,
               j.logs_overflowed, j.worker_id, coalesce(d.name, '') as "worker_name!",
               coalesce(q.place, 0) as "queue_position!", coalesce(q.size, 0) as "queue_size!",
               t.id as "template_id?", coalesce(t.name, '') as "template_name!",
               coalesce(t.display_name, '') as "template_display_name!",
               coalesce(t.icon, '') as "template_icon!",
               v.id as "version_id?", coalesce(v.name, '') as "version_name!",
               w.id as "workspace_id?", coalesce(w.name, '') as "workspace_name!"
        from listed l
        join provisioner_jobs j on j.id = l.id
        left join queue_places(
            (select array_agg(id) from listed where status = 'pending')
        ) q on q.id = j.id
        left join provisioner_daemons d on d.id = j.worker_id
        left join workspace_builds b on b.job_id = j.id
        left join workspaces w on w.id = b.workspace_id
        left join template_versions v on v.id =
            coalesce(b.template_version_id, (j.input ->> 'template_version_id')::uuid)
        left join templates t on t.id = v.template_id
        order by j.created_at desc, j.id desc"#,
        filter.ids.as_deref(),
        filter.organization.map(|it| it.0),
        statuses.as_deref(),
        filter.limit,
        is_open_only
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(JobView::try_from).collect()
}

struct Row {
    id: Uuid,
    organization_id: Uuid,
    kind: String,
    status: String,
    file_id: Uuid,
    tags: Json<Tags>,
    available_workers: Option<Vec<Uuid>>,
    input: Value,
    created_at: jiff_sqlx::Timestamp,
    started_at: Option<jiff_sqlx::Timestamp>,
    completed_at: Option<jiff_sqlx::Timestamp>,
    canceled_at: Option<jiff_sqlx::Timestamp>,
    error: String,
    error_code: Option<String>,
    logs_overflowed: bool,
    worker_id: Option<Uuid>,
    worker_name: String,
    queue_position: i64,
    queue_size: i64,
    template_id: Option<Uuid>,
    template_name: String,
    template_display_name: String,
    template_icon: String,
    version_id: Option<Uuid>,
    version_name: String,
    workspace_id: Option<Uuid>,
    workspace_name: String,
}

impl TryFrom<Row> for JobView {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: JobId(row.id),
            organization_id: OrganizationId(row.organization_id),
            kind: row.kind.parse()?,
            status: row.status.parse()?,
            file_id: FileId(row.file_id),
            tags: row.tags.0,
            available_workers: row
                .available_workers
                .unwrap_or_default()
                .into_iter()
                .map(DaemonId)
                .collect(),
            input: row.input,
            created_at: row.created_at.to_jiff(),
            started_at: maybe_time(row.started_at),
            completed_at: maybe_time(row.completed_at),
            canceled_at: maybe_time(row.canceled_at),
            error: row.error,
            error_code: row.error_code.map(|it| it.parse()).transpose()?,
            logs_overflowed: row.logs_overflowed,
            worker_id: row.worker_id.map(DaemonId),
            worker_name: row.worker_name,
            queue_position: row.queue_position,
            queue_size: row.queue_size,
            template_id: row.template_id.map(TemplateId),
            template_name: row.template_name,
            template_display_name: row.template_display_name,
            template_icon: row.template_icon,
            version_id: row.version_id.map(VersionId),
            version_name: row.version_name,
            workspace_id: row.workspace_id.map(WorkspaceId),
            workspace_name: row.workspace_name,
        })
    }
}
