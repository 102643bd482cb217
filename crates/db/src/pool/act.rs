//! What a plan does to a pool. Every write states what it assumes.

use berth_domain::id::{
    BuildId, JobId, OrganizationId, PREBUILDS_USER, PresetId, TemplateId, WorkspaceId,
};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_at};

/// A prebuild to be inserted; its first build follows in the same transaction.
#[derive(Debug, Clone)]
pub struct NewPrebuild {
    /// The workspace's id.
    pub id: WorkspaceId,
    /// Its name: `prebuild-…`.
    pub name: String,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its template.
    pub template_id: TemplateId,
    /// Its preset.
    pub preset_id: PresetId,
    /// When it expires; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// When.
    pub now: Timestamp,
}

/// A plan's outcome, as the pool's row and the decision log keep it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The decision's id.
    pub id: Uuid,
    /// The pool.
    pub preset_id: PresetId,
    /// How many are wanted.
    pub desired: u32,
    /// What the plan saw.
    pub state: Value,
    /// What it does.
    pub actions: Value,
    /// Why.
    pub reasons: Value,
    /// The trace of the pass.
    pub trace_id: Option<String>,
    /// When time alone could change the plan.
    pub due_at: Option<Timestamp>,
    /// Whether the log gets an entry.
    pub is_logged: bool,
    /// Claims since the last look.
    pub claims: i64,
    /// When.
    pub now: Timestamp,
}

/// Inserts a prebuild.
#[tracing::instrument(name = "db.pool.insert_prebuild", skip_all, fields(workspace.id = %new.id), err)]
pub async fn insert_prebuild(db: impl Executor<'_>, new: &NewPrebuild) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into workspaces (
            id, owner_id, organization_id, template_id, name, created_at, updated_at, last_used_at,
            automatic_updates, pool_preset_id, pool_state, pool_expires_at
        )
        -- Decided after an invalidation, it is valid, whatever the clock of whoever invalidated.
        select $1, $2, $3, $4, $5, greatest($6, p.last_invalidated_at), $6, $6, 'never', $7,
               'starting', $8
        from prebuild_pools p where p.preset_id = $7",
        new.id.0,
        PREBUILDS_USER.0,
        new.organization_id.0,
        new.template_id.0,
        new.name,
        at(new.now),
        new.preset_id.0,
        maybe_at(new.expires_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Locks a workspace that is to be deleted. `false`: it is no longer this pool's (claimed, gone),
/// has another build by now, or somebody is claiming it at this moment. A claimed workspace is
/// never deleted.
#[tracing::instrument(name = "db.pool.is_still_member", skip_all, fields(workspace.id = %workspace), err)]
pub async fn is_still_member(
    db: impl Executor<'_>,
    preset: PresetId,
    workspace: WorkspaceId,
    build: BuildId,
) -> Result<bool, DbError> {
    let row = sqlx::query!(
        r#"
        select 1 as "one!" from workspaces
        where id = $1 and owner_id = $2 and pool_preset_id = $3 and latest_build_id = $4
          and not deleted
        for update skip locked"#,
        workspace.0,
        PREBUILDS_USER.0,
        preset.0,
        build.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// Cancels the job of a build that no daemon holds. `false`: a daemon took it, or it has ended.
#[tracing::instrument(name = "db.pool.cancel_pending", skip_all, fields(build.id = %build), err)]
pub async fn cancel_pending(
    db: impl Executor<'_>,
    build: BuildId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update provisioner_jobs j
        set canceled_at = $2, completed_at = $2, updated_at = $2, error_code = 'canceled',
            error = 'cancelled: its preset is not active any more'
        from workspace_builds b
        where b.id = $1 and j.id = b.job_id
          and j.started_at is null and j.canceled_at is null and j.completed_at is null",
        build.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Completes a delete build at once and marks the workspace deleted: no resource can exist, so no
/// provisioner is needed.
#[tracing::instrument(name = "db.pool.finish_orphan_delete", skip_all, fields(workspace.id = %workspace), err)]
pub async fn finish_orphan_delete(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    job: JobId,
    now: Timestamp,
) -> Result<i64, DbError> {
    let row = sqlx::query!(
        "
        with job as (
            update provisioner_jobs
            set started_at = $3, completed_at = $3, updated_at = $3
            where id = $2 and started_at is null
            returning id
        )
        update workspaces
        set deleted = true, updated_at = $3, revision = revision + 1
        from job
        where workspaces.id = $1
        returning revision",
        workspace.0,
        job.0,
        at(now)
    )
    .fetch_one(db)
    .await?;
    Ok(row.revision)
}

/// Records the breaker as open.
#[tracing::instrument(name = "db.pool.open_breaker", skip_all, fields(preset.id = %preset), err)]
pub async fn open_breaker(
    db: impl Executor<'_>,
    preset: PresetId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update prebuild_pools
        set prebuild_status = 'hard_limited', breaker_opened_at = $2, probe_attempts = 0,
            last_probe_at = null
        where preset_id = $1",
        preset.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Records the breaker as closed.
#[tracing::instrument(name = "db.pool.close_breaker", skip_all, fields(preset.id = %preset), err)]
pub async fn close_breaker(db: impl Executor<'_>, preset: PresetId) -> Result<(), DbError> {
    sqlx::query!(
        "
        update prebuild_pools
        set prebuild_status = 'healthy', breaker_opened_at = null, probe_attempts = 0,
            last_probe_at = null, consecutive_failures = 0
        where preset_id = $1",
        preset.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Records that the preset's input was refused for good: nothing is created until a new version.
#[tracing::instrument(name = "db.pool.mark_invalid", skip_all, fields(preset.id = %preset), err)]
pub async fn mark_invalid(db: impl Executor<'_>, preset: PresetId) -> Result<(), DbError> {
    sqlx::query!(
        "update prebuild_pools set prebuild_status = 'validation_failed' where preset_id = $1",
        preset.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Counts a probe of the open breaker.
#[tracing::instrument(name = "db.pool.note_probe", skip_all, fields(preset.id = %preset), err)]
pub async fn note_probe(
    db: impl Executor<'_>,
    preset: PresetId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update prebuild_pools set probe_attempts = probe_attempts + 1, last_probe_at = $2
        where preset_id = $1",
        preset.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps a plan's outcome: when to look again, and what was decided and why.
#[tracing::instrument(name = "db.pool.record", skip_all, fields(preset.id = %record.preset_id), err)]
pub async fn record(db: impl Executor<'_>, record: &Record) -> Result<(), DbError> {
    sqlx::query!(
        "
        with pool as (
            update prebuild_pools
            set due_at = $2, last_reconciled_at = $3, last_reasons = $4,
                claimed_total = claimed_total + $11
            where preset_id = $1
        )
        insert into prebuild_decisions (
            id, preset_id, created_at, desired, state, actions, reasons, trace_id
        )
        select $5, $1, $3, $6, $7, $8, $4, $9 where $10",
        record.preset_id.0,
        maybe_at(record.due_at),
        at(record.now),
        record.reasons,
        record.id,
        i32::try_from(record.desired).unwrap_or(i32::MAX),
        record.state,
        record.actions,
        record.trace_id,
        record.is_logged,
        record.claims
    )
    .execute(db)
    .await?;
    Ok(())
}
