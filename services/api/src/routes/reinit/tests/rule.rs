//! The rule alone.

use berth_db::agent::ClaimBuild;
use uuid::Uuid;

use super::super::*;

const OWNER: UserId = UserId(Uuid::from_u128(7));

fn prebuild() -> ClaimState {
    ClaimState {
        owner_id: PREBUILDS_USER,
        is_prebuild: true,
        first_initiator: Some(PREBUILDS_USER),
        latest_number: 1,
        claim: None,
    }
}

fn claimed(status: JobStatus) -> ClaimState {
    ClaimState {
        owner_id: OWNER,
        is_prebuild: false,
        latest_number: 2,
        claim: Some(ClaimBuild { number: 2, status, error: "quota".to_owned() }),
        ..prebuild()
    }
}

#[test]
fn a_prebuild_waits() {
    assert_eq!(decide(&prebuild()), ReinitAnswer::Wait);
}

#[test]
fn a_workspace_that_never_was_a_prebuild_stops_asking() {
    let ordinary = ClaimState {
        owner_id: OWNER,
        is_prebuild: false,
        first_initiator: Some(OWNER),
        ..prebuild()
    };
    assert!(matches!(decide(&ordinary), ReinitAnswer::Terminal(_)));
}

#[test]
fn a_claim_build_that_succeeded_is_told_once() {
    assert_eq!(decide(&claimed(JobStatus::Succeeded)), ReinitAnswer::Reinitialize(OWNER));
}

#[test]
fn a_claim_build_that_failed_is_terminal_with_its_error() {
    for status in [JobStatus::Failed, JobStatus::Canceled] {
        let ReinitAnswer::Terminal(why) = decide(&claimed(status)) else { panic!("{status}") };
        assert!(why.contains("quota"), "{why}");
    }
}

#[test]
fn a_claim_build_on_its_way_waits() {
    for status in [JobStatus::Pending, JobStatus::Running, JobStatus::Canceling] {
        assert_eq!(decide(&claimed(status)), ReinitAnswer::Wait);
    }
}

#[test]
fn a_later_build_means_that_the_claim_was_handled() {
    let later = ClaimState { latest_number: 3, ..claimed(JobStatus::Succeeded) };
    let ReinitAnswer::Terminal(why) = decide(&later) else { panic!() };
    assert!(why.contains("already handled"), "{why}");
}
