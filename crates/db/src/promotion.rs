//! Promotions: which version of a template is the active one, and the warm promotion that builds a
//! candidate's pools before it becomes that. Whoever changes either holds the template's row.

use berth_domain::id::{OrganizationId, PresetId, PromotionId, TemplateId, UserId, VersionId};
use berth_domain::plan::PoolPolicy;
use berth_domain::preset::Prebuilds;
use berth_domain::state::{JobStatus, PrebuildStatus, PromotionOutcome};
use jiff::Timestamp;

use crate::claim::json;
use crate::{DbError, Executor, at, maybe_time};

/// A template whose row is locked until the transaction ends.
#[derive(Debug, Clone)]
pub struct LockedTemplate {
    /// Its id.
    pub id: TemplateId,
    /// Its name.
    pub name: String,
    /// Where.
    pub organization_id: OrganizationId,
    /// That organization's name.
    pub organization_name: String,
    /// The version that new workspaces get.
    pub active_version_id: VersionId,
    /// It is deprecated.
    pub is_deprecated: bool,
}

/// Locks a template that is not deleted. Promotions of one template come one after the other; claims
/// and passes, which only refer to the row, wait for none of them.
#[tracing::instrument(name = "db.promotion.lock", skip_all, fields(template.id = %template), err)]
pub async fn lock(
    db: impl Executor<'_>,
    template: TemplateId,
) -> Result<Option<LockedTemplate>, DbError> {
    let row = sqlx::query!(
        r#"
        select t.id, t.name, t.organization_id, o.name as organization_name, t.active_version_id,
               t.deprecation_message <> '' as "is_deprecated!"
        from templates t join organizations o on o.id = t.organization_id
        where t.id = $1 and not t.deleted
        for no key update of t"#,
        template.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| LockedTemplate {
        id: TemplateId(row.id),
        name: row.name,
        organization_id: OrganizationId(row.organization_id),
        organization_name: row.organization_name,
        active_version_id: VersionId(row.active_version_id),
        is_deprecated: row.is_deprecated,
    }))
}

/// A version that somebody wants to be the active one.
#[derive(Debug, Clone)]
pub struct Contender {
    /// Its name.
    pub name: String,
    /// It is put away.
    pub archived: bool,
    /// Where its import stands.
    pub import_status: JobStatus,
    /// Prebuilds of it that claims still get, as those of the previous version.
    pub claimable: i64,
}

/// Looks up a version of the template. `None`: it has no such version.
#[tracing::instrument(name = "db.promotion.find_contender", skip_all, fields(version.id = %version), err)]
pub async fn find_contender(
    db: impl Executor<'_>,
    template: TemplateId,
    version: VersionId,
    now: Timestamp,
) -> Result<Option<Contender>, DbError> {
    let row = sqlx::query!(
        r#"
        select v.name, v.archived, j.status as "status!",
               (
                   select count(*)
                   from prebuild_pools p
                   join workspaces w on w.pool_preset_id = p.preset_id
                   join templates t on t.id = p.template_id
                   where p.template_id = $1 and p.template_version_id = $2
                     and is_claimable(w, p, t, $3)
               ) as "claimable!"
        from template_versions v join provisioner_jobs j on j.id = v.job_id
        where v.id = $2 and v.template_id = $1"#,
        template.0,
        version.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Contender {
            name: row.name,
            archived: row.archived,
            import_status: row.status.parse()?,
            claimable: row.claimable,
        })
    })
    .transpose()
}

/// A warm promotion.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// Its id.
    pub id: PromotionId,
    /// Of which template.
    pub template_id: TemplateId,
    /// The version that is to become the active one.
    pub candidate_version_id: VersionId,
    /// That version's name.
    pub candidate_version_name: String,
    /// That version is put away.
    pub candidate_is_archived: bool,
    /// The version that was active when it began.
    pub active_version_id: VersionId,
    /// Percent of the candidate's wanted prebuilds that must be ready, 1 to 100.
    pub ready_percent: u32,
    /// When it is called off.
    pub deadline: Timestamp,
    /// Who began it.
    pub actor_id: UserId,
    /// When.
    pub created_at: Timestamp,
    /// When it ended; `None`: it is open.
    pub ended_at: Option<Timestamp>,
    /// How.
    pub outcome: Option<PromotionOutcome>,
    /// Why it was called off; empty otherwise.
    pub reason: String,
}

