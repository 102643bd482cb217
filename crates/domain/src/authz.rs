//! Who may do what (50-access, "Authorization"): one pure function over tables, denying whatever no
//! table grants.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{GroupId, OrganizationId, PREBUILDS_USER, UserId};

mod table;
#[cfg(test)]
mod tests;

pub use table::available;
use table::{Grant, Whose};

closed_set! {
    /// A role that holds everywhere.
    SiteRole {
        /// Runs the deployment.
        Owner = "owner",
        /// Manages users and memberships.
        UserAdmin = "user-admin",
        /// Manages templates and their prebuilds.
        TemplateAdmin = "template-admin",
        /// Reads, and reads the audit log.
        Auditor = "auditor",
        /// Everybody has it.
        Member = "member",
    }
}

closed_set! {
    /// A role that holds in one organization.
    OrganizationRole {
        /// Runs the organization.
        Admin = "organization-admin",
        /// Manages its members and groups.
        UserAdmin = "organization-user-admin",
        /// Manages its templates and their prebuilds.
        TemplateAdmin = "organization-template-admin",
        /// Reads, and reads its audit log.
        Auditor = "organization-auditor",
        /// Every member has it.
        Member = "organization-member",
        /// Takes the right to create workspaces away.
        WorkspaceCreationBan = "organization-workspace-creation-ban",
    }
}

closed_set! {
    /// A service that acts by itself. Each may do exactly what it needs.
    ServiceActor {
        /// Creates and deletes prebuilds.
        PrebuildsOrchestrator = "prebuilds-orchestrator",
        /// Keeps the prebuilds user a member.
        MembershipReconciler = "membership-reconciler",
        /// Hands out jobs and takes results.
        ProvisionerBroker = "provisioner-broker",
        /// Sends notifications.
        Notifier = "notifier",
        /// Starts, stops and removes ordinary workspaces by schedule.
        LifecycleExecutor = "lifecycle-executor",
        /// Removes what is too old.
        Purge = "purge",
    }
}

closed_set! {
    /// What is done to a resource.
    Action {
        /// Open an app of a workspace.
        ApplicationConnect = "application_connect",
        /// Give a role.
        Assign = "assign",
        /// Make one.
        Create = "create",
        /// Add an agent to a workspace.
        CreateAgent = "create_agent",
        /// Remove one.
        Delete = "delete",
        /// Remove an agent from a workspace.
        DeleteAgent = "delete_agent",
        /// See it.
        Read = "read",
        /// See a person's private data.
        ReadPersonal = "read_personal",
        /// Open a shell in a workspace.
        Ssh = "ssh",
        /// Start a workspace.
        Start = "start",
        /// Stop a workspace.
        Stop = "stop",
        /// Take a role away.
        Unassign = "unassign",
        /// Change it.
        Update = "update",
        /// Change a person's private data.
        UpdatePersonal = "update_personal",
        /// Make workspaces of a template.
        Use = "use",
        /// See how a template is used.
        ViewInsights = "view_insights",
    }
}

closed_set! {
    /// What something is done to.
    ResourceKind {
        /// A session or token.
        ApiKey = "api_key",
        /// Roles of an organization and their assignment.
        AssignOrgRole = "assign_org_role",
        /// Site roles and their assignment.
        AssignRole = "assign_role",
        /// The audit log.
        AuditLog = "audit_log",
        /// Debug pages.
        DebugInfo = "debug_info",
        /// Settings of the deployment, its pause included.
        DeploymentConfig = "deployment_config",
        /// Counts over the deployment.
        DeploymentStats = "deployment_stats",
        /// An uploaded file.
        File = "file",
        /// A group.
        Group = "group",
        /// Who is in a group.
        GroupMember = "group_member",
        /// How users come from an identity provider.
        IdpsyncSettings = "idpsync_settings",
        /// A message in an inbox.
        InboxNotification = "inbox_notification",
        /// A message on its way.
        NotificationMessage = "notification_message",
        /// What a user wants to hear of.
        NotificationPreference = "notification_preference",
        /// How a kind of message is sent.
        NotificationTemplate = "notification_template",
        /// An organization.
        Organization = "organization",
        /// A membership.
        OrganizationMember = "organization_member",
        /// A prebuild, beside what `workspace` grants.
        PrebuiltWorkspace = "prebuilt_workspace",
        /// Provisioner daemons and keys.
        ProvisionerDaemon = "provisioner_daemon",
        /// The queue.
        ProvisionerJobs = "provisioner_jobs",
        /// What only services touch.
        System = "system",
        /// A template and its versions, presets and pools.
        Template = "template",
        /// A user.
        User = "user",
        /// A user's secret.
        UserSecret = "user_secret",
        /// A workspace; a prebuild where the prebuilds user owns it.
        Workspace = "workspace",
        /// Thresholds of a workspace's memory and disks.
        WorkspaceAgentResourceMonitor = "workspace_agent_resource_monitor",
        /// A dormant workspace.
        WorkspaceDormant = "workspace_dormant",
    }
}

