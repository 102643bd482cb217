//! What a plan does to a pool. Every write states what it assumes, and one statement does what a
//! plan asks for, however many prebuilds that is.

use berth_domain::id::{
    BuildId, JobId, OrganizationId, PREBUILDS_USER, PresetId, TemplateId, VersionId, WorkspaceId,
};
use berth_domain::state::JobClass;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// Ids of a prebuild's build.
#[derive(Debug, Clone, Copy)]
pub struct BuildIds {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The build to be queued.
    pub build: BuildId,
    /// Its job.
    pub job: JobId,
}

/// Prebuilds to be created.
#[derive(Debug, Clone)]
pub struct NewPrebuilds<'a> {
    /// Their pool.
    pub preset_id: PresetId,
    /// Their template.
    pub template_id: TemplateId,
    /// Their organization.
    pub organization_id: OrganizationId,
    /// The version that is built.
    pub version_id: VersionId,
    /// One per prebuild.
    pub ids: &'a [BuildIds],
    /// Their names, `prebuild-…`, as many as ids.
    pub names: &'a [String],
    /// Seconds that each lives; 0: it does not expire.
    pub ttl_seconds: i64,
    /// Resolved parameters of all of them: name, value.
    pub parameters: &'a [(String, String)],
    /// W3C trace context of the pass.
    pub trace: &'a Value,
    /// When.
    pub now: Timestamp,
}

/// Prebuilds to be deleted.
#[derive(Debug, Clone)]
pub struct Doomed<'a> {
    /// Their pool.
    pub preset_id: PresetId,
    /// The version that is built.
    pub version_id: VersionId,
    /// One per prebuild.
    pub ids: &'a [BuildIds],
    /// The builds that must still be their latest ones, as many as ids.
    pub latest: &'a [BuildId],
    /// W3C trace context of the pass.
    pub trace: &'a Value,
    /// When.
    pub now: Timestamp,
}

/// A prebuild's build that was queued.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// Its template.
    pub template_id: TemplateId,
    /// The build.
    pub build_id: BuildId,
    /// Its number, from 1.
    pub number: i32,
    /// The workspace's revision from now on.
    pub revision: i64,
}

/// A pending prebuild to be cancelled.
#[derive(Debug, Clone)]
pub struct Pending<'a> {
    /// Its pool.
    pub preset_id: PresetId,
    /// Its version.
    pub version_id: VersionId,
    /// The workspace, and ids for its delete build.
    pub ids: BuildIds,
    /// Its first build, which must still be its latest.
    pub first: BuildId,
    /// W3C trace context of the pass.
    pub trace: &'a Value,
    /// When.
    pub now: Timestamp,
}

