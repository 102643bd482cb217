//! Agents by the cloud instance that they run on.

use berth_domain::id::{AgentId, WorkspaceId};
use uuid::Uuid;

use crate::{DbError, Executor};

/// Most agents of one instance that are looked at.
pub const MAX_AGENTS: i64 = 256;

/// An agent whose token is given to whoever shows its instance's identity. No `Debug`: it holds the
/// token.
#[derive(Clone, PartialEq, Eq)]
pub struct InstanceAgent {
    /// The agent.
    pub id: AgentId,
    /// Its name, unique in its workspace.
    pub name: String,
    /// Its token.
    pub token: Uuid,
    /// Its workspace.
    pub workspace_id: WorkspaceId,
}

/// The agents that run on `instance`, by name; at most [`MAX_AGENTS`]. None of earlier builds, of
/// deleted workspaces, or started by other agents.
#[tracing::instrument(name = "db.agent.list_of_instance", skip_all, err)]
pub async fn list_of_instance(
    db: impl Executor<'_>,
    instance: &str,
) -> Result<Vec<InstanceAgent>, DbError> {
    let rows = sqlx::query!(
        r#"
        select a.id, a.name, a.auth_token, w.id as "workspace_id!"
        from workspace_agents a
        join workspaces w on w.id = a.workspace_id
        where a.auth_instance_id = $1 and not a.retired and a.parent_id is null and not w.deleted
        order by a.name, a.id
        limit $2"#,
        instance,
        MAX_AGENTS
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| InstanceAgent {
            id: AgentId(row.id),
            name: row.name,
            token: row.auth_token,
            workspace_id: WorkspaceId(row.workspace_id),
        })
        .collect())
}
