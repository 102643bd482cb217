//! The decision log: what each pool's plans did, and why.

use berth_domain::id::PresetId;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor};

/// One entry.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Its id.
    pub id: Uuid,
    /// The pool.
    pub preset_id: PresetId,
    /// When.
    pub created_at: Timestamp,
    /// How many were wanted.
    pub desired: i32,
    /// What was there, counted (`domain::plan::Counts`).
    pub counts: Value,
    /// What was done (`domain::plan::Action`).
    pub actions: Value,
    /// Why (`domain::plan::Reason`).
    pub reasons: Value,
    /// The trace of the pass.
    pub trace_id: Option<String>,
}

/// The newest entries of each of these pools, at most `limit` per pool, the newest first.
#[tracing::instrument(name = "db.decision.list", skip_all, fields(pools = presets.len()), err)]
pub async fn list(
    db: impl Executor<'_>,
    presets: &[PresetId],
    limit: i64,
) -> Result<Vec<Decision>, DbError> {
    let presets: Vec<Uuid> = presets.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"
        select d.id, d.preset_id, d.created_at, d.desired,
               coalesce(d.state -> 'counts', '{}') as "counts!", d.actions, d.reasons, d.trace_id
        from unnest($1::uuid[]) as pool (id)
        cross join lateral (
            select * from prebuild_decisions
            where preset_id = pool.id
            order by created_at desc
            limit $2
        ) d
        order by d.created_at desc, d.id desc"#,
        &presets,
        limit
    )
    .fetch_all(db)
    .await?;
    let decisions = rows.into_iter().map(|row| Decision {
        id: row.id,
        preset_id: PresetId(row.preset_id),
        created_at: row.created_at.to_jiff(),
        desired: row.desired,
        counts: row.counts,
        actions: row.actions,
        reasons: row.reasons,
        trace_id: row.trace_id,
    });
    Ok(decisions.collect())
}
