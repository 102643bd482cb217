//! The result of a workspace build.

use berth_backbone::{Vault, Work};
use berth_db::completion::{self, Owner};
use berth_db::job::{self, Locked};
use berth_db::{DbError, build_state};
use berth_domain::state::{BuildStage, JobStatus};
use berth_proto::v1;

use super::collect::{self, Collected};
use super::rehearsal::{self, FoundBy};
use super::{Refusal, build_id};

/// Stores state, resources, agents and what belongs to them; agents of earlier builds are retired.
pub(super) async fn store(
    (vault, work): (&Vault, &mut Work),
    job: &Locked,
    status: JobStatus,
    result: &v1::WorkspaceBuildResult,
) -> Result<(), Refusal> {
    let id = build_id(job)
        .ok_or_else(|| Refusal::Template("the job's input names no build".to_owned()))?;
    let build = job::find_build_input(work.conn(), id)
        .await?
        .ok_or_else(|| Refusal::Template(format!("build {id} does not exist")))?;
    let now = work.now();
    let found = collect::collect(work.ids(), &result.resources).map_err(Refusal::Template)?;
    let state = vault.seal_state(build.workspace_id, &result.state)?;
    build_state::insert(work.conn(), id, &state).await?;
    completion::set_cost(work.conn(), id, found.daily_cost, now).await?;
    completion::retire_agents(work.conn(), build.workspace_id, id, now).await?;
    let is_claim = build.stage == BuildStage::Claim;
    let owner = Owner { workspace_id: build.workspace_id, build_id: id, is_claim };
    completion::insert_resources(work.conn(), job.id, build.transition, &found.resources, now)
        .await?;
    insert_agents(work, Some(owner), &found).await?;
    let found = rehearsal::replacements(&result.replacements);
    if is_claim
        && status == JobStatus::Succeeded
        && !found.is_empty()
        && let Some(preset) = build.preset_id
    {
        completion::count_replaced(work.conn(), preset).await?;
        rehearsal::tell(work, preset, &build, &found, FoundBy::Claim).await?;
    }
    Ok(())
}

/// Stores agents with their scripts and apps.
pub(super) async fn insert_agents(
    work: &mut Work,
    owner: Option<Owner>,
    found: &Collected,
) -> Result<(), DbError> {
    let now = work.now();
    if found.agents.is_empty() {
        return Ok(());
    }
    completion::insert_agents(work.conn(), owner, &found.agents, now).await?;
    completion::insert_scripts(work.conn(), &found.scripts, now).await?;
    completion::insert_apps(work.conn(), &found.apps, now).await
}
