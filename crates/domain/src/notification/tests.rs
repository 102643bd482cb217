use std::collections::BTreeSet;

use super::*;

#[test]
fn every_kind_has_an_id_of_its_own_and_is_found_by_it() {
    let ids: BTreeSet<_> = NotificationTemplate::ALL.iter().map(|it| it.id()).collect();
    assert_eq!(ids.len(), NotificationTemplate::ALL.len());
    for &kind in NotificationTemplate::ALL {
        assert_eq!(NotificationTemplate::find(kind.id()), Some(kind));
    }
    assert_eq!(NotificationTemplate::find(NotificationTemplateId(Uuid::nil())), None);
}

#[test]
fn ids_that_clients_know_are_theirs() {
    let known = [
        (NotificationTemplate::PrebuildFailureLimit, "414d9331-c1fc-4761-b40c-d1f4702279eb"),
        (NotificationTemplate::ResourceReplaced, "89d9745a-816e-4695-a17f-3d0a229e2b8d"),
        (NotificationTemplate::WorkspaceCreated, "281fdf73-c6d6-4cbb-8ff5-888baf8a2fff"),
        (NotificationTemplate::WorkspaceDeleted, "f517da0b-cdc9-410f-ab89-a86107c420ed"),
        (NotificationTemplate::WorkspaceManuallyUpdated, "d089fe7b-d5c5-4c0c-aaf5-689859f7d392"),
        (NotificationTemplate::WorkspaceAutobuildFailed, "381df2a9-c0c0-4749-420f-80a9280c66f9"),
        (NotificationTemplate::WorkspaceManualBuildFailed, "2faeee0f-26cb-4e96-821c-85ccb9f71513"),
        (NotificationTemplate::WorkspaceDormant, "0ea69165-ec14-4314-91f1-69566ac3c5a0"),
        (NotificationTemplate::WorkspaceMarkedForDeletion, "51ce2fdf-c9ca-4be1-8d70-628674f9bc42"),
        (NotificationTemplate::WorkspaceAutostopReminder, "6f6cb984-c167-4fa5-bb87-1058dd642779"),
        (NotificationTemplate::WorkspaceAutoUpdated, "c34a0c09-0704-4cac-bd1c-0c0146811c2b"),
        (NotificationTemplate::TemplateDeleted, "29a09665-2a4c-403f-9648-54301670e7be"),
        (NotificationTemplate::TemplateDeprecated, "f40fae84-55a2-42cd-99fa-b41c1ca64894"),
        (NotificationTemplate::BuildsFailedReport, "34a20db2-e9cc-4a93-b0e4-8569699d7a00"),
        (NotificationTemplate::Test, "c425f63e-716a-4bf4-ae24-78348f706c3f"),
    ];
    for (kind, id) in known {
        assert_eq!(kind.id().to_string(), id, "{kind}");
    }
}
