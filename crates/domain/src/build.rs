//! Small rules about builds and jobs (30-provisioning).

use std::collections::BTreeMap;

use crate::id::{PREBUILDS_USER, UserId};
use crate::state::{AgentLifecycle, BuildStage, JobClass, JobKind, JobStatus, Transition};

#[cfg(test)]
mod tests;

closed_set! {
    /// What a workspace is doing, as the REST contract shows it.
    WorkspaceStatus {
        /// The latest build's job is queued.
        Pending = "pending",
        /// A start runs.
        Starting = "starting",
        /// The latest build is a start that succeeded.
        Running = "running",
        /// A stop runs.
        Stopping = "stopping",
        /// The latest build is a stop that succeeded.
        Stopped = "stopped",
        /// The latest build failed.
        Failed = "failed",
        /// The latest build was asked to end.
        Canceling = "canceling",
        /// The latest build ended because it was asked to.
        Canceled = "canceled",
        /// A delete runs.
        Deleting = "deleting",
        /// The latest build is a delete that succeeded.
        Deleted = "deleted",
    }
}

/// The status of a workspace whose latest build has this transition and this job status.
#[must_use]
pub const fn workspace_status(transition: Transition, job: JobStatus) -> WorkspaceStatus {
    match (job, transition) {
        (JobStatus::Pending, _) => WorkspaceStatus::Pending,
        (JobStatus::Running, Transition::Start) => WorkspaceStatus::Starting,
        (JobStatus::Running, Transition::Stop) => WorkspaceStatus::Stopping,
        (JobStatus::Running, Transition::Delete) => WorkspaceStatus::Deleting,
        (JobStatus::Succeeded, Transition::Start) => WorkspaceStatus::Running,
        (JobStatus::Succeeded, Transition::Stop) => WorkspaceStatus::Stopped,
        (JobStatus::Succeeded, Transition::Delete) => WorkspaceStatus::Deleted,
        (JobStatus::Canceling, _) => WorkspaceStatus::Canceling,
        (JobStatus::Canceled, _) => WorkspaceStatus::Canceled,
        (JobStatus::Failed, _) => WorkspaceStatus::Failed,
    }
}

/// What the columns of a job say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobFacts<'a> {
    /// A daemon took it.
    pub started: bool,
    /// A cancel was asked.
    pub cancel_asked: bool,
    /// It ended.
    pub completed: bool,
    /// Its error text.
    pub error: Option<&'a str>,
}

/// The status of a job (30-provisioning, "Jobs"). A cancel that was asked decides over the error
/// text; a pending job that is cancelled is completed in the same statement.
#[must_use]
pub const fn job_status(facts: JobFacts<'_>) -> JobStatus {
    match facts {
        JobFacts { completed: true, cancel_asked: true, .. } => JobStatus::Canceled,
        JobFacts { completed: true, error: Some(_), .. } => JobStatus::Failed,
        JobFacts { completed: true, .. } => JobStatus::Succeeded,
        JobFacts { cancel_asked: true, .. } => JobStatus::Canceling,
        JobFacts { started: true, .. } => JobStatus::Running,
        JobFacts { .. } => JobStatus::Pending,
    }
}

/// The queue class of a job. `build` is the build it runs, if it runs one, and `initiator` whoever
/// asked for it: what a person does to a prebuild waits no longer than what he does to his own.
#[must_use]
pub fn job_class(
    kind: JobKind,
    build: Option<(Transition, BuildStage)>,
    initiator: UserId,
) -> JobClass {
    match (kind, build) {
        (JobKind::WorkspaceBuild, Some((_, BuildStage::Claim))) => JobClass::Claim,
        (JobKind::WorkspaceBuild, Some((Transition::Delete, BuildStage::Prebuild)))
            if initiator == PREBUILDS_USER =>
        {
            JobClass::PrebuildDelete
        }
        (JobKind::WorkspaceBuild, Some((_, BuildStage::Prebuild)))
            if initiator == PREBUILDS_USER =>
        {
            JobClass::PrebuildCreate
        }
        (JobKind::WorkspaceBuild, _) => JobClass::Human,
        (JobKind::TemplateVersionImport | JobKind::TemplateVersionDryRun, _) => JobClass::Template,
        // Nobody waits for it, but it should be over before somebody claims: a plan of one prebuild
        // goes before the making of others.
        (JobKind::Rehearsal, _) => JobClass::PrebuildDelete,
    }
}

/// Tags of a job or of a daemon.
pub type Tags = BTreeMap<String, String>;

/// The tag that says whose daemons may run a job.
pub const TAG_SCOPE: &str = "scope";
/// The tag that names the user of scope `user`.
pub const TAG_OWNER: &str = "owner";
/// Scope of an organization's daemons.
pub const SCOPE_ORGANIZATION: &str = "organization";
/// Scope of one user's own daemons.
pub const SCOPE_USER: &str = "user";

/// Normalises tags: scope `user` sets the owner to `user`, anything else is scope `organization`
/// with an empty owner. Other tags stay.
#[must_use]
pub fn normalize_tags(mut tags: Tags, user: UserId) -> Tags {
    let (scope, owner) = if tags.get(TAG_SCOPE).is_some_and(|it| it == SCOPE_USER) {
        (SCOPE_USER, user.to_string())
    } else {
        (SCOPE_ORGANIZATION, String::new())
    };
    tags.insert(TAG_SCOPE.to_owned(), scope.to_owned());
    tags.insert(TAG_OWNER.to_owned(), owner);
    tags
}

/// Whether normalised tags are those of a job that asked for none.
#[must_use]
pub fn is_untagged(tags: &Tags) -> bool {
    tags.len() == 2
        && tags.get(TAG_SCOPE).is_some_and(|it| it == SCOPE_ORGANIZATION)
        && tags.get(TAG_OWNER).is_some_and(String::is_empty)
}

/// Whether a daemon may run a job, both with normalised tags: the job's are among the daemon's. A
/// job that asked for none needs a daemon that has none, so that special daemons stay free.
#[must_use]
pub fn tags_match(job: &Tags, daemon: &Tags) -> bool {
    if is_untagged(job) {
        return job == daemon;
    }
    job.iter().all(|(key, value)| daemon.get(key) == Some(value))
}

/// An agent of a build, as far as readiness looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentReadiness {
    /// It was started by another agent (a dev container's), and blocks no claim.
    pub is_sub_agent: bool,
    /// Where it is in its life.
    pub lifecycle: AgentLifecycle,
}

/// Whether a build is ready (10-prebuilds, "Readiness"): every agent without a parent is. A build
/// without agents is ready.
#[must_use]
pub fn is_ready(agents: &[AgentReadiness]) -> bool {
    agents.iter().all(|it| it.is_sub_agent || it.lifecycle == AgentLifecycle::Ready)
}
