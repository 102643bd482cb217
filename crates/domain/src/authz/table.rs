//! The role tables. Data only; the matrix test writes out what they amount to.

use super::Action::{
    ApplicationConnect, Assign, Create, CreateAgent, Delete, DeleteAgent, Read, ReadPersonal, Ssh,
    Start, Stop, Unassign, Update, UpdatePersonal, Use, ViewInsights,
};
use super::ResourceKind as Kind;
use super::{AclRole, Action, OrganizationRole, ServiceActor, SiteRole};

/// Whose resources a grant covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Everybody's.
    Any,
    /// The subject's own.
    Own,
    /// The prebuilds user's.
    Prebuilds,
    /// Everybody's but the prebuilds user's.
    Ordinary,
}

/// What a grant allows on its kinds.
#[derive(Debug, Clone, Copy)]
enum Allows {
    /// Everything that can be done to the kind.
    Everything,
    /// Only these.
    Only(&'static [Action]),
    /// Everything but these.
    But(&'static [Action]),
}

/// One line of a role's table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) kinds: &'static [Kind],
    allows: Allows,
    pub(super) whose: Whose,
}

impl Grant {
    pub(super) fn allows(&self, action: Action, kind: Kind) -> bool {
        available(kind).contains(&action)
            && match self.allows {
                Allows::Everything => true,
                Allows::Only(actions) => actions.contains(&action),
                Allows::But(actions) => !actions.contains(&action),
            }
    }
}

const fn any(kinds: &'static [Kind], actions: &'static [Action]) -> Grant {
    Grant { kinds, allows: Allows::Only(actions), whose: Whose::Any }
}

const fn everything(kinds: &'static [Kind]) -> Grant {
    Grant { kinds, allows: Allows::Everything, whose: Whose::Any }
}

const fn own(kinds: &'static [Kind]) -> Grant {
    Grant { kinds, allows: Allows::Everything, whose: Whose::Own }
}

const fn of(whose: Whose, kinds: &'static [Kind], actions: &'static [Action]) -> Grant {
    Grant { kinds, allows: Allows::Only(actions), whose }
}

const CRUD: &[Action] = &[Create, Read, Update, Delete];

/// What can be done to a resource of this kind at all.
#[must_use]
pub const fn available(kind: Kind) -> &'static [Action] {
    match kind {
        Kind::ApiKey
        | Kind::Group
        | Kind::NotificationMessage
        | Kind::Organization
        | Kind::OrganizationMember
        | Kind::ProvisionerDaemon
        | Kind::System
        | Kind::UserSecret => CRUD,
        Kind::AssignOrgRole => &[Assign, Unassign, Create, Read, Update, Delete],
        Kind::AssignRole => &[Assign, Unassign, Read],
        Kind::DebugInfo | Kind::DeploymentStats | Kind::GroupMember => &[Read],
        Kind::DeploymentConfig
        | Kind::IdpsyncSettings
        | Kind::NotificationPreference
        | Kind::NotificationTemplate => &[Read, Update],
        Kind::AuditLog | Kind::File => &[Create, Read],
        Kind::InboxNotification | Kind::ProvisionerJobs | Kind::WorkspaceAgentResourceMonitor => {
            &[Create, Read, Update]
        }
        Kind::PrebuiltWorkspace => &[Update, Delete],
        Kind::Template => &[Create, Read, Update, Delete, Use, ViewInsights],
        Kind::User => &[Create, Read, Update, Delete, ReadPersonal, UpdatePersonal],
        Kind::Workspace => &[
            Create,
            Read,
            Update,
            Delete,
            Start,
            Stop,
            Ssh,
            ApplicationConnect,
            CreateAgent,
            DeleteAgent,
        ],
        Kind::WorkspaceDormant => &[Create, Read, Update, Delete, Stop, CreateAgent, DeleteAgent],
    }
}

// Everything but other people's secrets.
const SITE_OWNER: &[Grant] = &[everything(OWNED_BY_OWNER)];

const SITE_USER_ADMIN: &[Grant] = &[
    any(&[Kind::AssignRole, Kind::AssignOrgRole], &[Assign, Unassign, Read]),
    everything(&[
        Kind::User,
        Kind::OrganizationMember,
        Kind::Group,
        Kind::GroupMember,
        Kind::IdpsyncSettings,
    ]),
    any(&[Kind::Organization], &[Read]),
];

const SITE_TEMPLATE_ADMIN: &[Grant] = &[
    everything(&[
        Kind::Template,
        Kind::File,
        Kind::PrebuiltWorkspace,
        Kind::ProvisionerDaemon,
        Kind::ProvisionerJobs,
    ]),
    any(
        &[
            Kind::Workspace,
            Kind::Organization,
            Kind::OrganizationMember,
            Kind::User,
            Kind::Group,
            Kind::GroupMember,
        ],
        &[Read],
    ),
];

