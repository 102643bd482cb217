//! Agents that went silent: marked, told of, and their prebuilds no longer handed out.

use berth_backbone::Backbone;
use berth_bus::event::{Event, Wake, WorkspaceChanged, WorkspaceVerb};
use berth_db::purge;
use jiff::SignedDuration;
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::config::AgentConfig;

/// Workspaces that one statement changes.
const BATCH: usize = 1_000;

/// Looks for silent agents.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) backbone: Backbone,
    pub(crate) config: AgentConfig,
    /// Agents found lost.
    pub(crate) lost: IntCounter,
}

impl Watch {
    /// Looks now and at every interval, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(crate::at_least(self.config.interval));
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
            loop {
                match self.look().await {
                    Ok(BATCH) if !stop.is_cancelled() => {}
                    Ok(_) => break,
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "silent agents not looked for; the next time does");
                        break;
                    }
                }
            }
        }
    }

    /// One statement, and the events of what it changed. Answers with the number of workspaces.
    #[tracing::instrument(name = "lifecycle.agents", level = "debug", skip_all, err)]
    async fn look(&self) -> anyhow::Result<usize> {
        let silence = SignedDuration::try_from(self.config.lost_after.as_duration())?;
        let mut work = self.backbone.begin().await?;
        let now = work.now();
        let before = now.checked_sub(silence)?;
        let limit = i64::try_from(BATCH)?;
        let found = purge::mark_agents_lost(work.conn(), before, now, limit).await?;
        for lost in &found {
            tracing::info!(workspace.id = %lost.workspace_id, agents = ?lost.agents, "agents lost");
            work.emit(Event::Workspace(WorkspaceChanged {
                organization_id: lost.organization_id,
                workspace_id: lost.workspace_id,
                owner_id: lost.owner_id,
                what: WorkspaceVerb::AgentLost,
                revision: lost.revision,
            }));
            if let Some(preset) = lost.preset_id {
                work.emit(Wake::pool(preset));
            }
        }
        work.commit().await?;
        self.lost.inc_by(found.iter().map(|it| it.agents.len() as u64).sum());
        Ok(found.len())
    }
}
