use std::fmt::Write as _;

use uuid::Uuid;

use super::*;

fn user(id: u128) -> UserId {
    UserId(Uuid::from_u128(id))
}

fn organization(id: u128) -> OrganizationId {
    OrganizationId(Uuid::from_u128(id))
}

fn person() -> Person {
    Person::new(user(1))
}

fn member_with(roles: &[OrganizationRole]) -> Person {
    let membership = Membership { roles: roles.to_vec(), custom: Vec::new() };
    person().in_organization(organization(1), membership)
}

/// A resource of organization 1 and of user `owner`.
fn resource(kind: ResourceKind, owner: u128) -> Resource {
    Resource::new(kind).in_organization(organization(1)).owned_by(user(owner))
}

fn workspace(owner: UserId) -> Resource {
    Resource::new(ResourceKind::Workspace).in_organization(organization(1)).owned_by(owner)
}

fn may_do(person: &Person, action: Action, resource: &Resource) -> bool {
    allowed(&Subject::Person(person.clone()), action, resource).is_allowed()
}

/// One line per kind: what the subject may do to it.
fn lines(title: &str, subject: &Subject, owner: UserId) -> String {
    let mut text = format!("[{title}]\n");
    for &kind in ResourceKind::ALL {
        let resource = Resource::new(kind).in_organization(organization(1)).owned_by(owner);
        let actions: Vec<&str> = Action::ALL
            .iter()
            .filter(|action| allowed(subject, **action, &resource).is_allowed())
            .map(|action| action.as_str())
            .collect();
        if !actions.is_empty() {
            writeln!(text, "{kind}: {}", actions.join(" ")).unwrap();
        }
    }
    text
}

fn matrix() -> String {
    let (own, other) = (user(1), user(2));
    let mut parts = Vec::new();
    for &role in SiteRole::ALL {
        let subject = Subject::Person(person().with_site_role(role));
        parts.push(lines(&format!("{role}, another's"), &subject, other));
    }
    let nobody = Subject::Person(person());
    parts.push(lines("member, his own", &nobody, own));
    for &role in OrganizationRole::ALL {
        let subject = Subject::Person(member_with(&[role]));
        parts.push(lines(&format!("{role}, another's"), &subject, other));
    }
    for role in [OrganizationRole::Member, OrganizationRole::WorkspaceCreationBan] {
        let subject = Subject::Person(member_with(&[role]));
        parts.push(lines(&format!("{role}, his own"), &subject, own));
    }
    for &actor in ServiceActor::ALL {
        let subject = Subject::Service(actor);
        parts.push(lines(&format!("{actor}, a person's"), &subject, other));
        parts.push(lines(&format!("{actor}, the prebuilds user's"), &subject, PREBUILDS_USER));
    }
    parts.join("\n")
}

/// Every role, every kind, every action: what is not written in the file is refused. Where a change
/// is meant, the failure prints the new file.
#[test]
fn the_matrix_is_as_it_is_written_out() {
    let written = include_str!("matrix.txt");
    let is = matrix();
    assert!(is == written, "the role tables amount to another matrix now:\n{is}");
}

#[test]
fn nobody_may_do_what_cannot_be_done_to_a_kind() {
    let owner = person().with_site_role(SiteRole::Owner);
    for &kind in ResourceKind::ALL {
        for &action in Action::ALL {
            if may_do(&owner, action, &resource(kind, 2)) {
                assert!(available(kind).contains(&action), "{kind} {action}");
            }
        }
    }
}

