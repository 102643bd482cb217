//! Templates.

use berth_domain::authz::Acl;
use berth_domain::id::{OrganizationId, PREBUILDS_USER, TemplateId, UserId, VersionId};
use berth_domain::state::ProvisionerType;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// What can be set about a template.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Unique in the organization, whatever the case.
    pub name: String,
    /// What people see; empty: the name.
    pub display_name: String,
    /// What it is for.
    pub description: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// Why it must not be used any more; empty: it may.
    pub deprecation_message: String,
    /// How long workspaces run after a start, in ms; 0: for ever.
    pub default_ttl_ms: i64,
    /// By how much activity moves the end, in ms.
    pub activity_bump_ms: i64,
    /// How long after a failed start a workspace is stopped, in ms; 0: never.
    pub failure_ttl_ms: i64,
    /// How long unused until dormant, in ms; 0: never.
    pub time_til_dormant_ms: i64,
    /// How long dormant until deleted, in ms; 0: never.
    pub time_til_dormant_autodelete_ms: i64,
    /// People may set their own start.
    pub allow_user_autostart: bool,
    /// People may set their own stop.
    pub allow_user_autostop: bool,
    /// People may cancel their builds.
    pub allow_user_cancel_workspace_jobs: bool,
    /// Workspaces start with the active version only.
    pub require_active_version: bool,
    /// Daemons that have the experiment keep what `terraform init` made between builds.
    pub reuse_terraform_workspace: bool,
}

/// A template.
#[derive(Debug, Clone)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// Where.
    pub organization_id: OrganizationId,
    /// That organization's name.
    pub organization_name: String,
    /// What people see of it.
    pub organization_display_name: String,
    /// Its icon.
    pub organization_icon: String,
    /// What can be set.
    pub settings: Settings,
    /// The tool it needs.
    pub provisioner: ProvisionerType,
    /// The version that new workspaces get.
    pub active_version_id: VersionId,
    /// People with a workspace of it.
    pub active_users: i64,
    /// Who may use or manage it, beyond the roles.
    pub acl: Acl,
    /// Who made it.
    pub created_by: UserId,
    /// His name.
    pub created_by_name: String,
    /// When.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
struct Row {
    id: Uuid,
    organization_id: Uuid,
    organization_name: String,
    organization_display_name: String,
    organization_icon: String,
    name: String,
    display_name: String,
    description: String,
    icon: String,
    provisioner: String,
    active_version_id: Uuid,
    deprecation_message: String,
    default_ttl_ms: i64,
    activity_bump_ms: i64,
    failure_ttl_ms: i64,
    time_til_dormant_ms: i64,
    time_til_dormant_autodelete_ms: i64,
    allow_user_autostart: bool,
    allow_user_autostop: bool,
    allow_user_cancel_workspace_jobs: bool,
    require_active_version: bool,
    reuse_terraform_workspace: bool,
    acl: Value,
    active_users: i64,
    created_by: Uuid,
    created_by_name: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl TryFrom<Row> for Template {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: TemplateId(row.id),
            organization_id: OrganizationId(row.organization_id),
            organization_name: row.organization_name,
            organization_display_name: row.organization_display_name,
            organization_icon: row.organization_icon,
            settings: Settings {
                name: row.name,
                display_name: row.display_name,
                description: row.description,
                icon: row.icon,
                deprecation_message: row.deprecation_message,
                default_ttl_ms: row.default_ttl_ms,
                activity_bump_ms: row.activity_bump_ms,
                failure_ttl_ms: row.failure_ttl_ms,
                time_til_dormant_ms: row.time_til_dormant_ms,
                time_til_dormant_autodelete_ms: row.time_til_dormant_autodelete_ms,
                allow_user_autostart: row.allow_user_autostart,
                allow_user_autostop: row.allow_user_autostop,
                allow_user_cancel_workspace_jobs: row.allow_user_cancel_workspace_jobs,
                require_active_version: row.require_active_version,
                reuse_terraform_workspace: row.reuse_terraform_workspace,
            },
            provisioner: row.provisioner.parse()?,
            active_version_id: VersionId(row.active_version_id),
            active_users: row.active_users,
            acl: serde_json::from_value(row.acl).map_err(|source| DbError::Json {
                what: "templates.user_acl, group_acl",
                source,
            })?,
            created_by: UserId(row.created_by),
            created_by_name: row.created_by_name,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        })
    }
}

/// Which templates. Access is not looked at here but by [`Filter::readable_by`].
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This one.
    pub id: Option<TemplateId>,
    /// Of this organization.
    pub organization: Option<OrganizationId>,
    /// Of this name, whatever the case.
    pub name: Option<String>,
    /// Whose name or display name contains this.
    pub search: Option<String>,
    /// Only those which this reader may read; `None`: all.
    pub readable_by: Option<Reader>,
}

