//! Pauses of reconciliation: for the deployment, an organization, a template or a preset; at most
//! one per scope and thing. One that has ended counts for nobody and is purged later.

use berth_domain::authz::Acl;
use berth_domain::id::{OrganizationId, PresetId, TemplateId, UserId};
use berth_domain::plan::PauseScope;
use jiff::Timestamp;
use uuid::Uuid;

use crate::claim::json;
use crate::{DbError, Executor, at, maybe_at, maybe_time};

/// A pause that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Its id.
    pub id: Uuid,
    /// What kind of thing it holds for.
    pub scope: PauseScope,
    /// Which one; `None` for the deployment.
    pub scope_id: Option<Uuid>,
    /// That one's name; empty for the deployment, and for what is gone.
    pub name: String,
    /// The organization concerned; `None` for the deployment.
    pub organization_id: Option<OrganizationId>,
    /// The template concerned, for the scopes template and preset.
    pub template_id: Option<TemplateId>,
    /// The template's access list.
    pub acl: Acl,
    /// Who set it.
    pub actor_id: UserId,
    /// His name.
    pub actor_name: String,
    /// Why, in his words.
    pub reason: String,
    /// When it was set.
    pub created_at: Timestamp,
    /// When it ends by itself; `None`: when somebody ends it.
    pub expires_at: Option<Timestamp>,
}

/// Somebody who may change the templates of some organizations only.
#[derive(Debug, Clone, Default)]
pub struct Viewer {
    /// Whether he sees pauses of the deployment.
    pub deployment: bool,
    /// The organizations whose templates he may all change.
    pub organizations: Vec<Uuid>,
    /// The organizations of which he is a member: access lists hold for members only.
    pub memberships: Vec<Uuid>,
    /// Himself.
    pub user: Uuid,
    /// His groups.
    pub groups: Vec<Uuid>,
}

/// Which pauses.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This one.
    pub id: Option<Uuid>,
    /// The one of this scope and thing.
    pub of: Option<(PauseScope, Option<Uuid>)>,
    /// Those that he may see; `None`: all.
    pub visible_to: Option<Viewer>,
    /// Rows at most.
    pub limit: i64,
    /// Rows left out at the beginning.
    pub offset: i64,
}

/// Lists pauses that hold at `now`, the newest first.
#[tracing::instrument(name = "db.pause.list", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn list(
    db: impl Executor<'_>,
    filter: &Filter,
    now: Timestamp,
) -> Result<Vec<Pause>, DbError> {
    let viewer = filter.visible_to.as_ref();
    let all = viewer.is_none();
    let viewer = viewer.cloned().unwrap_or_default();
    let groups: Vec<String> = viewer.groups.iter().map(ToString::to_string).collect();
    let (scope, scope_id) = filter.of.unzip();
    let rows = sqlx::query!(
        r#"
        select z.id, z.scope, z.scope_id, z.actor_id, z.reason, z.created_at, z.expires_at,
               coalesce(u.username, '') as "actor_name!", o.id as "organization_id?",
               t.id as "template_id?",
               coalesce(case z.scope when 'organization' then o.name when 'template' then t.name
                                     when 'preset' then r.name end, '') as "name!",
               jsonb_build_object('users', coalesce(t.user_acl, '{}'),
                                  'groups', coalesce(t.group_acl, '{}')) as "acl!"
        from prebuild_pauses z
        left join prebuild_pools p on z.scope = 'preset' and p.preset_id = z.scope_id
        left join template_version_presets r on r.id = p.preset_id
        left join templates t
            on t.id = case z.scope when 'template' then z.scope_id else p.template_id end
        left join organizations o
            on o.id = case z.scope when 'organization' then z.scope_id
                                   else coalesce(p.organization_id, t.organization_id) end
        left join users u on u.id = z.actor_id
        where (z.expires_at is null or z.expires_at > $1)
          and ($2::uuid is null or z.id = $2)
          and ($3::text is null or (z.scope = $3 and z.scope_id is not distinct from $4))
          and ($5
               or (z.scope = 'deployment' and $6)
               or o.id = any($7)
               or (o.id = any($8)
                   and (t.user_acl ->> $9 = 'admin'
                        or exists (
                            select from jsonb_each_text(t.group_acl) g
                            where g.value = 'admin' and g.key = any($10)
                        ))))
        order by z.created_at desc, z.id
        limit $11 offset $12"#,
        at(now),
        filter.id,
        scope.map(PauseScope::as_str),
        scope_id.flatten(),
        all,
        viewer.deployment,
        &viewer.organizations,
        &viewer.memberships,
        viewer.user.to_string(),
        &groups,
        filter.limit.max(1),
        filter.offset
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Pause {
                id: row.id,
                scope: row.scope.parse()?,
                scope_id: row.scope_id,
                name: row.name,
                organization_id: row.organization_id.map(OrganizationId),
                template_id: row.template_id.map(TemplateId),
                acl: json("template access lists", row.acl)?,
                actor_id: UserId(row.actor_id),
                actor_name: row.actor_name,
                reason: row.reason,
                created_at: row.created_at.to_jiff(),
                expires_at: maybe_time(row.expires_at),
            })
        })
        .collect()
}

