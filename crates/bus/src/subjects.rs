//! Subjects, streams and durables: the table of 40-events, and nowhere else.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use berth_domain::id::{AgentId, AttachmentId, JobId, OrganizationId, WorkspaceId};
use berth_domain::state::JobStatus;

use crate::event::{Event, Sleeper, TemplateVerb, WorkspaceVerb};

/// How long watchers can look back.
pub const RETENTION: Duration = Duration::from_hours(24);

/// A stream by its role; its name on the server carries the deployment's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Every change of every workspace build.
    Builds,
    /// Ends of claim builds.
    Claims,
    /// Changes of workspaces.
    Workspaces,
    /// Changes of templates.
    Templates,
    /// Hints to look at a key.
    Wake,
    /// Messages to people.
    Notify,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Builds, Self::Claims, Self::Workspaces, Self::Templates, Self::Wake, Self::Notify];

    const fn token(self) -> &'static str {
        match self {
            Self::Builds => "builds",
            Self::Claims => "claims",
            Self::Workspaces => "workspaces",
            Self::Templates => "templates",
            Self::Wake => "wake",
            Self::Notify => "notify",
        }
    }
}

/// Names for one deployment. The prefix is `berth`, except where several deployments share a
/// server, as tests do.
#[derive(Debug, Clone)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// Names under `prefix`, which must be one subject token.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The stream's name: `BUILDS`, or `<PREFIX>_BUILDS` under another prefix than `berth`.
    #[must_use]
    pub fn stream(&self, stream: Stream) -> String {
        let token = stream.token().to_uppercase();
        if self.prefix == "berth" {
            token
        } else {
            format!("{}_{token}", self.prefix.to_uppercase())
        }
    }

    /// Everything in a stream.
    #[must_use]
    pub fn all(&self, stream: Stream) -> String {
        format!("{}.{}.>", self.prefix, stream.token())
    }

    /// Changes of one workspace.
    #[must_use]
    pub fn workspace(&self, organization: OrganizationId, workspace: WorkspaceId) -> String {
        format!("{}.workspaces.{organization}.{workspace}.*", self.prefix)
    }

    /// Builds of one workspace.
    #[must_use]
    pub fn builds_of(&self, organization: OrganizationId, workspace: WorkspaceId) -> String {
        format!("{}.builds.{organization}.{workspace}.*", self.prefix)
    }

    /// Ends of the workspace's claim build.
    #[must_use]
    pub fn claim(&self, workspace: WorkspaceId) -> String {
        format!("{}.claims.{workspace}", self.prefix)
    }

    /// Hints for one service.
    #[must_use]
    pub fn wakes(&self, service: Sleeper) -> String {
        format!("{}.wake.{}.*", self.prefix, service.name())
    }

    /// Job postings of all organizations.
    #[must_use]
    pub fn jobs_posted(&self) -> String {
        format!("{}.jobs.posted.*.*", self.prefix)
    }

    /// Cancel notices of all jobs.
    #[must_use]
    pub fn jobs_canceled(&self) -> String {
        format!("{}.jobs.canceled.*", self.prefix)
    }

    /// Notices that daemons are to take no new jobs, or to take them again, of all organizations.
    #[must_use]
    pub fn daemons_drained(&self) -> String {
        format!("{}.provisioners.drained.*", self.prefix)
    }

    /// New log lines of one job.
    #[must_use]
    pub fn logs(&self, job: JobId) -> String {
        format!("{}.logs.{job}", self.prefix)
    }

    /// Frames for one agent's terminals.
    #[must_use]
    pub fn terminals_in(&self, agent: AgentId) -> String {
        format!("{}.terminals.{agent}.in", self.prefix)
    }

    /// Frames from one agent for one attachment.
    #[must_use]
    pub fn terminal_out(&self, agent: AgentId, attachment: AttachmentId) -> String {
        format!("{}.terminals.{agent}.out.{attachment}", self.prefix)
    }

    /// The subject of an event.
    #[must_use]
    pub fn of(&self, event: &Event) -> String {
        let prefix = &self.prefix;
        match event {
            Event::Build(it) => {
                let (org, workspace) = (it.organization_id, it.workspace_id);
                format!("{prefix}.builds.{org}.{workspace}.{}", build_status(it.job_status))
            }
            Event::Claim(it) => self.claim(it.workspace_id),
            Event::Workspace(it) => {
                let (org, workspace) = (it.organization_id, it.workspace_id);
                format!("{prefix}.workspaces.{org}.{workspace}.{}", workspace_verb(it.what))
            }
            Event::Template(it) => {
                let (org, template) = (it.organization_id, it.template_id);
                format!("{prefix}.templates.{org}.{template}.{}", template_verb(it.what))
            }
            Event::Wake(it) => format!("{prefix}.wake.{}.{}", it.service.name(), it.key),
            Event::Notify(it) => format!("{prefix}.notify.{}", it.template),
            Event::JobPosted(it) => {
                format!("{prefix}.jobs.posted.{}.{}", it.organization_id, it.provisioner)
            }
            Event::JobCanceled(it) => format!("{prefix}.jobs.canceled.{}", it.job_id),
            Event::DaemonsDrained(it) => {
                format!("{prefix}.provisioners.drained.{}", it.organization_id)
            }
            Event::Logs(it) => self.logs(it.job_id),
        }
    }

    /// How a stream is made.
    #[must_use]
    pub(crate) fn config(&self, stream: Stream) -> Config {
        let base = Config {
            name: self.stream(stream),
            subjects: vec![self.all(stream)],
            storage: StorageType::File,
            ..Config::default()
        };
        match stream {
            Stream::Builds | Stream::Claims | Stream::Workspaces | Stream::Templates => {
                Config { retention: RetentionPolicy::Limits, max_age: RETENTION, ..base }
            }
            // One message a subject: ten hints to look at a key become one.
            Stream::Wake => Config {
                retention: RetentionPolicy::WorkQueue,
                max_messages_per_subject: 1,
                discard: DiscardPolicy::Old,
                max_age: RETENTION,
                ..base
            },
            Stream::Notify => Config { retention: RetentionPolicy::WorkQueue, ..base },
        }
    }
}

/// A build's status as a subject token.
#[must_use]
pub const fn build_status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Pending => "queued",
        other => other.as_str(),
    }
}

const fn workspace_verb(verb: WorkspaceVerb) -> &'static str {
    match verb {
        WorkspaceVerb::Created => "created",
        WorkspaceVerb::Claimed => "claimed",
        WorkspaceVerb::Deleted => "deleted",
        WorkspaceVerb::AgentConnected => "agent_connected",
        WorkspaceVerb::AgentReady => "agent_ready",
        WorkspaceVerb::AgentLost => "agent_lost",
        WorkspaceVerb::Updated => "updated",
    }
}

const fn template_verb(verb: TemplateVerb) -> &'static str {
    match verb {
        TemplateVerb::Promoted => "promoted",
        TemplateVerb::Invalidated => "invalidated",
        TemplateVerb::PolicyChanged => "policy_changed",
        TemplateVerb::Deleted => "deleted",
    }
}
