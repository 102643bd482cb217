//! What may be read follows what the session may read now.

use berth_testkit::{SOON, wait_patiently};
use std::time::Duration;

use super::reader::{Ask, Reader};
use super::world::{ACME, ELSEWHERE, Step, Who, World};
use crate::config::Config;

/// Publishes one update that everybody but ada may be unable to read, and one of ada's own; says
/// whether she saw the first.
async fn sees(world: &World, run: u128, reader: &mut Reader) -> bool {
    let number = i32::try_from(run).unwrap();
    let steps = [Step::of(Who::Bob, ACME, number), Step::of(Who::Ada, ACME, number)];
    world.publish(run, &steps).await;
    let mut saw = false;
    loop {
        let said = reader.told().await.expect("the stream goes on");
        assert_eq!(said.kind, "data", "{said:?}");
        let said = said.json();
        if said["build_number"] != number {
            continue;
        }
        if said["workspace_name"] == "of-Ada" {
            return saw;
        }
        saw = true;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_a_role_closes_an_open_stream_to_others_updates_and_getting_it_back_opens_it() {
    let world = World::new().await;
    for is_socket in [false, true] {
        let ask = Ask::all(&Who::Ada.key(0)).socket(is_socket);
        let mut reader = world.replicas[1].open(&ask).await;
        let mut run = if is_socket { 1000 } else { 1 };
        assert!(sees(&world, run, &mut reader).await);
        for (roles, expected) in [("{}", false), ("{organization-template-admin}", true)] {
            let ada = Who::Ada.id();
            let sql = format!(
                "update organization_members set roles = '{roles}' where user_id = '{ada}'"
            );
            world.database.rows(&sql).await;
            wait_patiently("the stream follows", Duration::from_millis(200), SOON, async || {
                run += 1;
                (sees(&world, run, &mut reader).await == expected).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_ends_its_streams_and_no_others() {
    let world = World::new().await;
    let mut streams = Vec::new();
    for n in 0..3 {
        streams.push(world.replicas[n % 2].open(&Ask::all(&Who::Bob.key(n))).await);
    }
    let sql = format!(
        "delete from api_keys where id = '{}';
         update api_keys set expires_at = '2026-11-21T11:00:00Z' where id = '{}'",
        Who::Bob.key(0),
        Who::Bob.key(1)
    );
    world.database.rows(&sql).await;
    for reader in &mut streams[..2] {
        let said = reader.told().await.unwrap();
        assert_eq!(said.kind, "error", "{said:?}");
        assert!(said.data.contains("ended"), "{said:?}");
        assert_eq!(reader.next().await, None);
    }
    world.publish(1, &[Step::of(Who::Bob, ACME, 1)]).await;
    assert_eq!(streams[2].told().await.unwrap().kind, "data");
    let (status, _) =
        Reader::try_open(world.replicas[0].address, &Ask::all(&Who::Bob.key(0))).await;
    assert_eq!(status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_live_nor_resumed_streams_show_what_may_not_be_read() {
    let world = World::new().await;
    let start =
        world.replicas[0].open(&Ask::all(&Who::Owner.key(0))).await.next().await.unwrap().id;
    let mut live = Vec::new();
    for who in Who::ALL {
        live.push((who, world.replicas[1].open(&Ask::all(&who.key(1))).await));
    }
    let steps: Vec<Step> = [ACME, ELSEWHERE]
        .into_iter()
        .flat_map(|organization| Who::ALL.map(|who| Step::of(who, organization, 1)))
        .collect();
    let last = Step::of(Who::Owner, ACME, 2);
    world.publish(1, &steps).await;
    for (who, mut live) in live {
        let ask = Ask::all(&who.key(2)).after(start.clone());
        let mut resumed = world.replicas[0].open(&ask).await;
        // Everybody may read his own, and in his own organization that is the last he sees.
        let expected: Vec<_> = steps
            .iter()
            .filter(|it| match who {
                // Own workspaces are read as a member.
                Who::Bob => it.owner == who.id() && it.organization == ACME,
                Who::Eve => it.owner == who.id() && it.organization == ELSEWHERE,
                who => who.may_read(it.organization, it.owner),
            })
            .map(|it| it.name.clone())
            .collect();
        for reader in [&mut live, &mut resumed] {
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                let said = reader.told().await.unwrap();
                seen.push(said.json()["workspace_name"].as_str().unwrap().to_owned());
            }
            assert_eq!(seen, expected, "{who:?}");
        }
    }
    world.publish(2, &[last]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_experiment_watching_all_is_404_and_says_why() {
    let config = Config { experiments: serde_json::from_str("[]").unwrap(), ..Config::default() };
    let world = World::with(config).await;
    for path in ["/api/v2/watch-all-workspaces", "/api/experimental/watch-all-workspacebuilds"] {
        let ask = Ask::all(&Who::Owner.key(0)).at(path);
        let (status, reader) = Reader::try_open(world.replicas[0].address, &ask).await;
        assert_eq!(status, 404);
        let said = reader.rest().await;
        assert!(said.contains("workspace-build-updates"), "{said}");
    }
}