/// A pause to be set.
#[derive(Debug, Clone)]
pub struct NewPause<'a> {
    /// Its id, unless it takes the place of one.
    pub id: Uuid,
    /// What kind of thing it holds for.
    pub scope: PauseScope,
    /// Which one; `None` for the deployment and for no other scope.
    pub scope_id: Option<Uuid>,
    /// Who sets it.
    pub actor: UserId,
    /// Why.
    pub reason: &'a str,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When.
    pub now: Timestamp,
}

/// Sets a pause; one of the same scope and thing gives way and leaves its id. Gives the id.
#[tracing::instrument(name = "db.pause.upsert", skip_all, err)]
pub async fn upsert(db: impl Executor<'_>, new: &NewPause<'_>) -> Result<Uuid, DbError> {
    Ok(sqlx::query_scalar!(
        "
        insert into prebuild_pauses (id, scope, scope_id, actor_id, reason, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict (scope, scope_id) do update
        set actor_id = excluded.actor_id, reason = excluded.reason,
            created_at = excluded.created_at, expires_at = excluded.expires_at
        returning id",
        new.id,
        new.scope.as_str(),
        new.scope_id,
        new.actor.0,
        new.reason,
        at(new.now),
        maybe_at(new.expires_at)
    )
    .fetch_one(db)
    .await?)
}

/// Ends a pause. `false`: there is none.
#[tracing::instrument(name = "db.pause.delete", skip_all, fields(pause.id = %id), err)]
pub async fn delete(db: impl Executor<'_>, id: Uuid) -> Result<bool, DbError> {
    let done = sqlx::query!("delete from prebuild_pauses where id = $1", id).execute(db).await?;
    Ok(done.rows_affected() == 1)
}

/// Marks the pools that a pause of this scope concerns and that are in use, in one statement. Gives
/// at most `most` of them: more are not worth waking one by one.
#[tracing::instrument(name = "db.pause.mark_pools", skip_all, err)]
pub async fn mark_pools(
    db: impl Executor<'_>,
    scope: PauseScope,
    scope_id: Option<Uuid>,
    most: i64,
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query_scalar!(
        "
        with marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select p.preset_id, $3
            from prebuild_pools p
            left join templates t on t.id = p.template_id
            where ($1 = 'deployment'
                   or ($1 = 'organization' and p.organization_id = $2)
                   or ($1 = 'template' and p.template_id = $2)
                   or ($1 = 'preset' and p.preset_id = $2))
              and (pool_standing(p, t) <> 'inactive'
                   or exists (
                       select from workspaces w
                       where w.pool_preset_id = p.preset_id and not w.deleted
                   ))
            returning preset_id
        )
        select preset_id from marked limit $4",
        scope.as_str(),
        scope_id,
        at(now),
        most
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(PresetId).collect())
}

/// The pool that a pause of one preset is about: its organization, its template and its name.
#[tracing::instrument(name = "db.pause.find_preset", skip_all, fields(preset.id = %preset), err)]
pub async fn find_preset(
    db: impl Executor<'_>,
    preset: PresetId,
) -> Result<Option<(OrganizationId, Option<TemplateId>, String)>, DbError> {
    let row = sqlx::query!(
        "
        select p.organization_id, p.template_id, r.name
        from prebuild_pools p
        join template_version_presets r on r.id = p.preset_id
        where p.preset_id = $1",
        preset.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|it| (OrganizationId(it.organization_id), it.template_id.map(TemplateId), it.name)))
}
