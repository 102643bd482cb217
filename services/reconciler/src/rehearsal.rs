//! Orders the rehearsal of a pool: what a claim would replace is known before anybody claims.

use berth_backbone::{Work, builder};
use berth_db::pool::{LockedPool, Observed};
use berth_db::rehearsal::{self, NewRehearsal};
use berth_domain::id::{JobId, PREBUILDS_USER, WorkspaceId};
use berth_domain::plan::{Action, Plan, Prebuild};
use berth_domain::state::PoolState;

/// Orders the rehearsal where it is due: the pool's first prebuild is ready and stays, nothing is
/// known yet, and nobody paused the pool. The caller holds the pool's lock and has carried the plan
/// out.
pub(crate) async fn order(work: &mut Work, observed: &Observed, plan: &Plan) -> anyhow::Result<()> {
    let LockedPool { config, is_unrehearsed, .. } = &observed.pool;
    let snapshot = &observed.snapshot;
    if !is_unrehearsed || !snapshot.pauses.is_empty() {
        return Ok(());
    }
    let goes = |it: &Prebuild| {
        let is_it = |id: &WorkspaceId| *id == it.workspace_id;
        let deletes = |action: &Action| matches!(action, Action::Delete { workspace_id, .. } if is_it(workspace_id));
        plan.actions.iter().any(deletes)
    };
    let mut ready = snapshot.prebuilds.iter().filter(|it| it.state == PoolState::Ready);
    if !ready.any(|it| !goes(it)) {
        return Ok(());
    }
    let new = NewRehearsal {
        preset_id: config.preset_id,
        job_id: JobId(work.id()),
        initiator: PREBUILDS_USER.0,
        trace: &work.trace(),
        now: work.now(),
    };
    if let Some((organization, provisioner)) = rehearsal::order(work.conn(), &new).await? {
        tracing::info!(job.id = %new.job_id, "rehearsal ordered");
        builder::post(work, organization, provisioner, 1);
    }
    Ok(())
}