impl Promotion {
    /// Whether it has not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ended_at.is_none()
    }
}

/// The open warm promotion of a template, else the newest one.
#[tracing::instrument(name = "db.promotion.find", skip_all, fields(template.id = %template), err)]
pub async fn find(
    db: impl Executor<'_>,
    template: TemplateId,
) -> Result<Option<Promotion>, DbError> {
    let row = sqlx::query!(
        "
        select p.id, p.candidate_version_id, v.name, v.archived, p.active_version_id,
               p.ready_percent, p.deadline_at, p.actor_id, p.created_at, p.ended_at, p.outcome,
               p.reason
        from template_promotions p join template_versions v on v.id = p.candidate_version_id
        where p.template_id = $1
        order by p.ended_at is not null, p.created_at desc
        limit 1",
        template.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Promotion {
            id: PromotionId(row.id),
            template_id: template,
            candidate_version_id: VersionId(row.candidate_version_id),
            candidate_version_name: row.name,
            candidate_is_archived: row.archived,
            active_version_id: VersionId(row.active_version_id),
            ready_percent: u32::try_from(row.ready_percent).unwrap_or(100),
            deadline: row.deadline_at.to_jiff(),
            actor_id: UserId(row.actor_id),
            created_at: row.created_at.to_jiff(),
            ended_at: maybe_time(row.ended_at),
            outcome: row.outcome.map(|it| it.parse()).transpose()?,
            reason: row.reason,
        })
    })
    .transpose()
}

/// A pool of a candidate.
#[derive(Debug, Clone)]
pub struct CandidatePool {
    /// Its preset.
    pub preset_id: PresetId,
    /// The preset's name.
    pub preset_name: String,
    /// What the template asks for.
    pub prebuilds: Prebuilds,
    /// The policy that holds.
    pub policy: PoolPolicy,
    /// Its health.
    pub status: PrebuildStatus,
    /// Prebuilds that could be handed out, were the version active.
    pub ready: u32,
    /// Prebuilds on their way there.
    pub coming: u32,
}

/// The pools of a version, by the names of their presets.
#[tracing::instrument(name = "db.promotion.list_pools", skip_all, fields(version.id = %version), err)]
pub async fn list_pools(
    db: impl Executor<'_>,
    template: TemplateId,
    version: VersionId,
    now: Timestamp,
) -> Result<Vec<CandidatePool>, DbError> {
    let rows = sqlx::query!(
        r#"
        select p.preset_id, s.name, p.policy, p.prebuild_status,
               jsonb_build_object(
                   'instances', coalesce(s.desired_instances, 0), 'ttl_seconds', s.ttl_seconds,
                   'timezone', s.scheduling_timezone,
                   'schedules', coalesce((
                       select jsonb_agg(
                           jsonb_build_object('cron', c.cron, 'instances', c.desired_instances)
                           order by c.position)
                       from template_version_preset_schedules c where c.preset_id = p.preset_id
                   ), '[]')
               ) as "prebuilds!",
               m.ready as "ready!", m.coming as "coming!"
        from prebuild_pools p
        join template_version_presets s on s.id = p.preset_id
        cross join lateral (
            select count(*) filter (
                       where w.pool_state = 'ready' and prebuild_lives(w, p, $3)
                   ) as ready,
                   count(*) filter (where w.pool_state in ('starting', 'unready')) as coming
            from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
        ) m
        where p.template_id = $1 and p.template_version_id = $2
        order by s.name"#,
        template.0,
        version.0,
        at(now)
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(CandidatePool {
                preset_id: PresetId(row.preset_id),
                preset_name: row.name,
                prebuilds: json("preset schedules", row.prebuilds)?,
                policy: json("prebuild_pools.policy", row.policy)?,
                status: row.prebuild_status.parse()?,
                ready: u32::try_from(row.ready).unwrap_or(u32::MAX),
                coming: u32::try_from(row.coming).unwrap_or(u32::MAX),
            })
        })
        .collect()
}

/// A warm promotion to be opened.
#[derive(Debug, Clone)]
pub struct NewPromotion {
    /// Its id.
    pub id: PromotionId,
    /// Of which template; the caller holds its row.
    pub template_id: TemplateId,
    /// The version that is to become the active one.
    pub candidate_version_id: VersionId,
    /// The active one.
    pub active_version_id: VersionId,
    /// Percent of the candidate's wanted prebuilds that must be ready, 1 to 100.
    pub ready_percent: u32,
    /// When it is called off.
    pub deadline: Timestamp,
    /// Who begins it.
    pub actor_id: UserId,
    /// When.
    pub now: Timestamp,
}

