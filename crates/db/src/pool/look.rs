//! Which pools need a look, and taking one for a look.

use berth_domain::id::PresetId;
use berth_domain::plan::PrebuildSettings;
use jiff::Timestamp;
use uuid::Uuid;

use super::observe::{Observed, observe};
use crate::{DbError, Executor, at, maybe_time};

/// Pools that were marked or whose time has come by `now`: the first `limit` after `after`, by key.
/// Reads the marks and the index on the due time, and nothing else.
#[tracing::instrument(name = "db.pool.list_due", level = "debug", skip_all, err)]
pub async fn list_due(
    db: impl Executor<'_>,
    after: Option<PresetId>,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query!(
        r#"
        with marked as materialized (
            select distinct preset_id from prebuild_pool_marks
            where preset_id > $1
            order by preset_id
            limit $3
        ), due as materialized (
            select preset_id from prebuild_pools where due_at <= $2
        )
        select preset_id as "preset_id!" from marked
        union
        select preset_id from due where preset_id > $1
        order by 1
        limit $3"#,
        after.map_or(Uuid::nil(), |it| it.0),
        at(now),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}

/// The earliest moment at which time alone makes a pool due.
#[tracing::instrument(name = "db.pool.next_due", level = "debug", skip_all, err)]
pub async fn next_due(db: impl Executor<'_>) -> Result<Option<Timestamp>, DbError> {
    let row =
        sqlx::query!("select min(due_at) as due_at from prebuild_pools").fetch_one(db).await?;
    Ok(maybe_time(row.due_at))
}

/// Whether a look waits for a pool that another replica is looking at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It does: what woke us may be news to that look.
    Wait,
    /// It does not: that look does our work.
    Skip,
}

/// What came of locking a pool.
#[derive(Debug, Clone)]
pub enum Locked {
    /// The pool is ours until the transaction ends.
    Ours(Box<Look>),
    /// Another replica is looking at it.
    Busy,
    /// Whoever does not wait found neither a mark nor a due time: another replica was here first.
    Quiet,
    /// There is no such pool (any more).
    Gone,
}

/// A look at a locked pool.
#[derive(Debug, Clone)]
pub struct Look {
    /// What is there.
    pub observed: Observed,
    /// Claims that the marks told of, to be added to the pool's total by [`super::record`].
    pub claims: i64,
    /// When the oldest of the marks was made; `None`: there was none.
    pub marked_at: Option<Timestamp>,
}

/// Locks a pool, takes its marks away, and reads it. The marks of a pool that is gone go as well.
///
/// Two statements, in this order: the first one's snapshot is older than the lock, so it takes only
/// marks of changes that the second one, whose snapshot is newer, is sure to see. A change that
/// commits while we wait for the lock keeps its mark and gets another look.
///
/// Where creations in flight are capped, the organization's pools come one after the other as well:
/// two that count at the same time would fill the last place twice.
#[tracing::instrument(name = "db.pool.lock", skip_all, fields(preset.id = %preset), err)]
pub async fn lock(
    db: &mut crate::Connection,
    preset: PresetId,
    patience: Patience,
    settings: &PrebuildSettings,
    now: Timestamp,
) -> Result<Locked, DbError> {
    let taken = sqlx::query!(
        r#"
        with waited as materialized (
            select organization_id, due_at from prebuild_pools where preset_id = $1 and $2
            for no key update
        ), tried as materialized (
            select organization_id, due_at from prebuild_pools where preset_id = $1 and not $2
            for no key update skip locked
        ), pool as materialized (
            select organization_id, due_at from waited
            union all
            select organization_id, due_at from tried
        ), turn as materialized (
            select pg_advisory_xact_lock(hashtextextended(organization_id::text, 61))
            from pool where $3
        ), known as materialized (
            select from prebuild_pools where preset_id = $1
        ), taken as (
            delete from prebuild_pool_marks
            where preset_id = $1
              and (exists (select from pool) or not exists (select from known))
            returning claims, created_at
        )
        select exists (select from pool) as "is_ours!", exists (select from known) as "is_known!",
               (select coalesce(sum(claims), 0) from taken) as "claims!",
               (select min(created_at) from taken) as marked_at,
               exists (select from pool where due_at <= $4) as "is_due!",
               (select count(*) from turn) as turns"#,
        preset.0,
        patience == Patience::Wait,
        settings.max_in_flight > 0,
        at(now)
    )
    .fetch_one(&mut *db)
    .await?;
    if !taken.is_ours {
        return Ok(if taken.is_known { Locked::Busy } else { Locked::Gone });
    }
    if patience == Patience::Skip && taken.marked_at.is_none() && !taken.is_due {
        return Ok(Locked::Quiet);
    }
    let observed = observe(db, preset, settings, now).await?;
    Ok(observed.map_or(Locked::Gone, |observed| {
        Locked::Ours(Box::new(Look {
            observed,
            claims: taken.claims,
            marked_at: maybe_time(taken.marked_at),
        }))
    }))
}
