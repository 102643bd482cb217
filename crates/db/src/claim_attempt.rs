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

/// The newest attempts of an organization.
#[tracing::instrument(name = "db.claim_attempt.list", skip_all, err)]
pub async fn list(
    db: impl Executor<'_>,
    organization: OrganizationId,
    limit: i64,
    offset: i64,
) -> Result<Vec<Attempt>, DbError> {
    let rows = sqlx::query!(
        "
        select id, created_at, organization_id, template_id, template_version_id, preset_id,
               user_id, workspace_id, build_id, outcome, reason, detail, prebuild_created_at,
               build_status
        from claim_attempts where organization_id = $1
        order by created_at desc, id desc limit $2 offset $3",
        organization.0,
        limit,
        offset
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Attempt {
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