/// Opens a warm promotion: from now on the candidate's pools are built.
#[tracing::instrument(name = "db.promotion.insert", skip_all, fields(template.id = %new.template_id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewPromotion) -> Result<(), DbError> {
    sqlx::query!(
        "
        with candidate as (
            update templates set candidate_version_id = $3, updated_at = $8 where id = $2
        )
        insert into template_promotions (
            id, template_id, candidate_version_id, active_version_id, ready_percent, deadline_at,
            actor_id, created_at
        ) values ($1, $2, $3, $4, $5, $6, $7, $8)",
        new.id.0,
        new.template_id.0,
        new.candidate_version_id.0,
        new.active_version_id.0,
        i32::try_from(new.ready_percent).unwrap_or(100),
        at(new.deadline),
        new.actor_id.0,
        at(new.now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends the open warm promotion; its version is no candidate any more. `false`: none is open.
#[tracing::instrument(name = "db.promotion.end", skip_all, fields(template.id = %template, outcome = %outcome), err)]
pub async fn end(
    db: impl Executor<'_>,
    template: TemplateId,
    outcome: PromotionOutcome,
    reason: &str,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        with candidate as (
            update templates set candidate_version_id = null, updated_at = $4
            where id = $1 and candidate_version_id is not null
        )
        update template_promotions set ended_at = $4, outcome = $2, reason = $3
        where template_id = $1 and ended_at is null",
        template.0,
        outcome.as_str(),
        reason,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Says which pools of the version that was active are followed by which of the new one: presets of
/// the same name and the same values. Every other pool of the template is followed by none.
#[tracing::instrument(name = "db.promotion.link_pools", skip_all, fields(template.id = %template), err)]
pub async fn link_pools(
    db: impl Executor<'_>,
    template: TemplateId,
    old: VersionId,
    new: VersionId,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        with pools as (
            select p.preset_id, p.template_version_id, s.name, coalesce((
                       select jsonb_object_agg(v.name, v.value)
                       from template_version_preset_parameters v where v.preset_id = p.preset_id
                   ), '{}') as values
            from prebuild_pools p join template_version_presets s on s.id = p.preset_id
            where p.template_id = $1 and p.template_version_id in ($2, $3)
        ), changed as (
            select p.preset_id, heir.preset_id as successor
            from prebuild_pools p
            left join pools own
                on own.preset_id = p.preset_id and own.template_version_id = $2
            left join pools heir
                on heir.template_version_id = $3 and heir.name = own.name
               and heir.values = own.values
            where p.template_id = $1
              and (p.template_version_id = $2 or p.successor_preset_id is not null)
              and p.successor_preset_id is distinct from heir.preset_id
            order by p.preset_id
            for no key update of p
        )
        update prebuild_pools p set successor_preset_id = c.successor
        from changed c where p.preset_id = c.preset_id",
        template.0,
        old.0,
        new.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Marks the template's pools that a promotion concerns, and tells which they are: those of the
/// given versions and of the one before, and whichever still has prebuilds. Templates collect
/// versions; pools of the others are empty and stay so.
#[tracing::instrument(name = "db.promotion.mark_pools", skip_all, fields(template.id = %template), err)]
pub async fn mark_pools(
    db: impl Executor<'_>,
    template: TemplateId,
    versions: &[VersionId],
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let versions: Vec<_> = versions.iter().map(|it| it.0).collect();
    let rows = sqlx::query_scalar!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select p.preset_id, $3
        from prebuild_pools p join templates t on t.id = p.template_id
        where p.template_id = $1
          and (p.template_version_id = any($2)
               or p.template_version_id in (t.active_version_id, t.previous_version_id)
               or exists (
                   select from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
               ))
        returning preset_id",
        template.0,
        &versions,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(PresetId).collect())
}

/// Templates with an open warm promotion, oldest first, at most 1000.
#[tracing::instrument(name = "db.promotion.list_open", level = "debug", skip_all, err)]
pub async fn list_open(db: impl Executor<'_>) -> Result<Vec<TemplateId>, DbError> {
    let rows = sqlx::query_scalar!(
        "
        select template_id from template_promotions
        where ended_at is null
        order by created_at
        limit 1000"
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(TemplateId).collect())
}