/// Creates prebuilds: workspace, first build with its parameters, and job of each, in one statement.
/// Gives those that were created. One whose name is taken is left out; the next pass makes up for it.
///
/// None is created before the pool's last invalidation, whatever the clocks of those who invalidate
/// say: a prebuild that was decided after an invalidation is valid.
#[tracing::instrument(name = "db.pool.insert_prebuilds", skip_all, fields(preset.id = %new.preset_id, prebuilds = new.ids.len()), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its arguments")]
pub async fn insert_prebuilds(
    db: impl Executor<'_>,
    new: &NewPrebuilds<'_>,
) -> Result<Vec<Queued>, DbError> {
    let [workspaces, builds, jobs] = columns(new.ids);
    let (names, values): (Vec<String>, Vec<String>) = new.parameters.iter().cloned().unzip();
    let rows = sqlx::query!(
        r#"
        with new as (
            select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[])
                as n (id, build_id, job_id, name)
        ), pool as (
            select greatest($5, last_invalidated_at) as moment
            from prebuild_pools where preset_id = $6
        ), workspace as (
            insert into workspaces (
                id, owner_id, organization_id, template_id, name, created_at, updated_at,
                last_used_at, automatic_updates, pool_preset_id, pool_state, pool_expires_at,
                latest_build_id, latest_build_number
            )
            select n.id, $7, $8, $9, n.name, p.moment, $5, $5, 'never', $6, 'starting',
                   case when $10::bigint > 0 then p.moment + $10::bigint * interval '1 second' end,
                   n.build_id, 1
            from new n, pool p
            on conflict do nothing
            returning id, name, template_id, revision
        ), version as (
            select v.id, v.provisioner, j.file_id, build_tags(j.tags, v.tag_rules, $14, $15) as tags,
                   case when v.tag_rules is null then j.tag_set_id end as tag_set_id
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            where v.id = $11
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                tag_set_id, trace_metadata, created_at, updated_at
            )
            select n.job_id, $8, $7, 'workspace_build', v.provisioner, $12, v.file_id,
                   jsonb_build_object('workspace_build_id', n.build_id), v.tags, v.tag_set_id, $13, $5, $5
            from workspace w join new n on n.id = w.id, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, stage, job_id, created_at, updated_at
            )
            select n.build_id, n.id, $11, $6, 1, 'start', $7, 'prebuild', n.job_id, $5, $5
            from workspace w join new n on n.id = w.id
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select n.build_id, p.name, p.value
            from workspace w join new n on n.id = w.id,
                 unnest($14::text[], $15::text[]) as p (name, value)
        )
        select w.id, w.name, w.template_id, w.revision, n.build_id as "build_id!"
        from workspace w join new n on n.id = w.id"#,
        &workspaces,
        &builds,
        &jobs,
        new.names,
        at(new.now),
        new.preset_id.0,
        PREBUILDS_USER.0,
        new.organization_id.0,
        new.template_id.0,
        new.ttl_seconds,
        new.version_id.0,
        JobClass::PrebuildCreate.rank(),
        new.trace,
        &names,
        &values
    )
    .fetch_all(db)
    .await?;
    let queued = rows.into_iter().map(|row| Queued {
        workspace_id: WorkspaceId(row.id),
        name: row.name,
        template_id: TemplateId(row.template_id),
        build_id: BuildId(row.build_id),
        number: 1,
        revision: row.revision,
    });
    Ok(queued.collect())
}

/// Queues the deletes of prebuilds, in one statement, and gives those that were queued. One that is
/// no longer this pool's (claimed, gone), has another build by now, or is being claimed at this
/// moment is left alone: the row's lock decides. A claimed workspace is never deleted.
#[tracing::instrument(name = "db.pool.queue_deletes", skip_all, fields(preset.id = %doomed.preset_id, prebuilds = doomed.ids.len()), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its arguments")]
pub async fn queue_deletes(
    db: impl Executor<'_>,
    doomed: &Doomed<'_>,
) -> Result<Vec<Queued>, DbError> {
    let [workspaces, builds, jobs] = columns(doomed.ids);
    let latest: Vec<Uuid> = doomed.latest.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"
        with doomed as (
            select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[])
                as d (id, build_id, job_id, latest_id)
        ), member as (
            select w.id, d.build_id, d.job_id, d.latest_id
            from doomed d join workspaces w on w.id = d.id
            where w.owner_id = $5 and w.pool_preset_id = $6 and w.latest_build_id = d.latest_id
              and not w.deleted
              and not exists (
                  select from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                  where b.id = d.latest_id and j.completed_at is null
              )
            for update of w skip locked
        ), workspace as (
            update workspaces w
            set latest_build_id = m.build_id, latest_build_number = w.latest_build_number + 1,
                revision = w.revision + 1, updated_at = $7, pool_state = 'deleting'
            from member m
            where w.id = m.id and w.owner_id = $5 and w.latest_build_id = m.latest_id
            returning w.id, w.name, w.template_id, w.organization_id, w.revision, w.latest_build_number,
                      m.build_id, m.job_id, m.latest_id
        ), version as (
            select v.id, v.provisioner, j.file_id, coalesce(p.job_tags, j.tags) as tags,
                   case when p.job_tags is null then j.tag_set_id end as tag_set_id
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            left join prebuild_pools p on p.preset_id = $6
            where v.id = $8
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                tag_set_id, trace_metadata, created_at, updated_at
            )
            select w.job_id, w.organization_id, $5, 'workspace_build', v.provisioner, $9, v.file_id,
                   jsonb_build_object('workspace_build_id', w.build_id), v.tags, v.tag_set_id, $10, $7, $7
            from workspace w, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, stage, job_id, created_at, updated_at
            )
            select w.build_id, w.id, $8, $6, w.latest_build_number, 'delete', $5, 'prebuild',
                   w.job_id, $7, $7
            from workspace w
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select w.build_id, p.name, p.value
            from workspace w join workspace_build_parameters p on p.build_id = w.latest_id
        )
        select id, name, template_id, revision, latest_build_number, build_id as "build_id!"
        from workspace"#,
        &workspaces,
        &builds,
        &jobs,
        &latest,
        PREBUILDS_USER.0,
        doomed.preset_id.0,
        at(doomed.now),
        doomed.version_id.0,
        JobClass::PrebuildDelete.rank(),
        doomed.trace
    )
    .fetch_all(db)
    .await?;
    let queued = rows.into_iter().map(|row| Queued {
        workspace_id: WorkspaceId(row.id),
        name: row.name,
        template_id: TemplateId(row.template_id),
        build_id: BuildId(row.build_id),
        number: row.latest_build_number,
        revision: row.revision,
    });
    Ok(queued.collect())
}

