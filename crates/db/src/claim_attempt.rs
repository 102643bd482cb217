//! What came of each request for a workspace: which prebuild was handed out, or why none was.

use berth_domain::id::{
    BuildId, OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId,
};
use berth_domain::state::{ClaimOutcome, MissReason};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_at, maybe_time};

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The row's id.
    pub id: Uuid,
    /// When.
    pub created_at: Timestamp,
    /// Organization of the template.
    pub organization_id: OrganizationId,
    /// The template.
    pub template_id: TemplateId,
    /// The version asked for.
    pub version_id: VersionId,
    /// The preset named or matched.
    pub preset_id: Option<PresetId>,
    /// For whom.
    pub user_id: UserId,
    /// The workspace that the user got.
    pub workspace_id: WorkspaceId,
    /// Its build.
    pub build_id: BuildId,
    /// Whether a prebuild was handed out.
    pub outcome: ClaimOutcome,
    /// Why none was; `None` on a hit.
    pub reason: Option<MissReason>,
    /// What explains the reason.
    pub detail: Value,
    /// When the prebuild was made; `None` on a miss.
    pub prebuild_created_at: Option<Timestamp>,
    /// How the build ended; `None` while it has not.
    pub build_status: Option<String>,
}

/// Records an attempt.
#[tracing::instrument(name = "db.claim_attempt.insert", skip_all, err)]
pub async fn insert(db: impl Executor<'_>, attempt: &Attempt) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into claim_attempts (
            id, created_at, organization_id, template_id, template_version_id, preset_id, user_id,
            workspace_id, build_id, outcome, reason, detail, prebuild_created_at
        ) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        attempt.id,
        at(attempt.created_at),
        attempt.organization_id.0,
        attempt.template_id.0,
        attempt.version_id.0,
        attempt.preset_id.map(|it| it.0),
        attempt.user_id.0,
        attempt.workspace_id.0,
        attempt.build_id.0,
        attempt.outcome.as_str(),
        attempt.reason.map(MissReason::as_str),
        attempt.detail,
        maybe_at(attempt.prebuild_created_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Which attempts.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Of this organization.
    pub organization: OrganizationId,
    /// Of the template with this name or id.
    pub template: Option<String>,
    /// With this outcome.
    pub outcome: Option<ClaimOutcome>,
    /// Missed for this reason.
    pub reason: Option<MissReason>,
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// Only those before this one in the list, by its time and id.
    pub before: Option<(Timestamp, Uuid)>,
    /// Rows at most.
    pub limit: i64,
}

/// An attempt with what people call its parts. Names are empty of what is gone.
#[derive(Debug, Clone)]
pub struct Named {
    /// The attempt.
    pub attempt: Attempt,
    /// Name of the template.
    pub template_name: String,
    /// Name of the preset.
    pub preset_name: String,
    /// Name of the user.
    pub username: String,
    /// Name of the workspace.
    pub workspace_name: String,
}

/// Lists attempts, newest first.
#[tracing::instrument(name = "db.claim_attempt.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<Vec<Named>, DbError> {
    let rows = sqlx::query!(
        r#"
        select a.id, a.created_at, a.organization_id, a.template_id, a.template_version_id,
               a.preset_id, a.user_id, a.workspace_id, a.build_id, a.outcome, a.reason, a.detail,
               a.prebuild_created_at, a.build_status, coalesce(t.name, '') as "template_name!",
               coalesce(p.name, '') as "preset_name!", coalesce(u.username, '') as "username!",
               coalesce(w.name, '') as "workspace_name!"
        from claim_attempts a
        left join templates t on t.id = a.template_id
        left join template_version_presets p on p.id = a.preset_id
        left join users u on u.id = a.user_id
        left join workspaces w on w.id = a.workspace_id
        where a.organization_id = $1
          and ($2::text is null or lower(t.name) = lower($2) or t.id::text = lower($2))
          and ($3::text is null or a.outcome = $3)
          and ($4::text is null or a.reason = $4)
          and a.created_at >= coalesce($5, '-infinity'::timestamptz)
          and (a.created_at, a.id) < (coalesce($6, 'infinity'::timestamptz),
                                      coalesce($7, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
        order by a.created_at desc, a.id desc
        limit $8"#,
        filter.organization.0,
        filter.template,
        filter.outcome.map(ClaimOutcome::as_str),
        filter.reason.map(MissReason::as_str),
        maybe_at(filter.since) as _,
        maybe_at(filter.before.map(|it| it.0)) as _,
        filter.before.map(|it| it.1),
        filter.limit
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let attempt = Attempt {
                id: row.id,
                created_at: row.created_at.to_jiff(),
                organization_id: OrganizationId(row.organization_id),
                template_id: TemplateId(row.template_id),
                version_id: VersionId(row.template_version_id),
                preset_id: row.preset_id.map(PresetId),
                user_id: UserId(row.user_id),
                workspace_id: WorkspaceId(row.workspace_id),
                build_id: BuildId(row.build_id),
                outcome: row.outcome.parse()?,
                reason: row.reason.map(|it| it.parse()).transpose()?,
                detail: row.detail,
                prebuild_created_at: maybe_time(row.prebuild_created_at),
                build_status: row.build_status,
            };
            Ok(Named {
                attempt,
                template_name: row.template_name,
                preset_name: row.preset_name,
                username: row.username,
                workspace_name: row.workspace_name,
            })
        })
        .collect()
}

/// What came of the request that made the workspace; of several, the newest.
#[tracing::instrument(name = "db.claim_attempt.find_told", skip_all, fields(workspace.id = %workspace), err)]
pub async fn find_told(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
) -> Result<Option<Told>, DbError> {
    let row = sqlx::query!(
        "
        select outcome, reason, detail from claim_attempts
        where workspace_id = $1 order by created_at desc limit 1",
        workspace.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let reason = row.reason.map(|it| it.parse()).transpose()?;
        Ok(Told { outcome: row.outcome.parse()?, reason, detail: row.detail })
    })
    .transpose()
}

/// What of an attempt its requester is told.
#[derive(Debug, Clone)]
pub struct Told {
    /// Whether a prebuild was handed out.
    pub outcome: ClaimOutcome,
    /// Why none was; `None` on a hit.
    pub reason: Option<MissReason>,
    /// What explains the reason.
    pub detail: Value,
}
