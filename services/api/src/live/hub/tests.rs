//! What goes to whom, and what a reader is told when it cannot have it.

use std::sync::Arc;

use berth_bus::StreamState;
use berth_bus::event::BuildChanged;
use berth_domain::authz::{Membership, Person, SiteRole, Subject};
use berth_domain::id::{BuildId, OrganizationId, TemplateId, UserId, WorkspaceId};
use berth_domain::state::{BuildStage, JobStatus, Transition};
use uuid::Uuid;

use super::{Hub, KEPT, NotYet, Watcher};
use crate::live::encoded::Update;
use crate::live::event_id::EventId;
use crate::live::sight::Sight;

const ME: UserId = UserId(Uuid::from_u128(1));
const OTHER: UserId = UserId(Uuid::from_u128(2));
const MINE: OrganizationId = OrganizationId(Uuid::from_u128(3));

fn at(sequence: u64) -> EventId {
    EventId { epoch: 7, sequence }
}

fn stream(first: u64, last: u64) -> StreamState {
    StreamState { epoch: 7, first, last }
}

fn push(hub: &Hub, id: EventId, owner: UserId) {
    let change = BuildChanged {
        organization_id: MINE,
        workspace_id: WorkspaceId(Uuid::nil()),
        workspace_name: "w".to_owned(),
        owner_id: owner,
        template_id: TemplateId(Uuid::nil()),
        build_id: BuildId(Uuid::nil()),
        build_number: 1,
        transition: Transition::Start,
        stage: BuildStage::None,
        job_status: JobStatus::Pending,
        revision: 1,
    };
    hub.push(id, Some(Update::new(id, &change)));
}

fn member() -> Arc<Sight> {
    let person = Person::new(ME).in_organization(MINE, Membership::default());
    Arc::new(Sight::of(&Subject::Person(person)))
}

fn owner() -> Arc<Sight> {
    Arc::new(Sight::of(&Subject::Person(Person::new(ME).with_site_role(SiteRole::Owner))))
}

fn reached(last: u64) -> Hub {
    let hub = Hub::new();
    hub.reach(stream(1, last));
    for sequence in 1..=last {
        push(&hub, at(sequence), OTHER);
    }
    hub
}

/// Kind and id of everything that waits.
fn drain(watcher: &Watcher) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    while let Some(batch) = watcher.take() {
        for message in batch {
            let text = String::from_utf8(message.sse.to_vec()).unwrap();
            let field = |name| text.lines().find_map(|it| it.strip_prefix(name)).unwrap();
            let id: EventId = field("id: ").parse().unwrap();
            all.push((field("event: ").to_owned(), id.sequence));
        }
    }
    all
}

fn data(ids: impl IntoIterator<Item = u64>) -> Vec<(String, u64)> {
    ids.into_iter().map(|id| ("data".to_owned(), id)).collect()
}

fn gap(id: u64) -> (String, u64) {
    ("gap".to_owned(), id)
}

#[test]
fn an_update_goes_to_those_who_may_read_it_and_costs_the_others_nothing() {
    let hub = reached(0);
    let (mine, all) = (hub.join_now(&member()), hub.join_now(&owner()));
    push(&hub, at(1), OTHER);
    push(&hub, at(2), ME);
    push(&hub, at(3), OTHER);
    assert_eq!(drain(&mine), data([2]));
    assert_eq!(drain(&all), data([1, 2, 3]));
    // Whoever may read nothing of it can still tell how far he is.
    assert_eq!(mine.place(), Some(at(3)));
    let state = hub.read();
    assert!(state.by_organization.is_empty() && state.everywhere.len() == 1);
}

#[test]
fn whoever_comes_back_gets_what_was_kept_and_is_sent_to_the_stream_for_the_rest() {
    let hub = reached(10);
    assert_eq!(drain(&hub.join(&owner(), at(7)).unwrap()), data(8..=10));
    assert_eq!(drain(&hub.join(&owner(), at(10)).unwrap()), []);
    assert_eq!(hub.join(&owner(), at(11)).err(), Some(NotYet::Ahead));
    assert_eq!(hub.join(&owner(), EventId { epoch: 6, sequence: 1 }).err(), Some(NotYet::Ahead));
    let kept = u64::try_from(KEPT).unwrap();
    for sequence in 11..=kept + 5 {
        push(&hub, at(sequence), OTHER);
    }
    assert_eq!(hub.join(&owner(), at(4)).err(), Some(NotYet::Behind(at(5))));
    assert_eq!(drain(&hub.join(&owner(), at(5)).unwrap()).len(), KEPT);
    assert_eq!(Hub::new().join(&owner(), at(4)).err(), Some(NotYet::Unknown));
}

