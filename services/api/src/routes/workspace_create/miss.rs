//! Why no prebuild served.

use berth_db::claim::PoolFacts;
use berth_domain::plan::Reason;
use berth_domain::state::{MissReason, PrebuildStatus};
use serde_json::{Value, json};

/// Why no prebuild served.
#[derive(Debug)]
pub(super) struct Miss {
    /// Of the closed set.
    pub(super) reason: MissReason,
    /// What explains it.
    pub(super) detail: Value,
    /// The version that was looked at is not the active one any more.
    pub(super) is_outdated: bool,
}

impl Miss {
    pub(super) fn because(reason: MissReason, detail: Value) -> Self {
        Self { reason, detail, is_outdated: false }
    }

    /// What a pool that looks like this says.
    pub(super) fn of(facts: &PoolFacts) -> Self {
        let (reason, detail) = miss_reason(facts);
        Self { reason, detail, is_outdated: !facts.active }
    }
}

/// Why a pool that looks like this handed nothing out.
fn miss_reason(facts: &PoolFacts) -> (MissReason, Value) {
    let live = facts.ready - facts.ready_expired;
    if !facts.active {
        let detail = json!({ "explanation": "the version is not the template's active one" });
        return (MissReason::Empty, detail);
    }
    if live > 0 {
        return (MissReason::AllLocked, json!({ "ready": live }));
    }
    if facts.ready_expired > 0 && facts.unready + facts.starting == 0 {
        return (MissReason::Expired, json!({ "expired": facts.ready_expired }));
    }
    if facts.unready + facts.starting > 0 {
        let detail = json!({
            "unready": facts.unready,
            "starting": facts.starting,
            "agents_waited_for": facts.waiting_for,
        });
        return (MissReason::NoneReady, detail);
    }
    let reason = match facts.status {
        _ if facts.paused => MissReason::Paused,
        PrebuildStatus::HardLimited => MissReason::HardLimited,
        PrebuildStatus::ValidationFailed => MissReason::ValidationFailed,
        PrebuildStatus::Healthy => serde_json::from_value::<Vec<Reason>>(facts.reasons.clone())
            .unwrap_or_default()
            .iter()
            .find_map(Reason::miss_reason)
            .unwrap_or(MissReason::Empty),
    };
    (reason, json!({}))
}

#[cfg(test)]
mod tests {
    use berth_domain::plan::Need;

    use super::*;

    fn pool() -> PoolFacts {
        PoolFacts {
            members: 0,
            ready: 0,
            ready_expired: 0,
            unready: 0,
            starting: 0,
            waiting_for: Vec::new(),
            status: PrebuildStatus::Healthy,
            paused: false,
            active: true,
            reasons: json!([]),
        }
    }

    #[track_caller]
    fn check(facts: &PoolFacts, expected: MissReason) {
        assert_eq!(miss_reason(facts).0, expected);
    }

    #[test]
    fn a_miss_names_what_the_pool_lacks() {
        check(&pool(), MissReason::Empty);
        check(&PoolFacts { ready: 2, ..pool() }, MissReason::AllLocked);
        check(&PoolFacts { ready: 2, ready_expired: 2, ..pool() }, MissReason::Expired);
        check(
            &PoolFacts { ready: 2, ready_expired: 2, starting: 1, ..pool() },
            MissReason::NoneReady,
        );
        check(&PoolFacts { unready: 1, ..pool() }, MissReason::NoneReady);
    }

    #[test]
    fn an_empty_pool_says_what_holds_its_creation() {
        check(&PoolFacts { paused: true, ..pool() }, MissReason::Paused);
        let held = |status| PoolFacts { status, ..pool() };
        check(&held(PrebuildStatus::HardLimited), MissReason::HardLimited);
        check(&held(PrebuildStatus::ValidationFailed), MissReason::ValidationFailed);
        let reasons = serde_json::to_value([Reason::Capacity { need: Need::default() }]).unwrap();
        check(&PoolFacts { reasons, ..pool() }, MissReason::Capacity);
    }
}
