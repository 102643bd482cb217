//! Which build updates a person may read, worked out once instead of with every update.

use std::collections::BTreeMap;

use berth_domain::authz::{Action, Resource, ResourceKind, Subject, allowed};
use berth_domain::id::{OrganizationId, UserId};
use uuid::Uuid;

/// What of an organization's workspaces may be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Part {
    own: bool,
    others: bool,
}

/// What a person may read. An update says the organization and the owner of its workspace, and
/// reading a workspace depends on nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sight {
    me: UserId,
    /// In organizations that the person does not belong to.
    elsewhere: Part,
    organizations: BTreeMap<OrganizationId, Part>,
}

impl Sight {
    /// The same rules decide as for one workspace.
    pub(crate) fn of(subject: &Subject) -> Self {
        let Some(person) = subject.person() else { return Self::none() };
        let part = |organization: Option<OrganizationId>| {
            let may = |owner| {
                let resource = Resource::new(ResourceKind::Workspace).owned_by(owner);
                let resource = match organization {
                    Some(id) => resource.in_organization(id),
                    None => resource,
                };
                allowed(subject, Action::Read, &resource).is_allowed()
            };
            Part { own: may(person.id), others: may(UserId(Uuid::nil())) }
        };
        let member_of = person.organizations.keys();
        Self {
            me: person.id,
            elsewhere: part(None),
            organizations: member_of.map(|id| (*id, part(Some(*id)))).collect(),
        }
    }

    fn none() -> Self {
        Self { me: UserId(Uuid::nil()), elsewhere: Part::default(), organizations: BTreeMap::new() }
    }

    /// Whether updates of that owner's workspaces in that organization may be read.
    pub(crate) fn covers(&self, organization: OrganizationId, owner: UserId) -> bool {
        let part = self.organizations.get(&organization).unwrap_or(&self.elsewhere);
        if owner == self.me { part.own } else { part.others }
    }

    /// Who looks.
    pub(crate) fn me(&self) -> UserId {
        self.me
    }

    /// Whether other people's workspaces may be read in organizations that are not named.
    pub(crate) fn reaches_everywhere(&self) -> bool {
        self.elsewhere.others
    }

    /// Organizations in which other people's workspaces may be read.
    pub(crate) fn organizations(&self) -> impl Iterator<Item = OrganizationId> {
        self.organizations.iter().filter(|(_, part)| part.others).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::authz::{Membership, OrganizationRole, Permission, Person, Scope, SiteRole};
    use berth_domain::id::PREBUILDS_USER;

    use super::*;

    const ME: UserId = UserId(Uuid::from_u128(1));
    const OTHER: UserId = UserId(Uuid::from_u128(2));
    const MINE: OrganizationId = OrganizationId(Uuid::from_u128(3));
    const ELSEWHERE: OrganizationId = OrganizationId(Uuid::from_u128(4));

    fn people() -> Vec<Person> {
        let denied =
            Permission { kind: ResourceKind::Workspace, action: Action::Read, negate: true };
        let granted = Permission { negate: false, ..denied };
        let mut people = vec![Person::new(ME)];
        people.extend(SiteRole::ALL.iter().map(|role| Person::new(ME).with_site_role(*role)));
        for custom in [vec![], vec![denied], vec![granted]] {
            for role in OrganizationRole::ALL {
                let membership = Membership { roles: vec![*role], custom: custom.clone() };
                let member = Person::new(ME).in_organization(MINE, membership);
                people
                    .extend(SiteRole::ALL.iter().map(|role| member.clone().with_site_role(*role)));
                people.push(Person { scope: Scope::ApplicationConnect, ..member });
            }
        }
        people
    }

    #[test]
    fn a_person_sees_updates_of_exactly_the_workspaces_that_may_be_read() {
        for person in people() {
            let subject = Subject::Person(person);
            let sight = Sight::of(&subject);
            for organization in [MINE, ELSEWHERE] {
                for owner in [ME, OTHER, PREBUILDS_USER] {
                    let workspace = Resource::new(ResourceKind::Workspace)
                        .in_organization(organization)
                        .owned_by(owner);
                    let may = allowed(&subject, Action::Read, &workspace).is_allowed();
                    assert_eq!(sight.covers(organization, owner), may, "{subject:?} {workspace:?}");
                    let finds = sight.reaches_everywhere()
                        || sight.organizations().any(|it| it == organization)
                        || owner == sight.me();
                    assert!(finds || !may, "an update finds whoever may read it: {subject:?}");
                }
            }
        }
    }
}
