//! Pools: one row per preset with prebuild configuration.

use berth_domain::id::{PresetId, TemplateId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Marks pools to be looked at, in the transaction of the change that their plans read.
#[tracing::instrument(name = "db.pool.mark_dirty", skip_all, fields(pools = presets.len()), err)]
pub async fn mark_dirty(
    db: impl Executor<'_>,
    presets: &[PresetId],
    now: Timestamp,
) -> Result<(), DbError> {
    let presets: Vec<_> = presets.iter().map(|it| it.0).collect();
    sqlx::query!(
        "update prebuild_pools set dirty_at = $2 where preset_id = any($1)",
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
        "update prebuild_pools set dirty_at = $2 where template_id = $1 returning preset_id",
        template.0,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}