#[test]
fn whoever_heard_more_elsewhere_hears_nothing_twice() {
    let hub = reached(5);
    let ahead = hub.join_ahead(&owner(), at(8));
    for sequence in 6..=10 {
        push(&hub, at(sequence), OTHER);
    }
    assert_eq!(drain(&ahead), data([9, 10]));
}

#[test]
fn a_reader_that_is_too_slow_is_told_where_its_gap_begins_and_goes_on_after_it() {
    let hub = reached(0);
    let (slow, fast) = (hub.join_now(&owner()), hub.join_now(&owner()));
    let kept = u64::try_from(KEPT).unwrap();
    for sequence in 1..=kept + 100 {
        push(&hub, at(sequence), OTHER);
        assert_eq!(drain(&fast), data([sequence]));
    }
    let mut expected = vec![gap(100)];
    expected.extend(data(101..=kept + 100));
    let told = slow.take().unwrap();
    assert!(String::from_utf8_lossy(&told[0].sse).contains(r#"{"first_missing_id":"7-1"}"#));
    assert_eq!(told.len(), 65);
    assert_eq!(drain(&slow), expected[65..]);
    assert_eq!(slow.hub.gaps.get(), 1);
}

#[test]
fn updates_that_nobody_may_read_are_no_gap_however_many_they_are() {
    let hub = reached(0);
    let mine = hub.join_now(&member());
    for sequence in 1..=2 * u64::try_from(KEPT).unwrap() {
        push(&hub, at(sequence), OTHER);
    }
    assert_eq!(drain(&mine), []);
}

#[test]
fn what_is_gone_from_the_stream_is_a_gap_for_everybody_once() {
    let hub = reached(5);
    let watcher = hub.join_now(&member());
    assert_eq!(hub.reach(stream(9, 20)), at(8));
    push(&hub, at(9), ME);
    assert_eq!(drain(&watcher), [vec![gap(8)], data([9])].concat());
    // The same stream again, with all that is lacking.
    assert_eq!(hub.reach(stream(9, 20)), at(9));
    assert_eq!(drain(&watcher), []);
}

#[test]
fn a_stream_that_was_made_anew_or_put_back_is_a_gap_and_its_numbers_count_again() {
    for (epoch, first, last) in [(8, 1, 2), (7, 1, 2)] {
        let hub = reached(5);
        let watcher = hub.join_now(&owner());
        let from = hub.reach(StreamState { epoch, first, last });
        assert_eq!(from, EventId { epoch, sequence: 0 });
        for sequence in 1..=2 {
            push(&hub, EventId { epoch, sequence }, OTHER);
        }
        assert_eq!(drain(&watcher), [vec![gap(0)], data([1, 2])].concat(), "epoch {epoch}");
    }
}

#[test]
fn whoever_comes_before_the_stream_is_reached_is_told_that_something_may_be_missing() {
    let hub = Hub::new();
    let early = hub.join_now(&owner());
    hub.reach(stream(3, 6));
    for sequence in 3..=8 {
        push(&hub, at(sequence), OTHER);
    }
    let told = drain(&early);
    assert_eq!(told.first().map(|it| it.0.as_str()), Some("gap"));
    assert_eq!(told[1..], data([7, 8]));
}

#[test]
fn another_standing_takes_hold_at_once() {
    let hub = reached(0);
    let watcher = hub.join_now(&owner());
    watcher.look_with(&member());
    push(&hub, at(1), OTHER);
    push(&hub, at(2), ME);
    assert_eq!(drain(&watcher), data([2]));
    drop(watcher);
    let state = hub.read();
    assert!(state.everywhere.is_empty() && state.by_owner.is_empty());
}
