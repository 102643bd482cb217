//! Watching a single workspace.

use std::time::Duration;

use berth_bus::envelope::wrap;
use berth_bus::event::{Event, WorkspaceChanged, WorkspaceVerb};
use berth_domain::id::{EventId, OrganizationId, UserId, WorkspaceId};
use berth_testkit::{SOON, wait_until};
use uuid::Uuid;

use super::reader::{Ask, Reader};
use super::world::{ACME, Who, World, workspace_of_bob};

const WORKSPACE: Uuid = Uuid::from_u128(0x77);

async fn change(world: &World, set: &str, revision: u128) {
    let sql =
        format!("update workspaces set {set}, revision = {revision} where id = '{WORKSPACE}'");
    world.database.rows(&sql).await;
    let event = Event::Workspace(WorkspaceChanged {
        organization_id: OrganizationId(ACME),
        workspace_id: WorkspaceId(WORKSPACE),
        owner_id: UserId(Who::Bob.id()),
        what: WorkspaceVerb::Updated,
        revision: i64::try_from(revision).unwrap(),
    });
    let id = EventId(Uuid::from_u128(revision));
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    let message = wrap(world.bus.subjects(), "test", id, now, &event);
    assert_eq!(world.bus.publish_stored(&[message]).await, [true]);
}

async fn watch(world: &World, n: usize) -> Reader {
    let is_socket = n.is_multiple_of(2);
    let path = if is_socket { "watch-ws" } else { "watch" };
    let ask = Ask::all(&Who::Bob.key(n)).at(&format!("/api/v2/workspaces/{WORKSPACE}/{path}"));
    world.replicas[0].open(&ask.socket(is_socket)).await
}

/// A notice wakes them all, long before the backup look, and one of them reads for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watchers_of_a_workspace_are_woken_by_notices_and_read_it_once() {
    let world = World::new().await;
    world.database.rows(&workspace_of_bob(WORKSPACE)).await;
    let mut readers = Vec::new();
    for n in 0..40 {
        let mut reader = watch(&world, n).await;
        assert_eq!(reader.told().await.unwrap().json()["name"], "mine");
        readers.push(reader);
    }
    let reads = || world.replicas[0].app.live.workspaces.reads.get();
    let before = reads();
    change(&world, "name = 'renamed'", 100).await;
    let all = async {
        for reader in &mut readers {
            assert_eq!(reader.told().await.unwrap().json()["name"], "renamed");
        }
    };
    let woken = Duration::from_secs(8);
    tokio::time::timeout(woken, all).await.expect("nobody waits for the backup look");
    assert!(reads() - before <= 4, "{} reads for 40 watchers", reads() - before);

    // It changes hands: whoever may not read it any more hears no more of it.
    let ada = Who::Ada.id();
    change(&world, &format!("name = 'taken', owner_id = '{ada}'"), 101).await;
    for reader in &mut readers {
        assert_eq!(reader.told().await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_notices_a_change_is_found_by_looking_and_a_session_that_ends_ends_the_stream() {
    let world = World::new().await;
    world.database.rows(&workspace_of_bob(WORKSPACE)).await;
    let mut reader = watch(&world, 1).await;
    assert_eq!(reader.told().await.unwrap().json()["name"], "mine");
    let sql =
        format!("update workspaces set name = 'quiet', revision = 50 where id = '{WORKSPACE}'");
    world.database.rows(&sql).await;
    assert_eq!(reader.told().await.unwrap().json()["name"], "quiet");
    let sql = format!("update users set status = 'suspended' where id = '{}'", Who::Bob.id());
    world.database.rows(&sql).await;
    let said = reader.told().await.unwrap();
    assert_eq!(said.kind, "error", "{said:?}");
    wait_until("the stream ends", SOON, async || reader.next().await.is_none().then_some(())).await;
}