const SITE_AUDITOR: &[Grant] = &[
    any(&[Kind::Template], &[Read, ViewInsights]),
    any(
        &[
            Kind::AuditLog,
            Kind::User,
            Kind::Group,
            Kind::GroupMember,
            Kind::Organization,
            Kind::OrganizationMember,
            Kind::DeploymentConfig,
            Kind::DeploymentStats,
        ],
        &[Read],
    ),
];

const SITE_MEMBER: &[Grant] = &[
    any(&[Kind::AssignRole], &[Read]),
    own(&[Kind::ApiKey, Kind::UserSecret, Kind::File, Kind::NotificationPreference]),
    of(Whose::Own, &[Kind::User], &[Read, ReadPersonal, UpdatePersonal]),
    of(Whose::Own, &[Kind::InboxNotification], &[Read, Update]),
];

/// Grants of a site role.
pub(super) const fn site(role: SiteRole) -> &'static [Grant] {
    match role {
        SiteRole::Owner => SITE_OWNER,
        SiteRole::UserAdmin => SITE_USER_ADMIN,
        SiteRole::TemplateAdmin => SITE_TEMPLATE_ADMIN,
        SiteRole::Auditor => SITE_AUDITOR,
        SiteRole::Member => SITE_MEMBER,
    }
}

const OWNED_BY_OWNER: &[Kind] = &[
    Kind::ApiKey,
    Kind::AssignOrgRole,
    Kind::AssignRole,
    Kind::AuditLog,
    Kind::DebugInfo,
    Kind::DeploymentConfig,
    Kind::DeploymentStats,
    Kind::File,
    Kind::Group,
    Kind::GroupMember,
    Kind::IdpsyncSettings,
    Kind::InboxNotification,
    Kind::NotificationMessage,
    Kind::NotificationPreference,
    Kind::NotificationTemplate,
    Kind::Organization,
    Kind::OrganizationMember,
    Kind::PrebuiltWorkspace,
    Kind::ProvisionerDaemon,
    Kind::ProvisionerJobs,
    Kind::System,
    Kind::Template,
    Kind::User,
    Kind::Workspace,
    Kind::WorkspaceAgentResourceMonitor,
    Kind::WorkspaceDormant,
];

const ORGANIZATION_ADMIN: &[Grant] = &[
    everything(&[
        Kind::AssignOrgRole,
        Kind::Group,
        Kind::GroupMember,
        Kind::IdpsyncSettings,
        Kind::OrganizationMember,
        Kind::PrebuiltWorkspace,
        Kind::ProvisionerDaemon,
        Kind::ProvisionerJobs,
        Kind::Template,
        Kind::WorkspaceAgentResourceMonitor,
        Kind::WorkspaceDormant,
    ]),
    any(&[Kind::Organization], &[Read, Update, Delete]),
    any(&[Kind::AuditLog], &[Read]),
    // Running an organization is no reason to look into its members' workspaces.
    Grant {
        kinds: &[Kind::Workspace],
        allows: Allows::But(&[ApplicationConnect, Ssh]),
        whose: Whose::Any,
    },
];

const ORGANIZATION_USER_ADMIN: &[Grant] = &[
    any(&[Kind::AssignOrgRole], &[Assign, Unassign, Read]),
    everything(&[Kind::OrganizationMember, Kind::Group, Kind::GroupMember, Kind::IdpsyncSettings]),
];

const ORGANIZATION_TEMPLATE_ADMIN: &[Grant] = &[
    everything(&[
        Kind::Template,
        Kind::PrebuiltWorkspace,
        Kind::ProvisionerDaemon,
        Kind::ProvisionerJobs,
    ]),
    any(&[Kind::Workspace, Kind::OrganizationMember, Kind::Group, Kind::GroupMember], &[Read]),
];

const ORGANIZATION_AUDITOR: &[Grant] = &[
    any(&[Kind::Template], &[Read, ViewInsights]),
    any(&[Kind::AuditLog, Kind::OrganizationMember, Kind::Group, Kind::GroupMember], &[Read]),
];

const ORGANIZATION_MEMBER: &[Grant] = &[
    any(&[Kind::Organization, Kind::AssignOrgRole, Kind::ProvisionerDaemon], &[Read]),
    own(&[Kind::Workspace, Kind::WorkspaceDormant, Kind::WorkspaceAgentResourceMonitor]),
    of(Whose::Own, &[Kind::OrganizationMember, Kind::GroupMember], &[Read]),
];

const ORGANIZATION_WORKSPACE_CREATION_BAN: &[Grant] = &[];

