//! What a job needs to run, read when a daemon takes it.

use berth_domain::id::{
    BuildId, FileId, OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::state::{BuildReason, BuildStage, Transition};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A build, its workspace, its owner and its template.
#[derive(Debug, Clone)]
pub struct BuildInput {
    /// The build.
    pub id: BuildId,
    /// Its number, from 1.
    pub number: i32,
    /// What it does.
    pub transition: Transition,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// The preset its parameters came from.
    pub preset_id: Option<PresetId>,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name.
    pub workspace_name: String,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The organization's name.
    pub organization_name: String,
    /// The preset's name, where there is one.
    pub preset_name: Option<String>,
    /// Why it was made.
    pub reason: BuildReason,
    /// Its owner.
    pub owner: BuildOwner,
    /// The template.
    pub template_id: TemplateId,
    /// Its name.
    pub template_name: String,
    /// The version.
    pub version_id: VersionId,
    /// Its name.
    pub version_name: String,
    /// The version's cached modules.
    pub modules_file_id: Option<FileId>,
    /// The template wants what `terraform init` made to be kept between builds.
    pub reuse_terraform_workspace: bool,
}

/// The owner of a workspace, as a template sees it.
#[derive(Debug, Clone)]
pub struct BuildOwner {
    /// Its id.
    pub id: UserId,
    /// Its login name.
    pub username: String,
    /// Its full name.
    pub full_name: String,
    /// Its address.
    pub email: String,
    /// How it logs in.
    pub login_type: String,
    /// Roles of the deployment.
    pub site_roles: Vec<String>,
    /// Roles in the organization.
    pub organization_roles: Vec<String>,
    /// Names of its groups in the organization.
    pub groups: Vec<String>,
}

/// An agent that runs while its workspace changes hands.
#[derive(Debug, Clone)]
pub struct RunningAgent {
    /// The `coder_agent`'s id in the provisioner state.
    pub state_id: String,
    /// Its token.
    pub token: Uuid,
}

/// Everything about a build but its state and parameters.
#[tracing::instrument(name = "db.job.find_build_input", skip_all, fields(build.id = %id), err)]
pub async fn find_build_input(
    db: impl Executor<'_>,
    id: BuildId,
) -> Result<Option<BuildInput>, DbError> {
    let row = sqlx::query!(
        r#"
        select b.id, b.build_number, b.transition, b.stage, b.preset_id,
               w.id as workspace_id, w.name as workspace_name, w.organization_id,
               o.name as organization_name, s.name as "preset_name?", b.reason,
               u.id as owner_id, u.username, u.name as full_name, u.email, u.login_type,
               u.roles as site_roles, coalesce(m.roles, '{}') as "organization_roles!",
               array(
                   select g.name from groups g
                   where g.organization_id = w.organization_id
                     and (g.id = g.organization_id and m.user_id is not null or exists (
                         select from group_members gm where gm.group_id = g.id and gm.user_id = u.id
                     ))
                   order by g.name
               ) as "groups!",
               t.id as template_id, t.name as template_name,
               v.id as version_id, v.name as version_name, v.modules_file_id,
               t.reuse_terraform_workspace
        from workspace_builds b
        join workspaces w on w.id = b.workspace_id
        join organizations o on o.id = w.organization_id
        join users u on u.id = w.owner_id
        join templates t on t.id = w.template_id
        join template_versions v on v.id = b.template_version_id
        left join template_version_presets s on s.id = b.preset_id
        left join organization_members m
            on m.organization_id = w.organization_id and m.user_id = u.id
        where b.id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(BuildInput {
            id: BuildId(row.id),
            number: row.build_number,
            transition: row.transition.parse()?,
            stage: row.stage.parse()?,
            preset_id: row.preset_id.map(PresetId),
            workspace_id: WorkspaceId(row.workspace_id),
            workspace_name: row.workspace_name,
            organization_id: OrganizationId(row.organization_id),
            organization_name: row.organization_name,
            preset_name: row.preset_name,
            reason: row.reason.parse()?,
            owner: BuildOwner {
                id: UserId(row.owner_id),
                username: row.username,
                full_name: row.full_name,
                email: row.email,
                login_type: row.login_type,
                site_roles: row.site_roles,
                organization_roles: row.organization_roles,
                groups: row.groups,
            },
            template_id: TemplateId(row.template_id),
            template_name: row.template_name,
            version_id: VersionId(row.version_id),
            version_name: row.version_name,
            modules_file_id: row.modules_file_id.map(FileId),
            reuse_terraform_workspace: row.reuse_terraform_workspace,
        })
    })
    .transpose()
}

/// The agents of a workspace that are not retired, with their tokens.
#[tracing::instrument(name = "db.job.list_running_agents", skip_all, fields(workspace.id = %workspace), err)]
pub async fn list_running_agents(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
) -> Result<Vec<RunningAgent>, DbError> {
    let rows = sqlx::query!(
        "
        select state_id, auth_token from workspace_agents
        where workspace_id = $1 and not retired and parent_id is null order by id",
        workspace.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| RunningAgent { state_id: row.state_id, token: row.auth_token })
        .collect())
}

/// Gives a workspace's owner a session for it, in place of any earlier one of that workspace.
#[tracing::instrument(name = "db.job.put_owner_key", skip_all, fields(workspace.id = %workspace), err)]
pub async fn put_owner_key(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    owner: UserId,
    key: (&str, &[u8]),
    (now, lifetime_seconds): (Timestamp, i32),
) -> Result<(), DbError> {
    let (id, secret_hash) = key;
    sqlx::query!(
        "
        with revoked as (delete from api_keys where workspace_id = $1)
        insert into api_keys (
            id, secret_hash, user_id, login_type, workspace_id, lifetime_seconds, last_used_at,
            expires_at, created_at, updated_at
        )
        values ($2, $3, $4, 'token', $1, $6::int::bigint, $5::timestamptz, $5::timestamptz + $6::int * interval '1 second', $5::timestamptz, $5::timestamptz)",
        workspace.0,
        id,
        secret_hash,
        owner.0,
        at(now),
        lifetime_seconds
    )
    .execute(db)
    .await?;
    Ok(())
}
