//! What Berth tells the world. A payload is JSON; fields are only added, and a reader ignores what
//! it does not know.

use berth_domain::id::{
    BuildId, JobId, NotificationTemplateId, OrganizationId, PresetId, TemplateId, UserId,
    WorkspaceId,
};
use berth_domain::state::{BuildStage, JobStatus, ProvisionerType, Transition};
use serde::{Deserialize, Serialize};

/// A notice. Stored ones go through the outbox and JetStream; the others are published once, after
/// the commit, and a poll stands behind each.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A workspace build changed. Stored in `BUILDS`.
    Build(BuildChanged),
    /// A claim build ended: the workspace's agents reinitialise, or stop waiting. Stored in `CLAIMS`.
    Claim(ClaimFinished),
    /// A workspace changed. Stored in `WORKSPACES`.
    Workspace(WorkspaceChanged),
    /// A template changed. Stored in `TEMPLATES`.
    Template(TemplateChanged),
    /// A service should look at a key now; ten hints become one. Stored in `WAKE`.
    Wake(Wake),
    /// A message to people. Stored in `NOTIFY`.
    Notify(Notify),
    /// Jobs may be there. Not stored.
    JobPosted(JobPosted),
    /// Stop a job. Not stored.
    JobCanceled(JobCanceled),
    /// Daemons are to take no new jobs, or to take them again. Not stored.
    DaemonsDrained(DaemonsDrained),
    /// A job has new log lines. Not stored.
    Logs(LogsAdded),
}

/// A workspace build changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildChanged {
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name at that moment.
    pub workspace_name: String,
    /// Who owned it at that moment.
    pub owner_id: UserId,
    /// Its template.
    pub template_id: TemplateId,
    /// The build.
    pub build_id: BuildId,
    /// Number of the build, from 1.
    pub build_number: i32,
    /// What it does.
    pub transition: Transition,
    /// What it is in the life of a prebuild.
    pub stage: BuildStage,
    /// Where its job stands. `pending` is told on the subject as `queued`.
    pub job_status: JobStatus,
    /// Grows with each committed change of the workspace: drop what is older than what was seen.
    pub revision: i64,
}

/// A claim build ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimFinished {
    /// The claimed workspace.
    pub workspace_id: WorkspaceId,
    /// Its new owner.
    pub owner_id: UserId,
    /// The claim build.
    pub build_id: BuildId,
    /// `succeeded`, `failed` or `canceled`.
    pub job_status: JobStatus,
    /// Always `prebuild_claimed`: what the agent is told.
    pub reason: String,
    /// Why it failed; empty on success.
    #[serde(default)]
    pub error: String,
}

/// What happened to a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceVerb {
    /// It exists.
    Created,
    /// A prebuild changed hands.
    Claimed,
    /// It is gone.
    Deleted,
    /// One of its agents was heard of for the first time.
    AgentConnected,
    /// One of its agents became ready.
    AgentReady,
    /// One of its agents has not been heard of for too long.
    AgentLost,
    /// Anything else a watcher of the one workspace should look at.
    Updated,
}

/// A workspace changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkspaceChanged {
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Who owns it.
    pub owner_id: UserId,
    /// What happened.
    pub what: WorkspaceVerb,
    /// Grows with each committed change of the workspace.
    pub revision: i64,
}

/// What happened to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateVerb {
    /// Another version is active.
    Promoted,
    /// Its prebuilds, or one preset's, were invalidated.
    Invalidated,
    /// Its pool policy changed.
    PolicyChanged,
    /// It is gone.
    Deleted,
}

/// A template changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateChanged {
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The template.
    pub template_id: TemplateId,
    /// What happened.
    pub what: TemplateVerb,
}

/// The services that are woken by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sleeper {
    /// Its keys are presets.
    Reconciler,
    /// Its keys are organizations.
    MembershipReconciler,
    /// Its keys are notification methods.
    Notification,
    /// Its keys are workspaces.
    Lifecycle,
}

impl Sleeper {
    /// The service's name, as in subjects and durables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reconciler => "reconciler",
            Self::MembershipReconciler => "membership-reconciler",
            Self::Notification => "notification",
            Self::Lifecycle => "lifecycle",
        }
    }
}

/// Pools that are woken one by one; for more, one sweep finds their marks.
const POOLS_MAX: usize = 16;

/// Look at this key now. Carries no payload: whoever wakes reads the rest from Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wake {
    /// Who.
    pub service: Sleeper,
    /// What; one subject token.
    pub key: String,
}

impl Wake {
    /// The reconciler's key that stands for all marked pools.
    pub const SWEEP: &str = "sweep";

    /// Wakes the reconciler for one preset.
    #[must_use]
    pub fn pool(preset: PresetId) -> Event {
        Event::Wake(Self { service: Sleeper::Reconciler, key: preset.to_string() })
    }

    /// Wakes the reconciler for all marked pools: a change that concerns many of them marks them in
    /// one statement and says so once.
    #[must_use]
    pub fn sweep() -> Event {
        Event::Wake(Self { service: Sleeper::Reconciler, key: Self::SWEEP.to_owned() })
    }

    /// Wakes the reconciler for some presets: each, or all at once where they are many.
    #[must_use]
    pub fn pools(presets: &[PresetId]) -> Vec<Event> {
        if presets.len() > POOLS_MAX {
            return vec![Self::sweep()];
        }
        presets.iter().copied().map(Self::pool).collect()
    }

    /// Wakes the membership reconciler for one organization.
    #[must_use]
    pub fn membership(organization: OrganizationId) -> Event {
        Event::Wake(Self { service: Sleeper::MembershipReconciler, key: organization.to_string() })
    }
}

/// A message to people, to be expanded to recipients by the notification service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notify {
    /// Which message.
    pub template: NotificationTemplateId,
    /// Whose template admins receive it, when it goes to them.
    pub organization_id: OrganizationId,
    /// The one user it is for; `None`: the template's usual recipients.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// Text values of the message, by name.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Anything else the message shows.
    #[serde(default)]
    pub data: serde_json::Value,
    /// What it is about: ids of templates, workspaces, …
    #[serde(default)]
    pub targets: Vec<uuid::Uuid>,
}

/// Jobs may be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPosted {
    /// Whose daemons may run them.
    pub organization_id: OrganizationId,
    /// Which tool they need.
    pub provisioner: ProvisionerType,
    /// How many.
    pub count: u32,
}

/// Stop a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCanceled {
    /// Which.
    pub job_id: JobId,
}

/// Daemons are to take no new jobs, or to take them again: which, is in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonsDrained {
    /// Whose daemons.
    pub organization_id: OrganizationId,
}

/// A job has new log lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsAdded {
    /// The job.
    pub job_id: JobId,
    /// Id of the newest stored line.
    pub last_id: i64,
    /// No more will come.
    pub end: bool,
}
