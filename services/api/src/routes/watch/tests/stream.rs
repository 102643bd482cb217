//! The stream itself is lost, emptied, or named wrongly.

use berth_bus::subjects::Stream;
use berth_testkit::{SOON, wait_until};

use super::reader::{Ask, Reader, Said};
use super::world::{ACME, Step, Who, World};

fn after(id: &str) -> String {
    let (epoch, sequence) = id.split_once('-').unwrap();
    format!("{epoch}-{}", sequence.parse::<u64>().unwrap() + 1)
}

#[track_caller]
fn is_gap(said: &Said, last: &str) {
    assert_eq!(said.kind, "gap", "{said:?}");
    assert_eq!(said.json()["first_missing_id"], after(last).as_str());
    assert!(said.id.is_some(), "a place to resume from");
}

async fn number(reader: &mut Reader) -> i64 {
    let said = reader.told().await.expect("the stream goes on");
    assert_eq!(said.kind, "data", "{said:?}");
    said.json()["build_number"].as_i64().unwrap()
}

/// Its numbers begin again: nobody takes the new ones for old ones, and everybody is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_made_anew_is_a_gap_for_open_and_for_resumed_streams() {
    let world = World::new().await;
    let mut open = world.replicas[0].open(&Ask::all(&Who::Owner.key(0))).await;
    let steps: Vec<Step> = (1..=5).map(|n| Step::of(Who::Bob, ACME, n)).collect();
    world.publish(1, &steps).await;
    for n in 1..=5 {
        assert_eq!(number(&mut open).await, n);
    }
    let last = open.last_id.clone().unwrap();

    let old = world.bus.state(Stream::Builds).await.unwrap();
    world.command("DELETE").await;
    wait_until("the stream is gone", SOON, async || {
        world.bus.state(Stream::Builds).await.is_err().then_some(())
    })
    .await;
    world.bus.ensure_streams().await.unwrap();
    assert_ne!(world.bus.state(Stream::Builds).await.unwrap().epoch, old.epoch);
    let steps: Vec<Step> = (6..=8).map(|n| Step::of(Who::Bob, ACME, n)).collect();
    world.publish(2, &steps).await;

    is_gap(&open.told().await.unwrap(), &last);
    for replica in &world.replicas {
        let mut resumed =
            replica.open(&Ask::all(&Who::Owner.key(1)).after(Some(last.clone()))).await;
        is_gap(&resumed.told().await.unwrap(), &last);
        for n in 6..=8 {
            assert_eq!(number(&mut resumed).await, n);
        }
    }
    for n in 6..=8 {
        assert_eq!(number(&mut open).await, n);
    }
}

/// What is purged before it was read is told; who had read it hears nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_stream_is_a_gap_for_those_who_lack_what_it_held() {
    let world = World::new().await;
    let mut open = world.replicas[0].open(&Ask::all(&Who::Owner.key(0))).await;
    let begin = open.next().await.unwrap().id.unwrap();
    // More than a replica keeps: only the stream had the first ones.
    let steps: Vec<Step> = (1..=5000).map(|n| Step::of(Who::Bob, ACME, n)).collect();
    world.publish(1, &steps).await;
    for n in 1..=5000 {
        assert_eq!(number(&mut open).await, n);
    }
    // All that the stream holds can be read by those who were away long.
    let ask = Ask::all(&Who::Owner.key(1)).after(Some(begin.clone()));
    let mut late = world.replicas[1].open(&ask.clone().socket(true)).await;
    for n in 1..=5000 {
        assert_eq!(number(&mut late).await, n);
    }

    world.command("PURGE").await;
    wait_until("the stream is empty", SOON, async || {
        let state = world.bus.state(Stream::Builds).await.ok()?;
        (state.first > state.last).then_some(())
    })
    .await;
    let mut late = world.replicas[1].open(&ask).await;
    is_gap(&late.told().await.unwrap(), &begin);
    world.publish(2, &[Step::of(Who::Bob, ACME, 5001)]).await;
    assert_eq!(number(&mut late).await, 5001);
    assert_eq!(number(&mut open).await, 5001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_no_replica_gave_is_refused() {
    let world = World::new().await;
    for is_socket in [false, true] {
        for id in ["7", "x", "-", "1-2-3"] {
            let ask = Ask::all(&Who::Owner.key(0)).after(Some(id.to_owned())).socket(is_socket);
            let (status, _) = Reader::try_open(world.replicas[0].address, &ask).await;
            assert_eq!(status, 400, "{id}");
        }
    }
}