/// Grants of a role in its organization.
pub(super) const fn organization(role: OrganizationRole) -> &'static [Grant] {
    match role {
        OrganizationRole::Admin => ORGANIZATION_ADMIN,
        OrganizationRole::UserAdmin => ORGANIZATION_USER_ADMIN,
        OrganizationRole::TemplateAdmin => ORGANIZATION_TEMPLATE_ADMIN,
        OrganizationRole::Auditor => ORGANIZATION_AUDITOR,
        OrganizationRole::Member => ORGANIZATION_MEMBER,
        OrganizationRole::WorkspaceCreationBan => ORGANIZATION_WORKSPACE_CREATION_BAN,
    }
}

const SERVICE_PREBUILDS_ORCHESTRATOR: &[Grant] = &[
    any(&[Kind::Template], &[Read, Use]),
    any(&[Kind::ProvisionerDaemon, Kind::Organization, Kind::Group], &[Read]),
    any(&[Kind::ProvisionerJobs], &[Create, Read, Update]),
    any(&[Kind::NotificationMessage], &[Create]),
    of(Whose::Prebuilds, &[Kind::Workspace], &[Create, Read, Update, Delete, Start, Stop]),
];

const SERVICE_MEMBERSHIP_RECONCILER: &[Grant] = &[
    any(&[Kind::Organization, Kind::Template, Kind::GroupMember], &[Read]),
    of(Whose::Prebuilds, &[Kind::OrganizationMember], &[Create, Read, Delete]),
    any(&[Kind::Group], CRUD),
];

const SERVICE_PROVISIONER_BROKER: &[Grant] = &[
    any(&[Kind::ProvisionerJobs], &[Create, Read, Update]),
    any(&[Kind::ProvisionerDaemon], &[Create, Read, Update]),
    any(&[Kind::File], &[Create, Read]),
    any(&[Kind::Template], &[Read, Update]),
    any(&[Kind::Workspace, Kind::WorkspaceDormant], &[Read, Update, Delete]),
    any(&[Kind::ApiKey], &[Create, Delete]),
    any(&[Kind::NotificationMessage], &[Create]),
    any(&[Kind::User, Kind::UserSecret, Kind::Group, Kind::Organization], &[Read]),
];

const SERVICE_NOTIFIER: &[Grant] = &[
    everything(&[Kind::NotificationMessage]),
    any(&[Kind::InboxNotification], &[Create, Read]),
    any(
        &[
            Kind::NotificationTemplate,
            Kind::NotificationPreference,
            Kind::User,
            Kind::OrganizationMember,
            Kind::Organization,
            Kind::Template,
            Kind::Workspace,
        ],
        &[Read],
    ),
];

const SERVICE_LIFECYCLE_EXECUTOR: &[Grant] = &[
    of(
        Whose::Ordinary,
        &[Kind::Workspace, Kind::WorkspaceDormant],
        &[Read, Update, Delete, Start, Stop],
    ),
    any(&[Kind::Template, Kind::User, Kind::Organization], &[Read]),
    any(&[Kind::ProvisionerJobs], &[Create, Read]),
    any(&[Kind::NotificationMessage], &[Create]),
];

const SERVICE_PURGE: &[Grant] =
    &[any(&[Kind::System, Kind::ApiKey, Kind::NotificationMessage], &[Read, Delete])];

/// Grants of a service actor.
pub(super) const fn service(actor: ServiceActor) -> &'static [Grant] {
    match actor {
        ServiceActor::PrebuildsOrchestrator => SERVICE_PREBUILDS_ORCHESTRATOR,
        ServiceActor::MembershipReconciler => SERVICE_MEMBERSHIP_RECONCILER,
        ServiceActor::ProvisionerBroker => SERVICE_PROVISIONER_BROKER,
        ServiceActor::Notifier => SERVICE_NOTIFIER,
        ServiceActor::LifecycleExecutor => SERVICE_LIFECYCLE_EXECUTOR,
        ServiceActor::Purge => SERVICE_PURGE,
    }
}

/// What a role of an access list allows. Only templates and workspaces have access lists.
pub(super) const fn acl(kind: Kind, role: AclRole) -> &'static [Action] {
    match (kind, role) {
        (Kind::Template, AclRole::Use) => &[Read, Use],
        (Kind::Template, AclRole::Admin) => &[Read, Update, Delete, Use, ViewInsights],
        (Kind::Workspace, AclRole::Use) => &[Read, Start, Stop, Ssh, ApplicationConnect],
        (Kind::Workspace, AclRole::Admin) => {
            &[Read, Update, Delete, Start, Stop, Ssh, ApplicationConnect, CreateAgent, DeleteAgent]
        }
        _ => &[],
    }
}
