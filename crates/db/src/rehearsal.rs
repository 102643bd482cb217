//! Rehearsals of claims: ordered once a pool, with what they found.

use std::collections::BTreeMap;

use berth_domain::id::{BuildId, JobId, OrganizationId, PresetId, VersionId};
use berth_domain::state::{JobClass, ProvisionerType, RehearsalOutcome};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

/// Times that a rehearsal is ordered before it is given up, when it is lost each time.
pub const ATTEMPTS_MAX: i32 = 3;

/// What claims replace: resource, and the attributes that force it.
pub type Replacements = BTreeMap<String, Vec<String>>;

/// A rehearsal to be ordered.
#[derive(Debug)]
pub struct NewRehearsal<'a> {
    /// The pool.
    pub preset_id: PresetId,
    /// Id of the job.
    pub job_id: JobId,
    /// Who is said to ask: the owner of prebuilds.
    pub initiator: Uuid,
    /// W3C trace context of whoever orders.
    pub trace: &'a Value,
    /// When.
    pub now: Timestamp,
}

/// A pool's rehearsal.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The pool.
    pub preset_id: PresetId,
    /// The preset's name.
    pub preset_name: String,
    /// Its version.
    pub version_id: VersionId,
    /// Its newest job.
    pub job_id: JobId,
    /// When that was ordered.
    pub ordered_at: Timestamp,
    /// When that ended; `None`: not yet.
    pub ended_at: Option<Timestamp>,
    /// What came of it; `None`: nothing yet.
    pub outcome: Option<RehearsalOutcome>,
    /// Why it failed or was lost; empty otherwise.
    pub error: String,
    /// What a claim would replace.
    pub replacements: Replacements,
}

/// Orders the rehearsal of a pool that has none, on one of its ready prebuilds, the oldest: job and
/// row, in one statement. A rehearsal that was lost is ordered again, [`ATTEMPTS_MAX`] times in all.
/// Gives whose daemons may run the job, and the tool it needs; `None`: there is nothing to order.
///
/// The caller holds the pool's lock, so nobody else orders at the same time.
#[tracing::instrument(name = "db.rehearsal.order", skip_all, fields(preset.id = %new.preset_id), err)]
pub async fn order(
    db: impl Executor<'_>,
    new: &NewRehearsal<'_>,
) -> Result<Option<(OrganizationId, ProvisionerType)>, DbError> {
    let row = sqlx::query!(
        "
        with prebuild as (
            select w.latest_build_id as build_id, p.template_version_id, v.organization_id,
                   v.provisioner, i.file_id, coalesce(p.job_tags, i.tags) as tags
            from prebuild_pools p
            join template_versions v on v.id = p.template_version_id
            join provisioner_jobs i on i.id = v.job_id
            join workspaces w on w.pool_preset_id = p.preset_id
            where p.preset_id = $1 and w.pool_state = 'ready' and not w.deleted
            order by w.created_at, w.id
            limit 1
        ), ordered as (
            insert into prebuild_rehearsals as r (preset_id, job_id, build_id, ordered_at)
            select $1, $2, build_id, $3 from prebuild
            on conflict on constraint prebuild_rehearsals_pkey do update
            set job_id = excluded.job_id, build_id = excluded.build_id,
                ordered_at = excluded.ordered_at, attempts = r.attempts + 1, ended_at = null,
                outcome = null, error = ''
            where r.outcome = 'lost' and r.attempts < $4
            returning build_id
        )
        insert into provisioner_jobs (
            id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
            trace_metadata, created_at, updated_at
        )
        select $2, b.organization_id, $5, 'prebuild_rehearsal', b.provisioner, $6, b.file_id,
               jsonb_build_object(
                   'template_version_id', b.template_version_id, 'preset_id', $1::uuid,
                   'rehearsed_build_id', b.build_id),
               b.tags, $7, $3, $3
        from prebuild b join ordered o on o.build_id = b.build_id
        returning organization_id, provisioner",
        new.preset_id.0,
        new.job_id.0,
        at(new.now),
        ATTEMPTS_MAX,
        new.initiator,
        JobClass::PrebuildDelete.rank(),
        new.trace
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| Ok((OrganizationId(row.organization_id), row.provisioner.parse()?))).transpose()
}

