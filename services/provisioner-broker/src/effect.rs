//! What follows when jobs change or end, in the transaction in which they do: workspaces, pools,
//! claim attempts, and the events that tell of it.

use berth_backbone::Work;
use berth_backbone::builder::{self, BuildError, BuildRequest};
use berth_bus::event::{
    BuildChanged, ClaimFinished, Event, LogsAdded, Wake, WorkspaceChanged, WorkspaceVerb,
};
use berth_db::completion::{self, Facts};
use berth_db::job::Held;
use berth_db::{DbError, build, build_state, job, job_log, rehearsal};
use berth_domain::id::JobId;
use berth_domain::state::{
    BuildReason, BuildStage, JobClass, JobErrorCode, JobStatus, LogLevel, Transition,
};

use crate::broker::Broker;
use crate::error::SettleError;

/// Claim builds that a workspace gets: the first, and one more where the first failed through no
/// fault of the template.
const CLAIM_BUILDS: i64 = 2;

/// Tells of jobs that changed without ending.
pub(crate) async fn changed(work: &mut Work, jobs: &[JobId]) -> Result<(), DbError> {
    let now = work.now();
    for facts in completion::mark_workspaces(work.conn(), jobs, now).await? {
        tell(work, &facts);
    }
    Ok(())
}

/// Puts a job back that was taken for a caller who is gone.
pub(crate) async fn put_back(broker: &Broker, held: &Held) -> Result<(), DbError> {
    let mut work = broker.backbone.begin().await?;
    if job::release(work.conn(), held.id, held.lease).await? {
        changed(&mut work, &[held.id]).await?;
        builder::post(&mut work, held.organization_id, held.provisioner, 1);
        work.commit().await?;
    }
    Ok(())
}

/// What follows when jobs fail or are cancelled: no state is lost, costs stay, and then all of
/// [`ended`]. The jobs' rows say already that they ended.
pub(crate) async fn failed(work: &mut Work, jobs: &[JobId]) -> Result<(), SettleError> {
    build_state::carry(work.conn(), jobs).await?;
    completion::carry_costs(work.conn(), jobs).await?;
    // Some of the jobs run no build, so they may be rehearsals that found nothing.
    if ended(work, jobs, jobs).await? < jobs.len() {
        let now = work.now();
        for preset in rehearsal::mark_ended(work.conn(), jobs, now).await? {
            work.emit(Wake::pool(preset));
        }
    }
    Ok(())
}

/// What follows when jobs end, however they do. Builds are run by no others than `may_build`. Gives
/// how many of them do.
pub(crate) async fn ended(
    work: &mut Work,
    jobs: &[JobId],
    may_build: &[JobId],
) -> Result<usize, SettleError> {
    let now = work.now();
    let builds = if may_build.is_empty() {
        Vec::new()
    } else {
        completion::mark_workspaces(work.conn(), may_build, now).await?
    };
    if !builds.is_empty() {
        completion::mark_pools(work.conn(), may_build, now).await?;
        completion::mark_attempts(work.conn(), may_build).await?;
    }
    let deleted: Vec<_> =
        builds.iter().filter(|it| is_deletion(it)).map(|it| it.workspace_id).collect();
    if !deleted.is_empty() {
        completion::revoke_keys(work.conn(), &deleted).await?;
    }
    for facts in &builds {
        tell(work, facts);
        follow_up(work, facts).await?;
    }
    let last_ids = job_log::last_ids(work.conn(), jobs).await?;
    for job_id in jobs {
        let last_id = last_ids.get(job_id).copied().unwrap_or_default();
        work.emit(Event::Logs(LogsAdded { job_id: *job_id, last_id, end: true }));
    }
    Ok(builds.len())
}

/// Whether the workspace is gone now.
fn is_deletion(facts: &Facts) -> bool {
    facts.job_status == JobStatus::Succeeded && facts.transition == Transition::Delete
}

async fn follow_up(work: &mut Work, facts: &Facts) -> Result<(), SettleError> {
    let is_done = facts.job_status == JobStatus::Succeeded;
    if is_deletion(facts) {
        work.emit(Event::Workspace(WorkspaceChanged {
            organization_id: facts.organization_id,
            workspace_id: facts.workspace_id,
            owner_id: facts.owner_id,
            what: WorkspaceVerb::Deleted,
            revision: facts.revision,
        }));
    }
    if facts.stage == BuildStage::Claim && (is_done || !claim_again(work, facts).await?) {
        work.emit(Event::Claim(ClaimFinished {
            workspace_id: facts.workspace_id,
            owner_id: facts.owner_id,
            build_id: facts.build_id,
            job_status: facts.job_status,
            reason: "prebuild_claimed".to_owned(),
            error: facts.error.clone(),
        }));
    }
    if let Some(preset) = facts.pool_preset_id {
        work.emit(Wake::pool(preset));
    }
    Ok(())
}

/// Whether a build failed through no fault of its template, and nobody wanted it to end. A cancel that
/// no person asked for is the system's.
fn is_lost(facts: &Facts) -> bool {
    use JobErrorCode::{Canceled, Infrastructure, NoProvisioner};
    match facts.job_status {
        JobStatus::Failed => matches!(facts.error_code, Some(Infrastructure | Canceled)),
        // Whatever a daemon says of a job that a person cancelled, it is cancelled.
        JobStatus::Canceled => facts.error_code == Some(NoProvisioner),
        _ => false,
    }
}

/// Queues a claim build once more where it failed through no fault of the template. The workspace's row
/// is locked since it was marked: whoever else ends a build of it comes after.
async fn claim_again(work: &mut Work, facts: &Facts) -> Result<bool, SettleError> {
    let had = if is_lost(facts) {
        completion::count_claim_builds(work.conn(), facts.workspace_id).await?
    } else {
        CLAIM_BUILDS
    };
    if had >= CLAIM_BUILDS {
        return Ok(false);
    }
    let request = BuildRequest {
        workspace_id: facts.workspace_id,
        version_id: facts.version_id,
        preset_id: facts.preset_id,
        transition: Transition::Start,
        initiator_id: facts.initiator_id,
        reason: BuildReason::Initiator,
        stage: BuildStage::Claim,
        class: JobClass::Claim,
        pool_state: None,
        parameters: build::list_parameters(work.conn(), facts.build_id).await?,
    };
    let queued = match builder::queue(work, request).await {
        Ok(queued) => queued,
        // Deleted, or the owner was quicker: nothing to try again.
        Err(BuildError::Busy(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    completion::replace_claim(work.conn(), facts, queued.build_id).await?;
    let text = format!(
        "The template is not to blame: the workspace is handed over once more, in build {}.",
        queued.build.number
    );
    let now = work.now();
    job_log::insert_notes(work.conn(), &[facts.job_id], LogLevel::Warn, &text, now).await?;
    tracing::warn!(
        workspace.id = %facts.workspace_id,
        build.id = %queued.build_id,
        "claim build lost; queued once more"
    );
    Ok(true)
}

fn tell(work: &mut Work, facts: &Facts) {
    work.emit(Event::Build(BuildChanged {
        organization_id: facts.organization_id,
        workspace_id: facts.workspace_id,
        workspace_name: facts.workspace_name.clone(),
        owner_id: facts.owner_id,
        template_id: facts.template_id,
        build_id: facts.build_id,
        build_number: facts.build_number,
        transition: facts.transition,
        stage: facts.stage,
        job_status: facts.job_status,
        revision: facts.revision,
    }));
}