#[test]
fn a_role_in_one_organization_means_nothing_in_another() {
    for &role in OrganizationRole::ALL {
        let person = member_with(&[role]);
        let plain = self::person();
        for &kind in ResourceKind::ALL {
            for owner in [1, 2] {
                let elsewhere =
                    Resource::new(kind).in_organization(organization(2)).owned_by(user(owner));
                for &action in Action::ALL {
                    assert_eq!(
                        may_do(&person, action, &elsewhere),
                        may_do(&plain, action, &elsewhere),
                        "{role} {kind} {action}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_stranger_reads_nothing_of_others() {
    for &kind in ResourceKind::ALL {
        for &action in Action::ALL {
            let expected = kind == ResourceKind::AssignRole && action == Action::Read;
            assert_eq!(may_do(&person(), action, &resource(kind, 2)), expected, "{kind} {action}");
        }
    }
}

#[test]
fn what_may_not_be_read_is_hidden_and_what_may_be_read_is_forbidden() {
    let decide = |person: &Person, action, resource: &Resource| {
        allowed(&Subject::Person(person.clone()), action, resource)
    };
    let others = workspace(user(2));
    let admin = member_with(&[OrganizationRole::TemplateAdmin]);
    assert_eq!(decide(&member_with(&[]), Action::Read, &others), Decision::Hidden);
    assert_eq!(decide(&member_with(&[]), Action::Delete, &others), Decision::Hidden);
    assert_eq!(decide(&admin, Action::Read, &others), Decision::Allow);
    assert_eq!(decide(&admin, Action::Delete, &others), Decision::Forbidden);
    assert_eq!(decide(&person(), Action::Create, &others), Decision::Forbidden);
}

#[test]
fn deleting_a_prebuild_needs_prebuilt_workspace_or_workspace_and_reading_and_updating_it() {
    use {Action as Do, ResourceKind as Kind};
    let prebuild = workspace(PREBUILDS_USER);
    let custom = |permissions: &[(ResourceKind, Action)]| {
        let custom = permissions
            .iter()
            .map(|(kind, action)| Permission { kind: *kind, action: *action, negate: false })
            .collect();
        person().in_organization(organization(1), Membership { roles: Vec::new(), custom })
    };
    let read = (Kind::Workspace, Do::Read);
    let table: [(&[(Kind, Do)], bool); 7] = [
        (
            &[read, (Kind::PrebuiltWorkspace, Do::Update), (Kind::PrebuiltWorkspace, Do::Delete)],
            true,
        ),
        (&[read, (Kind::Workspace, Do::Update), (Kind::Workspace, Do::Delete)], true),
        (&[read, (Kind::Workspace, Do::Update), (Kind::PrebuiltWorkspace, Do::Delete)], true),
        (&[read, (Kind::PrebuiltWorkspace, Do::Delete)], false),
        (&[(Kind::PrebuiltWorkspace, Do::Update), (Kind::PrebuiltWorkspace, Do::Delete)], false),
        (&[read, (Kind::PrebuiltWorkspace, Do::Update)], false),
        (&[], false),
    ];
    for (permissions, expected) in table {
        assert_eq!(
            may_do(&custom(permissions), Do::Delete, &prebuild),
            expected,
            "{permissions:?}"
        );
    }
    for admin in [
        person().with_site_role(SiteRole::TemplateAdmin),
        member_with(&[OrganizationRole::TemplateAdmin]),
    ] {
        assert!(may_do(&admin, Do::Delete, &prebuild) && may_do(&admin, Do::Update, &prebuild));
        assert!(!may_do(&admin, Do::Start, &prebuild));
        // It is the prebuild that they may delete, not the workspace that was one.
        assert!(!may_do(&admin, Do::Delete, &workspace(user(2))));
    }
    assert!(!may_do(&member_with(&[]), Do::Read, &prebuild));
}

#[test]
fn a_template_is_used_by_those_on_its_access_list() {
    let template = |acl| resource(ResourceKind::Template, 9).with_acl(acl);
    let everyone =
        Acl { groups: [(GroupId(organization(1).0), AclRole::Use)].into(), users: BTreeMap::new() };
    let member = member_with(&[]);
    assert!(may_do(&member, Action::Read, &template(everyone.clone())));
    assert!(may_do(&member, Action::Use, &template(everyone.clone())));
    assert!(!may_do(&member, Action::Update, &template(everyone.clone())));
    assert!(!may_do(&member, Action::Read, &template(Acl::default())));
    assert!(!may_do(&person(), Action::Read, &template(everyone)));

    let admin = Acl { users: [(user(1), AclRole::Admin)].into(), groups: BTreeMap::new() };
    assert!(may_do(&member, Action::Update, &template(admin.clone())));
    assert!(!may_do(&member, Action::Create, &template(admin.clone())));
    // Who left the organization left its lists.
    assert!(!may_do(&person(), Action::Read, &template(admin)));
}

#[test]
fn a_shared_workspace_is_used_but_not_deleted() {
    let acl = Acl { users: [(user(1), AclRole::Use)].into(), groups: BTreeMap::new() };
    let shared = workspace(user(2)).with_acl(acl);
    let member = member_with(&[]);
    for action in [Action::Read, Action::Ssh, Action::Start, Action::Stop] {
        assert!(may_do(&member, action, &shared), "{action}");
    }
    assert!(!may_do(&member, Action::Delete, &shared));
    assert!(!may_do(&member, Action::Update, &shared));
}

#[test]
fn the_creation_ban_wins_over_the_roles_of_the_organization_but_not_of_the_site() {
    let own = workspace(user(1));
    let banned = member_with(&[OrganizationRole::WorkspaceCreationBan, OrganizationRole::Admin]);
    assert!(may_do(&member_with(&[]), Action::Create, &own));
    assert!(!may_do(&banned, Action::Create, &own));
    assert!(may_do(&banned, Action::Delete, &own));
    assert!(may_do(&banned.with_site_role(SiteRole::Owner), Action::Create, &own));
}

#[test]
fn a_negated_permission_of_a_custom_role_wins() {
    let permission =
        |negate| Permission { kind: ResourceKind::Workspace, action: Action::Ssh, negate };
    let with = |custom| {
        person().in_organization(organization(1), Membership { roles: Vec::new(), custom })
    };
    let (own, others) = (workspace(user(1)), workspace(user(2)));
    assert!(may_do(&with(vec![permission(false)]), Action::Ssh, &others));
    assert!(!may_do(&with(vec![permission(false), permission(true)]), Action::Ssh, &others));
    assert!(!may_do(&with(vec![permission(true)]), Action::Ssh, &own));
}

#[test]
fn the_prebuilds_user_can_do_nothing_as_a_person() {
    let it = Person::new(PREBUILDS_USER)
        .with_site_role(SiteRole::Owner)
        .in_organization(organization(1), Membership::default());
    for &kind in ResourceKind::ALL {
        for &action in Action::ALL {
            let own = Resource::new(kind).in_organization(organization(1)).owned_by(PREBUILDS_USER);
            assert!(!may_do(&it, action, &own), "{kind} {action}");
        }
    }
}

#[test]
fn a_narrow_token_opens_apps_and_nothing_else() {
    let mut it = member_with(&[]).with_site_role(SiteRole::Owner);
    it.scope = Scope::ApplicationConnect;
    let own = workspace(user(1));
    assert!(may_do(&it, Action::ApplicationConnect, &own));
    assert!(may_do(&it, Action::Read, &own));
    assert!(!may_do(&it, Action::Ssh, &own));
    assert!(!may_do(&it, Action::Read, &resource(ResourceKind::User, 1)));
}

#[test]
fn nobody_gives_a_role_that_is_more_than_his_own() {
    assert_eq!(assignable_site_roles(&[SiteRole::Owner]), SiteRole::ALL);
    assert_eq!(assignable_site_roles(&[SiteRole::UserAdmin]), [SiteRole::Member]);
    for role in [SiteRole::TemplateAdmin, SiteRole::Auditor, SiteRole::Member] {
        assert!(assignable_site_roles(&[role]).is_empty(), "{role}");
    }
    let by = |person: &Person, id| assignable_organization_roles(person, organization(id));
    let admin = member_with(&[OrganizationRole::Admin]);
    assert_eq!(by(&admin, 1), OrganizationRole::ALL);
    assert!(by(&admin, 2).is_empty());
    let user_admin = member_with(&[OrganizationRole::UserAdmin]);
    assert!(!by(&user_admin, 1).contains(&OrganizationRole::Admin));
    assert!(by(&member_with(&[]), 1).is_empty());
    assert_eq!(by(&person().with_site_role(SiteRole::Owner), 2), OrganizationRole::ALL);
}