/// A reader without a site role that reads every template.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The organizations whose templates he may all read.
    pub organizations: Vec<Uuid>,
    /// The organizations of which he is a member: access lists hold for members only.
    pub memberships: Vec<Uuid>,
    /// Himself.
    pub user: Uuid,
    /// His groups.
    pub groups: Vec<Uuid>,
}

/// Looks a template up.
pub async fn find(db: impl Executor<'_>, id: TemplateId) -> Result<Option<Template>, DbError> {
    Ok(list(db, &Filter { id: Some(id), ..Filter::default() }).await?.pop())
}

/// Lists templates that are not deleted by organization and name, at most 1000.
#[tracing::instrument(name = "db.template.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<Vec<Template>, DbError> {
    let reader = filter.readable_by.as_ref();
    let groups: Option<Vec<String>> =
        reader.map(|it| it.groups.iter().map(ToString::to_string).collect());
    let rows = sqlx::query_as!(
        Row,
        r#"
        select t.id, t.organization_id, o.name as organization_name,
               o.display_name as organization_display_name, o.icon as organization_icon, t.name,
               t.display_name, t.description, t.icon, t.provisioner, t.active_version_id,
               t.deprecation_message, t.default_ttl_ms, t.activity_bump_ms, t.failure_ttl_ms,
               t.time_til_dormant_ms, t.time_til_dormant_autodelete_ms, t.allow_user_autostart,
               t.allow_user_autostop, t.allow_user_cancel_workspace_jobs,
               t.require_active_version, t.reuse_terraform_workspace,
               jsonb_build_object('users', t.user_acl, 'groups', t.group_acl) as "acl!",
               (
                   select count(distinct w.owner_id) from workspaces w
                   where w.template_id = t.id and not w.deleted and w.owner_id <> $10
               ) as "active_users!",
               t.created_by, u.username as created_by_name, t.created_at, t.updated_at
        from templates t
        join organizations o on o.id = t.organization_id
        join users u on u.id = t.created_by
        where not t.deleted
          and ($1::uuid is null or t.id = $1)
          and ($2::uuid is null or t.organization_id = $2)
          and ($3::text is null or lower(t.name) = lower($3))
          and ($4::text is null or position(lower($4) in lower(t.name)) > 0
               or position(lower($4) in lower(t.display_name)) > 0)
          and ($5
               or t.organization_id = any($6)
               or (t.organization_id = any($7)
                   and (t.user_acl ? $8 or t.group_acl ?| $9)))
        order by lower(o.name), lower(t.name)
        limit 1000"#,
        filter.id.map(|it| it.0),
        filter.organization.map(|it| it.0),
        filter.name,
        filter.search,
        reader.is_none(),
        &reader.map(|it| it.organizations.clone()).unwrap_or_default(),
        &reader.map(|it| it.memberships.clone()).unwrap_or_default(),
        reader.map(|it| it.user.to_string()).unwrap_or_default(),
        &groups.unwrap_or_default(),
        PREBUILDS_USER.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Template::try_from).collect()
}

/// A template to be made.
#[derive(Debug, Clone)]
pub struct NewTemplate {
    /// Its id.
    pub id: TemplateId,
    /// Where.
    pub organization_id: OrganizationId,
    /// Its first version, which belongs to no template yet.
    pub version_id: VersionId,
    /// What can be set.
    pub settings: Settings,
    /// Everyone of the organization may use it.
    pub open_to_everyone: bool,
    /// Who makes it.
    pub created_by: UserId,
    /// When.
    pub now: Timestamp,
}

/// Makes a template of a version and gives the version and its pools to it. `false`: the version
/// belongs to a template already, or to another organization.
#[tracing::instrument(name = "db.template.insert", skip_all, fields(template.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewTemplate) -> Result<bool, DbError> {
    let group_acl = if new.open_to_everyone {
        serde_json::json!({ new.organization_id.to_string(): "use" })
    } else {
        serde_json::json!({})
    };
    let settings = &new.settings;
    let made = sqlx::query_scalar!(
        r#"
        with version as (
            select id, provisioner from template_versions
            where id = $3 and organization_id = $2 and template_id is null
            for update
        ), template as (
            insert into templates (
                id, organization_id, active_version_id, provisioner, name, display_name,
                description, icon, deprecation_message, default_ttl_ms, activity_bump_ms,
                failure_ttl_ms, time_til_dormant_ms, time_til_dormant_autodelete_ms,
                allow_user_autostart, allow_user_autostop, allow_user_cancel_workspace_jobs,
                require_active_version, group_acl, created_by, created_at, updated_at,
                reuse_terraform_workspace
            )
            select $1, $2, v.id, v.provisioner, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                   $15, $16, $17, $18, $19, $20, $20, $21
            from version v
            returning id
        )
        select count(*) as "count!" from template"#,
        new.id.0,
        new.organization_id.0,
        new.version_id.0,
        settings.name,
        settings.display_name,
        settings.description,
        settings.icon,
        settings.deprecation_message,
        settings.default_ttl_ms,
        settings.activity_bump_ms,
        settings.failure_ttl_ms,
        settings.time_til_dormant_ms,
        settings.time_til_dormant_autodelete_ms,
        settings.allow_user_autostart,
        settings.allow_user_autostop,
        settings.allow_user_cancel_workspace_jobs,
        settings.require_active_version,
        group_acl,
        new.created_by.0,
        at(new.now),
        settings.reuse_terraform_workspace
    )
    .fetch_one(db)
    .await?;
    Ok(made == 1)
}

