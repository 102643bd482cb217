//! What is deleted with age, and agents that went silent. One statement each, bounded.

use berth_domain::id::{AgentId, OrganizationId, PresetId, UserId, WorkspaceId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Deletes up to `limit` entries of the decision log from before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.decisions", skip_all, err)]
pub async fn decisions(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from prebuild_decisions where id = any(array(
            select id from prebuild_decisions where created_at < $1
            order by created_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` failed creations from before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.prebuild_failures", skip_all, err)]
pub async fn prebuild_failures(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from prebuild_failures where build_id = any(array(
            select build_id from prebuild_failures where failed_at < $1
            order by failed_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` marks from before `before` whose pool is gone. Answers with how many.
#[tracing::instrument(name = "db.purge.pool_marks", skip_all, err)]
pub async fn pool_marks(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from prebuild_pool_marks where id = any(array(
            select m.id from prebuild_pool_marks m
            where m.created_at < $1
              and not exists (select from prebuild_pools p where p.preset_id = m.preset_id)
            limit $2 for update of m skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` pauses that ended before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.pauses", skip_all, err)]
pub async fn pauses(db: impl Executor<'_>, before: Timestamp, limit: i64) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from prebuild_pauses where id = any(array(
            select id from prebuild_pauses where expires_at < $1
            limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` idempotency keys from before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.idempotency_keys", skip_all, err)]
pub async fn idempotency_keys(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from idempotency_keys where ctid = any(array(
            select ctid from idempotency_keys where created_at < $1
            order by created_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` API keys that expired before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.api_keys", skip_all, err)]
pub async fn api_keys(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from api_keys where id = any(array(
            select id from api_keys where expires_at < $1
            order by expires_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` notification messages from before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.notification_messages", skip_all, err)]
pub async fn notification_messages(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from notification_messages where id = any(array(
            select id from notification_messages where created_at < $1
            order by created_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` inbox notifications from before `before`. Answers with how many.
#[tracing::instrument(name = "db.purge.inbox_notifications", skip_all, err)]
pub async fn inbox_notifications(
    db: impl Executor<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        delete from inbox_notifications where id = any(array(
            select id from inbox_notifications where created_at < $1
            order by created_at limit $2 for update skip locked
        ))",
        at(before),
        limit
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// A workspace with agents that went silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its owner.
    pub owner_id: UserId,
    /// Its revision from now on.
    pub revision: i64,
    /// The silent agents.
    pub agents: Vec<AgentId>,
    /// Its pool, when it is a prebuild.
    pub preset_id: Option<PresetId>,
}

/// Marks agents as disconnected that were last heard of before `before`, in up to `limit`
/// workspaces, and takes prebuilds among those out of the claimable ones, their pools marked to be
/// looked at. Workspaces that somebody holds (a claim, a report) are left to the next call.
#[tracing::instrument(name = "db.purge.mark_agents_lost", level = "debug", skip_all, err)]
pub async fn mark_agents_lost(
    db: impl Executor<'_>,
    before: Timestamp,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Lost>, DbError> {
    let rows = sqlx::query!(
        r#"
        with held as (
            select w.id
            from workspaces w
            where not w.deleted and exists (
                select from workspace_agents a
                where a.workspace_id = w.id and not a.retired and a.first_connected_at is not null
                  and a.disconnected_at is null and a.last_connected_at < $1
            )
            limit $3
            for no key update skip locked
        ), agent as (
            update workspace_agents a
            set disconnected_at = $2, updated_at = $2
            from held
            where a.workspace_id = held.id and not a.retired and a.first_connected_at is not null
              and a.disconnected_at is null and a.last_connected_at < $1
            returning a.id, a.workspace_id
        ), silent as (
            select workspace_id, array_agg(id) as agents from agent group by workspace_id
        ), workspace as (
            update workspaces w
            set revision = w.revision + 1, updated_at = $2,
                pool_state = case when w.pool_state = 'ready' then 'unready' else w.pool_state end,
                pool_ready_at = case when w.pool_state = 'ready' then null else w.pool_ready_at end
            from silent s
            where w.id = s.workspace_id
            returning w.id, w.organization_id, w.owner_id, w.revision, w.pool_preset_id, s.agents
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select distinct pool_preset_id, $2::timestamptz from workspace
            where pool_preset_id is not null
        )
        select id, organization_id, owner_id, revision, pool_preset_id, agents as "agents!"
        from workspace"#,
        at(before),
        at(now),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Lost {
            workspace_id: WorkspaceId(row.id),
            organization_id: OrganizationId(row.organization_id),
            owner_id: UserId(row.owner_id),
            revision: row.revision,
            agents: row.agents.into_iter().map(AgentId).collect(),
            preset_id: row.pool_preset_id.map(PresetId),
        })
        .collect())
}
