//! What decides who may have a terminal of an agent.

use berth_domain::id::{AgentId, OrganizationId, UserId, WorkspaceId};

use crate::{DbError, Executor};

/// Where an agent runs, and whether it is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The workspace's name.
    pub workspace_name: String,
    /// The workspace's owner.
    pub owner_id: UserId,
    /// The workspace's organization.
    pub organization_id: OrganizationId,
    /// The agent's name.
    pub agent_name: String,
    /// A later build has replaced the agent.
    pub is_retired: bool,
    /// The latest build starts the workspace.
    pub is_started: bool,
}

/// Where an agent of a workspace that is not deleted runs.
#[tracing::instrument(name = "db.agent.find_place", skip_all, fields(agent.id = %agent), err)]
pub async fn find_place(db: impl Executor<'_>, agent: AgentId) -> Result<Option<Place>, DbError> {
    let row = sqlx::query!(
        r#"
        select w.id, w.name as workspace_name, w.owner_id, w.organization_id, a.name,
               a.retired, b.transition = 'start' as "is_started!"
        from workspace_agents a
        join workspaces w on w.id = a.workspace_id
        join workspace_builds b on b.id = w.latest_build_id
        where a.id = $1 and not w.deleted"#,
        agent.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Place {
        workspace_id: WorkspaceId(row.id),
        workspace_name: row.workspace_name,
        owner_id: UserId(row.owner_id),
        organization_id: OrganizationId(row.organization_id),
        agent_name: row.name,
        is_retired: row.retired,
        is_started: row.is_started,
    }))
}
