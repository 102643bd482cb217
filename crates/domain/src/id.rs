//! Identifiers. Every entity has its own type, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )+};
}

ids! {
    /// An organization.
    OrganizationId,
    /// A user, the prebuilds user included.
    UserId,
    /// A group of users of one organization.
    GroupId,
    /// An uploaded file (a template archive, a module cache).
    FileId,
    /// A template.
    TemplateId,
    /// One version of a template.
    VersionId,
    /// A preset of one template version; also the key of its pool.
    PresetId,
    /// A provisioner key.
    ProvisionerKeyId,
    /// A registered provisioner daemon.
    DaemonId,
    /// A provisioner job.
    JobId,
    /// A warm promotion of a template version.
    PromotionId,
    /// One holding of a job by one daemon; every report carries it.
    LeaseToken,
    /// A workspace.
    WorkspaceId,
    /// One build of a workspace.
    BuildId,
    /// A resource of a build.
    ResourceId,
    /// An agent of a build.
    AgentId,
    /// An app of an agent.
    AppId,
    /// One connection of a person to a shell in a workspace.
    AttachmentId,
    /// A script of an agent.
    ScriptId,
    /// Where an agent's log lines come from.
    LogSourceId,
    /// An event; also its outbox row and its `Nats-Msg-Id`.
    EventId,
    /// A kind of notification (the table of 70-notifications).
    NotificationTemplateId,
    /// One notification in a user's inbox.
    InboxId,
}

/// The system user that owns every prebuild and initiates its builds. It can neither log in nor
/// hold API keys.
pub const PREBUILDS_USER: UserId =
    UserId(Uuid::from_u128(0xc42f_df75_3097_471c_8c33_fb52_454d_81c0));
