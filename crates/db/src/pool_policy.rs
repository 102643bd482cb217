//! What operators chose for a template's pools: the template's policy, and what single presets say
//! otherwise. Overrides go by the preset's name, so that they outlive the version.

use std::collections::BTreeMap;

use berth_domain::id::{PresetId, TemplateId};
use berth_domain::plan::{PolicyOverride, PoolPolicy};
use jiff::Timestamp;
use serde_json::Value;

use crate::{DbError, Executor, at};

/// The stored choices of one template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies {
    /// The template's.
    pub template: PoolPolicy,
    /// By preset name, what differs.
    pub presets: BTreeMap<String, PolicyOverride>,
}

/// Reads the choices of a template; the default where there are none.
#[tracing::instrument(name = "db.pool_policy.find", skip_all, fields(template.id = %template), err)]
pub async fn find(db: impl Executor<'_>, template: TemplateId) -> Result<Policies, DbError> {
    let rows = sqlx::query!(
        "select preset_name, policy from prebuild_pool_policies where template_id = $1",
        template.0
    )
    .fetch_all(db)
    .await?;
    let stored = |source| DbError::Json { what: "pool policy", source };
    let mut policies = Policies::default();
    for row in rows {
        if row.preset_name.is_empty() {
            policies.template = serde_json::from_value(row.policy).map_err(stored)?;
        } else {
            let policy = serde_json::from_value(row.policy).map_err(stored)?;
            policies.presets.insert(row.preset_name, policy);
        }
    }
    Ok(policies)
}

/// Locks a template against every other change of its policies, versions and pools. `false`: it is
/// gone. Whoever changes several pools of a template takes this first, so that no two of them wait
/// for each other's pools.
#[tracing::instrument(name = "db.pool_policy.lock_template", skip_all, fields(template.id = %template), err)]
pub async fn lock_template(db: impl Executor<'_>, template: TemplateId) -> Result<bool, DbError> {
    let row = sqlx::query_scalar!(
        r#"
        select 1 as "one!" from templates where id = $1 and not deleted for no key update"#,
        template.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// Puts these choices in the place of the stored ones. [`apply`] has to follow in the same
/// transaction.
#[tracing::instrument(name = "db.pool_policy.replace", skip_all, fields(template.id = %template), err)]
pub async fn replace(
    db: impl Executor<'_>,
    template: TemplateId,
    policies: &Policies,
    now: Timestamp,
) -> Result<(), DbError> {
    let json = |source| DbError::Json { what: "pool policy", source };
    let mut names = vec![String::new()];
    let mut values: Vec<Value> = vec![serde_json::to_value(&policies.template).map_err(json)?];
    for (name, policy) in &policies.presets {
        names.push(name.clone());
        values.push(serde_json::to_value(policy).map_err(json)?);
    }
    sqlx::query!(
        "
        with gone as (
            delete from prebuild_pool_policies
            where template_id = $1 and preset_name <> all($2::text[])
        )
        insert into prebuild_pool_policies (template_id, preset_name, policy, updated_at)
        select $1, name, policy, $4
        from unnest($2::text[], $3::jsonb[]) as chosen (name, policy)
        on conflict on constraint prebuild_pool_policies_pkey do update
        set policy = excluded.policy, updated_at = excluded.updated_at",
        template.0,
        &names,
        &values,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes the policy that holds into every pool of the template, and marks those whose policy
/// changed and that are in use. Gives the marked ones.
#[tracing::instrument(name = "db.pool_policy.apply", skip_all, fields(template.id = %template), err)]
pub async fn apply(
    db: impl Executor<'_>,
    template: TemplateId,
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query_scalar!(
        "
        with changed as (
            update prebuild_pools p
            set policy = e.policy
            from templates t, template_version_presets r,
                 lateral (select effective_pool_policy(t.id, r.name) as policy) e
            where t.id = $1 and p.template_id = t.id and r.id = p.preset_id
              and p.policy <> e.policy
            returning p.preset_id, pool_standing(p, t) as standing
        )
        insert into prebuild_pool_marks (preset_id, created_at)
        select c.preset_id, $2::timestamptz from changed c
        where c.standing <> 'inactive'
           or exists (
               select from workspaces w where w.pool_preset_id = c.preset_id and not w.deleted
           )
        returning preset_id",
        template.0,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(PresetId).collect())
}