closed_set! {
    /// What an access list grants.
    AclRole {
        /// Templates: see and use. Workspaces: see, connect, start and stop.
        Use = "use",
        /// All but making one.
        Admin = "admin",
    }
}

closed_set! {
    /// What a token may be used for at most.
    Scope {
        /// Whatever its owner may.
        All = "all",
        /// Opening apps of workspaces, and nothing else.
        ApplicationConnect = "application_connect",
    }
}

/// A permission of a custom organization role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Permission {
    /// On what.
    pub kind: ResourceKind,
    /// To do what.
    pub action: Action,
    /// It is taken away rather than granted; that wins over every grant of the organization.
    #[serde(default)]
    pub negate: bool,
}

/// Membership in one organization.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// Roles beyond `organization-member`, which every member has.
    #[serde(default)]
    pub roles: Vec<OrganizationRole>,
    /// Permissions of custom roles.
    #[serde(default)]
    pub custom: Vec<Permission>,
}

/// Whoever wants something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A person, through a session or a token.
    Person(Person),
    /// A service that acts by itself.
    Service(ServiceActor),
}

/// A person: identity, roles and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The user.
    pub id: UserId,
    /// Site roles beyond `member`, which everybody has.
    pub site_roles: Vec<SiteRole>,
    /// Memberships.
    pub organizations: BTreeMap<OrganizationId, Membership>,
    /// Groups. The group Everyone of an organization has the organization's id.
    pub groups: BTreeSet<GroupId>,
    /// What the token in use may be used for.
    pub scope: Scope,
}

impl Person {
    /// A user without roles, memberships and groups.
    #[must_use]
    pub const fn new(id: UserId) -> Self {
        Self {
            id,
            site_roles: Vec::new(),
            organizations: BTreeMap::new(),
            groups: BTreeSet::new(),
            scope: Scope::All,
        }
    }

    /// Adds a site role.
    #[must_use]
    pub fn with_site_role(mut self, role: SiteRole) -> Self {
        self.site_roles.push(role);
        self
    }

    /// Adds a membership, its group Everyone included.
    #[must_use]
    pub fn in_organization(mut self, id: OrganizationId, membership: Membership) -> Self {
        self.organizations.insert(id, membership);
        self.groups.insert(GroupId(id.0));
        self
    }
}

impl Subject {
    /// The person, if it is one.
    #[must_use]
    pub const fn person(&self) -> Option<&Person> {
        match self {
            Self::Person(person) => Some(person),
            Self::Service(_) => None,
        }
    }
}

/// An access list: who beyond the role holders may do what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Acl {
    /// By user.
    pub users: BTreeMap<UserId, AclRole>,
    /// By group.
    pub groups: BTreeMap<GroupId, AclRole>,
}

/// What something is done to, as far as it decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// The organization it belongs to, if it belongs to one.
    pub organization: Option<OrganizationId>,
    /// Whose it is: the owner of a workspace, the user of a key; a user is his own.
    pub owner: Option<UserId>,
    /// Its access list. Templates and workspaces have one.
    pub acl: Acl,
}

impl Resource {
    /// A resource of no organization and no owner.
    #[must_use]
    pub fn new(kind: ResourceKind) -> Self {
        Self { kind, organization: None, owner: None, acl: Acl::default() }
    }

    /// Of this organization.
    #[must_use]
    pub const fn in_organization(mut self, id: OrganizationId) -> Self {
        self.organization = Some(id);
        self
    }

    /// Of this user.
    #[must_use]
    pub const fn owned_by(mut self, id: UserId) -> Self {
        self.owner = Some(id);
        self
    }

    /// With this access list.
    #[must_use]
    pub fn with_acl(mut self, acl: Acl) -> Self {
        self.acl = acl;
        self
    }