/// Gives a version and its pools to the template that was just made of it.
#[tracing::instrument(name = "db.template.adopt_version", skip_all, fields(template.id = %id), err)]
pub async fn adopt_version(
    db: impl Executor<'_>,
    id: TemplateId,
    version: VersionId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        with version as (
            update template_versions set template_id = $1, updated_at = $3 where id = $2
        ), pools as (
            update prebuild_pools p
            set template_id = $1, policy = effective_pool_policy($1, r.name)
            from template_version_presets r
            where p.template_version_id = $2 and r.id = p.preset_id
            returning p.preset_id
        )
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $3 from pools",
        id.0,
        version.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Changes what can be set. `false`: the template is gone.
#[tracing::instrument(name = "db.template.update", skip_all, fields(template.id = %id), err)]
pub async fn update(
    db: impl Executor<'_>,
    id: TemplateId,
    settings: &Settings,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update templates
        set name = $2, display_name = $3, description = $4, icon = $5, deprecation_message = $6,
            default_ttl_ms = $7, activity_bump_ms = $8, failure_ttl_ms = $9,
            time_til_dormant_ms = $10, time_til_dormant_autodelete_ms = $11,
            allow_user_autostart = $12, allow_user_autostop = $13,
            allow_user_cancel_workspace_jobs = $14, require_active_version = $15, updated_at = $16,
            reuse_terraform_workspace = $17
        where id = $1 and not deleted",
        id.0,
        settings.name,
        settings.display_name,
        settings.description,
        settings.icon,
        settings.deprecation_message,
        settings.default_ttl_ms,
        settings.activity_bump_ms,
        settings.failure_ttl_ms,
        settings.time_til_dormant_ms,
        settings.time_til_dormant_autodelete_ms,
        settings.allow_user_autostart,
        settings.allow_user_autostop,
        settings.allow_user_cancel_workspace_jobs,
        settings.require_active_version,
        at(now),
        settings.reuse_terraform_workspace
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes the right to use a template from everyone of its organization, or gives it.
#[tracing::instrument(name = "db.template.set_open_to_everyone", skip_all, fields(template.id = %id), err)]
pub async fn set_open_to_everyone(
    db: impl Executor<'_>,
    id: TemplateId,
    open: bool,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update templates
        set group_acl = case
            when $2 then jsonb_build_object(organization_id::text, 'use') || group_acl
            else group_acl - organization_id::text
        end
        where id = $1"#,
        id.0,
        open
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes a version the active one; the one that was becomes the previous one, whose prebuilds stay
/// claimable with `keeps_previous`. Nothing is a candidate any more. `false`: it is not a version of
/// this template whose import succeeded, or it is put away.
#[tracing::instrument(name = "db.template.promote", skip_all, fields(template.id = %id, version.id = %version), err)]
pub async fn promote(
    db: impl Executor<'_>,
    id: TemplateId,
    version: VersionId,
    keeps_previous: bool,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update templates t
        set active_version_id = v.id, provisioner = v.provisioner, candidate_version_id = null,
            previous_version_id = case
                when t.active_version_id = v.id then t.previous_version_id
                else t.active_version_id
            end,
            keeps_previous = $3, updated_at = $4
        from template_versions v join provisioner_jobs j on j.id = v.job_id
        where t.id = $1 and not t.deleted and v.id = $2 and v.template_id = t.id
          and not v.archived and j.status = 'succeeded'",
        id.0,
        version.0,
        keeps_previous,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes a template that no person has a workspace of; its prebuilds are for the reconciler.
/// `false`: somebody has one, or it is gone already.
#[tracing::instrument(name = "db.template.mark_deleted", skip_all, fields(template.id = %id), err)]
pub async fn mark_deleted(
    db: impl Executor<'_>,
    id: TemplateId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update templates set deleted = true, updated_at = $2
        where id = $1 and not deleted
          and not exists (
              select from workspaces
              where template_id = $1 and not deleted and owner_id <> $3
          )",
        id.0,
        at(now),
        PREBUILDS_USER.0
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