/// Whether the build that is rehearsed on is still the latest of its workspace, which is there.
#[tracing::instrument(name = "db.rehearsal.is_current", level = "debug", skip_all, fields(build.id = %build), err)]
pub async fn is_current(db: impl Executor<'_>, build: BuildId) -> Result<bool, DbError> {
    let is_current = sqlx::query_scalar!(
        r#"
        select exists (
            select from workspaces w join workspace_builds b on b.workspace_id = w.id
            where b.id = $1 and w.latest_build_id = b.id and not w.deleted
        ) as "is_current!""#,
        build.0
    )
    .fetch_one(db)
    .await?;
    Ok(is_current)
}

/// Stores what a rehearsal found. Gives its pool; `None`: the job is no pool's newest rehearsal.
#[tracing::instrument(name = "db.rehearsal.settle", skip_all, fields(job.id = %job), err)]
pub async fn settle(
    db: impl Executor<'_>,
    job: JobId,
    outcome: RehearsalOutcome,
    replacements: &Replacements,
    now: Timestamp,
) -> Result<Option<PresetId>, DbError> {
    let preset = sqlx::query_scalar!(
        "
        with settled as (
            update prebuild_rehearsals
            set outcome = $2, replacements = $3, ended_at = $4
            where job_id = $1 and outcome is null
            returning preset_id, outcome
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select preset_id, $4 from settled where outcome = 'lost'
        )
        select preset_id from settled",
        job.0,
        outcome.as_str(),
        serde_json::json!(replacements),
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(preset.map(PresetId))
}

/// Stores that rehearsals among the jobs ended without a result, and marks the pools of those that
/// are to be ordered again, which are the answer.
#[tracing::instrument(name = "db.rehearsal.mark_ended", skip_all, fields(jobs = jobs.len()), err)]
pub async fn mark_ended(
    db: impl Executor<'_>,
    jobs: &[JobId],
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    let presets = sqlx::query_scalar!(
        "
        with ended as (
            update prebuild_rehearsals r
            set ended_at = $2, error = j.error,
                outcome = case when j.status = 'failed' and j.error_code = 'template'
                               then 'failed' else 'lost' end
            from provisioner_jobs j
            where r.job_id = any($1) and j.id = r.job_id and r.outcome is null
              and j.status in ('failed', 'canceled')
            returning r.preset_id, r.outcome
        )
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $2 from ended where outcome = 'lost'
        returning preset_id",
        &jobs,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(presets.into_iter().map(PresetId).collect())
}

/// Notes that template admins are told of replacements. `false`: they know of all of them.
#[tracing::instrument(name = "db.rehearsal.mark_told", skip_all, fields(preset.id = %preset), err)]
pub async fn mark_told(
    db: impl Executor<'_>,
    preset: PresetId,
    replacements: &Replacements,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update prebuild_pools set replacements_told = replacements_told || $2
        where preset_id = $1 and not replacements_told @> $2",
        preset.0,
        serde_json::json!(replacements)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The rehearsals of the pools of versions, by version and preset name.
#[tracing::instrument(name = "db.rehearsal.list", skip_all, fields(versions = versions.len()), err)]
pub async fn list(
    db: impl Executor<'_>,
    versions: &[VersionId],
) -> Result<Vec<Rehearsal>, DbError> {
    let versions: Vec<Uuid> = versions.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        "
        select r.preset_id, s.name, s.template_version_id, r.job_id, r.ordered_at, r.ended_at,
               r.outcome, r.error, r.replacements
        from template_version_presets s
        join prebuild_rehearsals r on r.preset_id = s.id
        where s.template_version_id = any($1)
        order by s.template_version_id, s.name",
        &versions
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Rehearsal {
                preset_id: PresetId(row.preset_id),
                preset_name: row.name,
                version_id: VersionId(row.template_version_id),
                job_id: JobId(row.job_id),
                ordered_at: row.ordered_at.to_jiff(),
                ended_at: maybe_time(row.ended_at),
                outcome: row.outcome.map(|it| it.parse()).transpose()?,
                error: row.error,
                replacements: serde_json::from_value(row.replacements)
                    .map_err(|source| DbError::Json { what: "rehearsed replacements", source })?,
            })
        })
        .collect()
}