    fn is_prebuild(&self) -> bool {
        self.kind == ResourceKind::Workspace && self.owner == Some(PREBUILDS_USER)
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow,
    /// It may see the resource, but not do this: 403.
    Forbidden,
    /// It may not even know that the resource exists: 404.
    Hidden,
}

impl Decision {
    /// Whether it may.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// Decides whether `subject` may do `action` to `resource`. What no table grants is refused; what
/// may not be read is [`Decision::Hidden`]. Refused creation is always [`Decision::Forbidden`]:
/// there is nothing to hide yet.
#[must_use]
pub fn allowed(subject: &Subject, action: Action, resource: &Resource) -> Decision {
    if may(subject, action, resource) {
        Decision::Allow
    } else if action == Action::Create || may(subject, Action::Read, resource) {
        Decision::Forbidden
    } else {
        Decision::Hidden
    }
}

fn may(subject: &Subject, action: Action, resource: &Resource) -> bool {
    let has = |action| is_granted(subject, action, resource);
    if !resource.is_prebuild() {
        return has(action);
    }
    // Prebuilds: what `workspace` grants, or `prebuilt_workspace`, and never without reading it.
    let prebuilt = Resource { kind: ResourceKind::PrebuiltWorkspace, ..resource.clone() };
    let either = |action| has(action) || is_granted(subject, action, &prebuilt);
    match action {
        Action::Update => has(Action::Read) && either(Action::Update),
        Action::Delete => has(Action::Read) && either(Action::Update) && either(Action::Delete),
        _ => has(action),
    }
}

fn is_granted(subject: &Subject, action: Action, resource: &Resource) -> bool {
    match subject {
        Subject::Service(actor) => {
            table::service(*actor).iter().any(|it| covers(it, action, resource, None))
        }
        // The prebuilds user cannot log in; whatever speaks for it is a service actor.
        Subject::Person(person) => {
            person.id != PREBUILDS_USER
                && in_scope(person.scope, action, resource.kind)
                && (by_site_role(person, action, resource)
                    || by_organization(person, action, resource))
        }
    }
}

/// Reading comes with the narrow scope: an app cannot be opened without finding it.
fn in_scope(scope: Scope, action: Action, kind: ResourceKind) -> bool {
    match scope {
        Scope::All => true,
        Scope::ApplicationConnect => {
            kind == ResourceKind::Workspace
                && matches!(action, Action::ApplicationConnect | Action::Read)
        }
    }
}

fn by_site_role(person: &Person, action: Action, resource: &Resource) -> bool {
    person.site_roles.iter().chain(&[SiteRole::Member]).any(|role| {
        table::site(*role).iter().any(|it| covers(it, action, resource, Some(person.id)))
    })
}

fn by_organization(person: &Person, action: Action, resource: &Resource) -> bool {
    let membership = resource.organization.and_then(|it| person.organizations.get(&it));
    let Some(membership) = membership else { return false };
    let is_custom = |negate| {
        membership
            .custom
            .iter()
            .any(|it| (it.kind, it.action, it.negate) == (resource.kind, action, negate))
    };
    let is_banned = resource.kind == ResourceKind::Workspace
        && action == Action::Create
        && membership.roles.contains(&OrganizationRole::WorkspaceCreationBan);
    if is_banned || is_custom(true) {
        return false;
    }
    let by_role = membership.roles.iter().chain(&[OrganizationRole::Member]).any(|role| {
        table::organization(*role).iter().any(|it| covers(it, action, resource, Some(person.id)))
    });
    by_role || is_custom(false) || by_acl(person, action, resource)
}

fn by_acl(person: &Person, action: Action, resource: &Resource) -> bool {
    let by_user = resource.acl.users.get(&person.id);
    let by_group = resource.acl.groups.iter().filter(|(id, _)| person.groups.contains(id));
    by_user
        .into_iter()
        .chain(by_group.map(|(_, role)| role))
        .any(|role| table::acl(resource.kind, *role).contains(&action))
}

fn covers(grant: &Grant, action: Action, resource: &Resource, subject: Option<UserId>) -> bool {
    let is_whose = match grant.whose {
        Whose::Any => true,
        Whose::Own => subject.is_some() && resource.owner == subject,
        Whose::Prebuilds => resource.owner == Some(PREBUILDS_USER),
        Whose::Ordinary => resource.owner != Some(PREBUILDS_USER),
    };
    is_whose && grant.kinds.contains(&resource.kind) && grant.allows(action, resource.kind)
}

/// The site roles that a person with these site roles may give and take. Nobody makes anybody more
/// than he is himself.
#[must_use]
pub fn assignable_site_roles(roles: &[SiteRole]) -> &'static [SiteRole] {
    if roles.contains(&SiteRole::Owner) {
        SiteRole::ALL
    } else if roles.contains(&SiteRole::UserAdmin) {
        &[SiteRole::Member]
    } else {
        &[]
    }
}

/// The organization roles that a person may give and take in `organization`.
#[must_use]
pub fn assignable_organization_roles(
    person: &Person,
    organization: OrganizationId,
) -> &'static [OrganizationRole] {
    let membership = person.organizations.get(&organization);
    let has = |role| membership.is_some_and(|it| it.roles.contains(&role));
    if person.site_roles.contains(&SiteRole::Owner) || has(OrganizationRole::Admin) {
        OrganizationRole::ALL
    } else if person.site_roles.contains(&SiteRole::UserAdmin) || has(OrganizationRole::UserAdmin) {
        &[OrganizationRole::Member, OrganizationRole::WorkspaceCreationBan]
    } else {
        &[]
    }
}
