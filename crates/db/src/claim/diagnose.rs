//! Why nothing could be claimed.

use berth_domain::id::PresetId;
use berth_domain::state::PrebuildStatus;
use jiff::Timestamp;
use serde_json::Value;

use crate::{DbError, Executor, at};

/// What a pool looked like when nothing could be claimed from it.
#[derive(Debug, Clone)]
pub struct PoolFacts {
    /// Members, in whatever state.
    pub members: i64,
    /// Running and ready, expired ones included.
    pub ready: i64,
    /// Of those: expired or invalidated.
    pub ready_expired: i64,
    /// Running, with agents that are not ready.
    pub unready: i64,
    /// Being built.
    pub starting: i64,
    /// Names of the agents waited for.
    pub waiting_for: Vec<String>,
    /// Health of the pool.
    pub status: PrebuildStatus,
    /// Whether creation is paused at any level.
    pub paused: bool,
    /// Whether the preset belongs to the template's active version.
    pub active: bool,
    /// Reasons of the newest decision about the pool, as stored.
    pub reasons: Value,
}

/// Reads why nothing could be claimed. `None`: the preset is no pool.
#[tracing::instrument(name = "db.claim.diagnose", skip_all, fields(preset.id = %preset), err)]
pub async fn diagnose(
    db: impl Executor<'_>,
    preset: PresetId,
    now: Timestamp,
) -> Result<Option<PoolFacts>, DbError> {
    let row = sqlx::query!(
        r#"
        select p.prebuild_status, m.members as "members!", m.ready as "ready!",
               m.ready_expired as "ready_expired!", m.unready as "unready!",
               m.starting as "starting!",
               coalesce((
                   select array_agg(distinct a.name)
                   from workspaces w join workspace_agents a on a.build_id = w.latest_build_id
                   where w.pool_preset_id = p.preset_id and w.pool_state = 'unready'
                     and not w.deleted and a.parent_id is null and not a.retired
                     and a.lifecycle_state <> 'ready'
               ), '{}') as "waiting_for!",
               exists (
                   select from prebuild_pauses z
                   where (z.expires_at is null or z.expires_at > $2)
                     and (z.scope = 'deployment'
                          or z.scope_id in (p.organization_id, p.template_id, p.preset_id))
               ) as "paused!",
               coalesce(t.active_version_id = p.template_version_id, false) as "active!",
               p.last_reasons as reasons
        from prebuild_pools p
        left join templates t on t.id = p.template_id
        cross join lateral (
            select count(*) as members,
                   count(*) filter (where w.pool_state = 'ready') as ready,
                   count(*) filter (
                       where w.pool_state = 'ready' and not prebuild_lives(w, p, $2)
                   ) as ready_expired,
                   count(*) filter (where w.pool_state = 'unready') as unready,
                   count(*) filter (where w.pool_state = 'starting') as starting
            from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
        ) m
        where p.preset_id = $1"#,
        preset.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(PoolFacts {
            members: row.members,
            ready: row.ready,
            ready_expired: row.ready_expired,
            unready: row.unready,
            starting: row.starting,
            waiting_for: row.waiting_for,
            status: row.prebuild_status.parse()?,
            paused: row.paused,
            active: row.active,
            reasons: row.reasons,
        })
    })
    .transpose()
}