/// Cancels a first build that no daemon holds, and deletes its workspace at once, in one statement:
/// no resource can exist, so the delete build is recorded as done and no provisioner is needed. Marks
/// the pool. `None`: a daemon took the job, a person cancelled it, or the workspace is no longer what
/// the plan saw; nothing was written.
#[tracing::instrument(name = "db.pool.cancel_pending", skip_all, fields(workspace.id = %pending.ids.workspace), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its arguments")]
pub async fn cancel_pending(
    db: impl Executor<'_>,
    pending: &Pending<'_>,
) -> Result<Option<Queued>, DbError> {
    let row = sqlx::query!(
        r#"
        with member as (
            select id from workspaces
            where id = $1 and owner_id = $2 and pool_preset_id = $3 and latest_build_id = $4
              and latest_build_number = 1 and not deleted
            for update skip locked
        ), canceled as (
            update provisioner_jobs j
            set canceled_at = $5, completed_at = $5, updated_at = $5, error_code = 'canceled',
                error = 'cancelled: its preset is not active any more'
            from member m join workspace_builds b on b.workspace_id = m.id
            where b.id = $4 and j.id = b.job_id and j.started_at is null and j.canceled_at is null
              and j.completed_at is null and not j.apply_started
            returning m.id
        ), workspace as (
            update workspaces w
            set latest_build_id = $6, latest_build_number = 2, revision = w.revision + 1,
                updated_at = $5, pool_state = 'deleting', deleted = true
            from canceled c
            where w.id = c.id and w.latest_build_id = $4
            returning w.id, w.name, w.template_id, w.organization_id, w.revision
        ), version as (
            select v.id, v.provisioner, j.file_id, coalesce(p.job_tags, j.tags) as tags,
                   case when p.job_tags is null then j.tag_set_id end as tag_set_id
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            left join prebuild_pools p on p.preset_id = $3
            where v.id = $7
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                tag_set_id, trace_metadata, created_at, updated_at, started_at, completed_at
            )
            select $8, w.organization_id, $2, 'workspace_build', v.provisioner, $9, v.file_id,
                   jsonb_build_object('workspace_build_id', $6::uuid), v.tags, v.tag_set_id, $10, $5, $5, $5, $5
            from workspace w, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, stage, job_id, created_at, updated_at
            )
            select $6, w.id, $7, $3, 2, 'delete', $2, 'prebuild', $8, $5, $5
            from workspace w
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select $6, p.name, p.value
            from workspace, workspace_build_parameters p
            where p.build_id = $4
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select $3, $5 from workspace
        )
        select id, name, template_id, revision from workspace"#,
        pending.ids.workspace.0,
        PREBUILDS_USER.0,
        pending.preset_id.0,
        pending.first.0,
        at(pending.now),
        pending.ids.build.0,
        pending.version_id.0,
        pending.ids.job.0,
        JobClass::PrebuildDelete.rank(),
        pending.trace
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Queued {
        workspace_id: WorkspaceId(row.id),
        name: row.name,
        template_id: TemplateId(row.template_id),
        build_id: pending.ids.build,
        number: 2,
        revision: row.revision,
    }))
}

fn columns(ids: &[BuildIds]) -> [Vec<Uuid>; 3] {
    [
        ids.iter().map(|it| it.workspace.0).collect(),
        ids.iter().map(|it| it.build.0).collect(),
        ids.iter().map(|it| it.job.0).collect(),
    ]
}
