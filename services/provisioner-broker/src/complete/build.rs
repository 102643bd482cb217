//! What builds made.

use berth_backbone::{Vault, Work};
use berth_db::DbError;
use berth_db::completion::{self, Owner, Place, Settled};
use berth_db::job::{self, EndedBuild, Locked};
use berth_domain::id::JobId;
use berth_domain::state::{BuildStage, JobStatus};
use berth_proto::v1;

use super::collect::{self, Collected};
use super::rehearsal::{self, FoundBy};
use super::{Refusal, build_id};
use crate::error::SettleError;

/// A build that its tool ended, and what it made.
pub(super) struct Made<'a> {
    pub(super) job: JobId,
    pub(super) build: EndedBuild,
    pub(super) state: &'a [u8],
    pub(super) found: &'a Collected,
}

/// Stores the result of one build, and tells of what a claim replaced.
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
    let found =
        collect::collect(work.ids(), job.id, &result.resources).map_err(Refusal::Template)?;
    let ended = EndedBuild {
        id,
        workspace_id: build.workspace_id,
        transition: build.transition,
        stage: build.stage,
    };
    let made = Made { job: job.id, build: ended, state: &result.state, found: &found };
    store_made((vault, work), &[made]).await?;
    let found = rehearsal::replacements(&result.replacements);
    if build.stage == BuildStage::Claim
        && status == JobStatus::Succeeded
        && !found.is_empty()
        && let Some(preset) = build.preset_id
    {
        completion::count_replaced(work.conn(), preset).await?;
        rehearsal::tell(work, preset, &build, &found, FoundBy::Claim).await?;
    }
    Ok(())
}

/// Stores states, costs, resources, agents and what belongs to them; agents of earlier builds are
/// retired.
pub(super) async fn store_made(
    (vault, work): (&Vault, &mut Work),
    all: &[Made<'_>],
) -> Result<(), SettleError> {
    let mut builds = Vec::with_capacity(all.len());
    for it in all {
        builds.push(Settled {
            build_id: it.build.id,
            workspace_id: it.build.workspace_id,
            daily_cost: it.found.daily_cost,
            state: vault.seal_state(it.build.workspace_id, it.state)?,
        });
    }
    let now = work.now();
    completion::settle(work.conn(), &builds, now).await?;
    let places: Vec<Place> = all.iter().map(Made::place).collect();
    let found: Vec<&Collected> = all.iter().map(|it| it.found).collect();
    Ok(insert(work, &places, &found).await?)
}

impl Made<'_> {
    fn place(&self) -> Place {
        let owner = Owner {
            workspace_id: self.build.workspace_id,
            build_id: self.build.id,
            is_claim: self.build.stage == BuildStage::Claim,
        };
        Place { job_id: self.job, transition: self.build.transition, owner: Some(owner) }
    }
}

/// Stores resources and agents of jobs, with scripts and apps: a statement for each kind of row that
/// there is.
pub(super) async fn insert(
    work: &mut Work,
    places: &[Place],
    found: &[&Collected],
) -> Result<(), DbError> {
    let now = work.now();
    let resources: Vec<_> = found.iter().flat_map(|it| &it.resources).collect();
    if !resources.is_empty() {
        completion::insert_resources(work.conn(), places, &resources, now).await?;
    }
    let agents: Vec<_> = found.iter().flat_map(|it| &it.agents).collect();
    if agents.is_empty() {
        return Ok(());
    }
    completion::insert_agents(work.conn(), places, &agents, now).await?;
    let scripts: Vec<_> = found.iter().flat_map(|it| &it.scripts).collect();
    if !scripts.is_empty() {
        completion::insert_scripts(work.conn(), &scripts, now).await?;
    }
    let apps: Vec<_> = found.iter().flat_map(|it| &it.apps).collect();
    if !apps.is_empty() {
        completion::insert_apps(work.conn(), &apps, now).await?;
    }
    Ok(())
}
