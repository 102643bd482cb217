//! Pools: one row per preset with prebuild configuration, and the marks that say which to look at.

mod act;
mod audit;
mod look;
mod observe;
mod read;
mod record;

pub use act::{
    BuildIds, Doomed, NewPrebuilds, Pending, Queued, cancel_pending, insert_prebuilds,
    queue_deletes,
};
pub use audit::{Drift, Slice, audit};
pub use look::{Locked, Look, Patience, list_due, lock, next_due};
pub use observe::{LockedPool, Observed, observe};
pub use read::{PoolRow, list_creation_parameters, list_rows};
pub use record::{Record, close_breaker, mark_invalid, note_probe, open_breaker, record};

use berth_domain::id::{PresetId, TemplateId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Marks pools to be looked at, in the transaction of the change that their plans read. An insert:
/// it waits for nobody, so claims of one preset do not queue behind each other.
#[tracing::instrument(name = "db.pool.mark_dirty", skip_all, fields(pools = presets.len()), err)]
pub async fn mark_dirty(
    db: impl Executor<'_>,
    presets: &[PresetId],
    now: Timestamp,
) -> Result<(), DbError> {
    let presets: Vec<_> = presets.iter().map(|it| it.0).collect();
    sqlx::query!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $2 from unnest($1::uuid[]) as preset_id",
        &presets,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Marks every pool of a template, old versions' included, and tells which they are.
#[tracing::instrument(name = "db.pool.mark_template_dirty", skip_all, fields(template.id = %template), err)]
pub async fn mark_template_dirty(
    db: impl Executor<'_>,
    template: TemplateId,
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $2 from prebuild_pools where template_id = $1
        returning preset_id",
        template.0,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}

/// Marks every pool of a deployment, for changes that hold for all of them (the end of a pause).
#[tracing::instrument(name = "db.pool.mark_all_dirty", skip_all, err)]
pub async fn mark_all_dirty(
    db: impl Executor<'_>,
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $1 from prebuild_pools
        returning preset_id",
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}

/// Marks every pool of an organization (a provisioner daemon appeared there).
#[tracing::instrument(name = "db.pool.mark_organization_dirty", skip_all, err)]
pub async fn mark_organization_dirty(
    db: impl Executor<'_>,
    organization: berth_domain::id::OrganizationId,
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $2 from prebuild_pools where organization_id = $1
        returning preset_id",
        organization.0,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}
