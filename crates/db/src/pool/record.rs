//! What a pass leaves in the pool's row.

use berth_domain::id::PresetId;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_at};

/// A plan's outcome, as the pool's row and the decision log keep it.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// The decision's id.
    pub id: Uuid,
    /// The pool.
    pub preset_id: PresetId,
    /// How many are wanted.
    pub desired: u32,
    /// What the plan saw.
    pub state: &'a Value,
    /// What it does.
    pub actions: &'a Value,
    /// Why.
    pub reasons: &'a Value,
    /// Names of the reasons that hold creation back.
    pub holds: &'a [&'a str],
    /// The trace of the pass.
    pub trace_id: Option<&'a str>,
    /// When time alone could change the plan.
    pub due_at: Option<Timestamp>,
    /// Whether the log gets an entry.
    pub is_logged: bool,
    /// Claims since the last look.
    pub claims: i64,
    /// What the organization's pools share and this plan left some of: names of the reasons that
    /// hold others for want of it.
    pub spare: &'a [&'a str],
    /// For how many prebuilds it suffices.
    pub room: u32,
    /// When.
    pub now: Timestamp,
}

/// Keeps a plan's outcome: when to look again, what was decided and why, what the pool consists of
/// now. Marks the pools whose plans depend on that, and gives them:
///
/// - where members or the wanted number changed: the pool that takes this one's place, and the
///   previous one that this one takes the place of, while it still has members;
/// - where something is left that others of the organization wait for: as many of those as there
///   is room, those first that wait longest. A pool that is marked already is not marked again, so
///   passes that end at the same time choose different ones.
#[tracing::instrument(name = "db.pool.record", skip_all, fields(preset.id = %record.preset_id), err)]
pub async fn record(db: impl Executor<'_>, record: &Record<'_>) -> Result<Vec<PresetId>, DbError> {
    let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let rows = sqlx::query!(
        r#"
        with before as (
            select seen, desired, pool_digest(preset_id) as digest
            from prebuild_pools where preset_id = $1
        ), pool as (
            update prebuild_pools p
            set due_at = $2, last_reconciled_at = $3, last_reasons = $4, holds = $11,
                desired = $6, seen = b.digest, claimed_total = p.claimed_total + $12
            from before b
            where p.preset_id = $1
            returning p.organization_id, p.successor_preset_id,
                      b.seen <> b.digest or b.desired <> $6 as changed
        ), decision as (
            insert into prebuild_decisions (
                id, preset_id, created_at, desired, state, actions, reasons, trace_id
            )
            select $5, $1, $3, $6, $7, $8, $4, $9 where $10
        ), concerned as (
            select successor_preset_id as preset_id
            from pool where changed and successor_preset_id is not null
            union
            select q.preset_id
            from pool, prebuild_pools q join templates t on t.id = q.template_id
            where pool.changed and q.successor_preset_id = $1 and pool_standing(q, t) = 'previous'
              and exists (
                  select from workspaces w where w.pool_preset_id = q.preset_id and not w.deleted
              )
            union
            (select q.preset_id
             from pool, prebuild_pools q
             where q.organization_id = pool.organization_id and q.holds <> '{}' and q.holds && $13
               and q.preset_id <> $1
               and not exists (select from prebuild_pool_marks m where m.preset_id = q.preset_id)
             order by q.last_reconciled_at
             limit $14)
        )
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $3 from concerned
        returning preset_id"#,
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
        &names(record.holds),
        record.claims,
        &names(record.spare),
        i64::from(record.room)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
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
