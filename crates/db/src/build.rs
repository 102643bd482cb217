//! Workspace builds: the one statement that queues one, and what readers ask.

use berth_domain::build::Tags;
use berth_domain::id::{
    BuildId, FileId, JobId, OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::state::{
    BuildReason, BuildStage, JobClass, PoolState, ProvisionerType, Transition,
};
use jiff::Timestamp;
use serde_json::Value;

use crate::{DbError, Executor, at};
use sqlx::types::Json;

pub mod read;

/// A build to be queued.
#[derive(Debug, Clone)]
pub struct NewBuild {
    /// The build's id.
    pub id: BuildId,
    /// Its job's id.
    pub job_id: JobId,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The version to build.
    pub version_id: VersionId,
    /// The preset that the parameters came from, if any.
    pub preset_id: Option<PresetId>,
    /// What it does.
    pub transition: Transition,
    /// Who asked.
    pub initiator_id: UserId,
    /// Why.
    pub reason: BuildReason,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// How urgent it is.
    pub class: JobClass,
    /// State of the pool member from now on; `None` for workspaces of people.
    pub pool_state: Option<PoolState>,
    /// Resolved parameters: name, value.
    pub parameters: Vec<(String, String)>,
    /// W3C trace context of whoever asks.
    pub trace: Value,
    /// When.
    pub now: Timestamp,
}

/// A queued build.
#[derive(Debug, Clone)]
pub struct QueuedBuild {
    /// Its number, from 1.
    pub number: i32,
    /// The workspace's revision from now on.
    pub revision: i64,
    /// The workspace's name.
    pub workspace_name: String,
    /// Its owner.
    pub owner_id: UserId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its template.
    pub template_id: TemplateId,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// The archive that its job runs.
    pub file_id: FileId,
    /// Whose daemons may run it.
    pub tags: Tags,
}

/// Queues a build: numbers it, inserts build, parameters and job, and points the workspace at it,
/// in one statement. `None`: the workspace is deleted, or its latest build is not finished; nothing
/// was written.
#[tracing::instrument(name = "db.build.queue", skip_all, fields(workspace.id = %new.workspace_id, build.id = %new.id), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its arguments")]
pub async fn queue(db: impl Executor<'_>, new: &NewBuild) -> Result<Option<QueuedBuild>, DbError> {
    let (names, values): (Vec<String>, Vec<String>) = new.parameters.iter().cloned().unzip();
    let now = at(new.now);
    let row = sqlx::query!(
        r#"
        with workspace as (
            update workspaces w
            set latest_build_id = $1, latest_build_number = w.latest_build_number + 1,
                revision = w.revision + 1, updated_at = $4, pool_state = $5,
                pool_ready_at = case when $5::text is null then null else w.pool_ready_at end
            where w.id = $2 and not w.deleted
              and not exists (
                  select from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                  where b.id = w.latest_build_id and j.completed_at is null
              )
            returning w.id, w.name, w.owner_id, w.organization_id, w.template_id, w.revision,
                      w.latest_build_number
        ), version as (
            select v.id, v.provisioner, j.file_id, build_tags(j.tags, v.tag_rules, $14, $15) as tags,
                   case when v.tag_rules is null then j.tag_set_id end as tag_set_id
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            where v.id = $6
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                tag_set_id, trace_metadata, created_at, updated_at
            )
            select $3, w.organization_id, $7, 'workspace_build', v.provisioner, $8, v.file_id,
                   jsonb_build_object('workspace_build_id', $1::uuid), v.tags, v.tag_set_id, $9, $4, $4
            from workspace w, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, reason, stage, job_id, created_at, updated_at
            )
            select $1, w.id, v.id, $10, w.latest_build_number, $11, $7, $12, $13, $3, $4, $4
            from workspace w, version v
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select $1, p.name, p.value
            from workspace, unnest($14::text[], $15::text[]) as p (name, value)
        )
        select w.name, w.owner_id, w.organization_id, w.template_id, w.revision,
               w.latest_build_number, v.provisioner, v.file_id, v.tags as "tags!: Json<Tags>"
        from workspace w, version v"#,
        new.id.0,
        new.workspace_id.0,
        new.job_id.0,
        now,
        new.pool_state.map(PoolState::as_str),
        new.version_id.0,
        new.initiator_id.0,
        new.class.rank(),
        new.trace,
        new.preset_id.map(|it| it.0),
        new.transition.as_str(),
        new.reason.as_str(),
        new.stage.as_str(),
        &names,
        &values
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(QueuedBuild {
            number: row.latest_build_number,
            revision: row.revision,
            workspace_name: row.name,
            owner_id: UserId(row.owner_id),
            organization_id: OrganizationId(row.organization_id),
            template_id: TemplateId(row.template_id),
            provisioner: row.provisioner.parse()?,
            file_id: FileId(row.file_id),
            tags: row.tags.0,
        })
    })
    .transpose()
}

/// Parameters of a build: name, value.
#[tracing::instrument(name = "db.build.list_parameters", skip_all, fields(build.id = %id), err)]
pub async fn list_parameters(
    db: impl Executor<'_>,
    id: BuildId,
) -> Result<Vec<(String, String)>, DbError> {
    let rows = sqlx::query!(
        "select name, value from workspace_build_parameters where build_id = $1 order by name",
        id.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
}
