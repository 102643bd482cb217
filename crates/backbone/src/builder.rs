//! Queues builds: the one place, called by the API, the reconciler and the lifecycle service.

use berth_bus::event::{BuildChanged, Event, JobPosted};
use berth_db::build::{self, NewBuild, QueuedBuild};
use berth_domain::id::{BuildId, JobId, PresetId, UserId, VersionId, WorkspaceId};
use berth_domain::state::{
    BuildReason, BuildStage, JobClass, JobStatus, PoolState, ProvisionerType, Transition,
};

use crate::Work;

/// A build to be queued. Parameters were validated and resolved by `domain::parameter`.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The version to build.
    pub version_id: VersionId,
    /// The preset that the parameters came from, if any.
    pub preset_id: Option<PresetId>,
    /// What it does.
    pub transition: Transition,
    /// Who asked.
    pub initiator_id: UserId,
    /// Why.
    pub reason: BuildReason,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// How urgent it is.
    pub class: JobClass,
    /// State of the pool member from now on; `None` for workspaces of people.
    pub pool_state: Option<PoolState>,
    /// Resolved parameters: name, value.
    pub parameters: Vec<(String, String)>,
}

/// Why a build was not queued.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The workspace is deleted, or its latest build is not finished.
    #[error(
        "workspace {0} is deleted or has a build that is not finished: wait for it or cancel it"
    )]
    Busy(WorkspaceId),
    /// The database.
    #[error("queue the build")]
    Db(#[from] berth_db::DbError),
}

/// A queued build and its job.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The build.
    pub build_id: BuildId,
    /// Its job.
    pub job_id: JobId,
    /// What was written.
    pub build: QueuedBuild,
}

/// Queues a build with its job and tells of both. One statement; the workspace row's lock makes a
/// second build of the same workspace impossible.
pub async fn queue(work: &mut Work, request: BuildRequest) -> Result<Queued, BuildError> {
    let new = NewBuild {
        id: BuildId(work.id()),
        job_id: JobId(work.id()),
        workspace_id: request.workspace_id,
        version_id: request.version_id,
        preset_id: request.preset_id,
        transition: request.transition,
        initiator_id: request.initiator_id,
        reason: request.reason,
        stage: request.stage,
        class: request.class,
        pool_state: request.pool_state,
        parameters: request.parameters,
        trace: work.trace(),
        now: work.now(),
    };
    let build =
        build::queue(work.conn(), &new).await?.ok_or(BuildError::Busy(request.workspace_id))?;
    announce(work, &new, &build);
    Ok(Queued { build_id: new.id, job_id: new.job_id, build })
}

/// Tells that a build was queued, and that a job is there. For statements of `db` that queue a
/// build together with something else (the claim).
pub fn announce(work: &mut Work, new: &NewBuild, build: &QueuedBuild) {
    work.emit(Event::Build(BuildChanged {
        organization_id: build.organization_id,
        workspace_id: new.workspace_id,
        workspace_name: build.workspace_name.clone(),
        owner_id: build.owner_id,
        template_id: build.template_id,
        build_id: new.id,
        build_number: build.number,
        transition: new.transition,
        stage: new.stage,
        job_status: JobStatus::Pending,
        revision: build.revision,
    }));
    post(work, build.organization_id, build.provisioner, 1);
}

/// Tells the brokers that so many jobs are there.
pub fn post(
    work: &mut Work,
    organization_id: berth_domain::id::OrganizationId,
    provisioner: ProvisionerType,
    count: u32,
) {
    work.emit(Event::JobPosted(JobPosted { organization_id, provisioner, count }));
}
