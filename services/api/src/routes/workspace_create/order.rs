//! The transaction of a new workspace: a prebuild changes hands, or an ordinary build is queued.

use berth_backbone::Work;
use berth_backbone::builder::{self, BuildRequest};
use berth_bus::event::{Event, Wake, WorkspaceChanged, WorkspaceVerb};
use berth_db::build::NewBuild;
use berth_db::claim::{self, PoolFacts, Preparation, Wanted};
use berth_db::claim_attempt::Attempt;
use berth_db::pool;
use berth_db::workspace::{self, NewWorkspace};
use berth_domain::id::{BuildId, JobId, PresetId, WorkspaceId};
use berth_domain::plan::Reason;
use berth_domain::state::{
    BuildReason, BuildStage, ClaimOutcome, JobClass, MissReason, PrebuildStatus, Transition,
};
use serde_json::{Value, json};

use super::CreateWorkspace;
use super::choice::{Choice, choose};
use crate::auth::Caller;
use crate::error::ApiError;

/// A request that passed every check.
pub(super) struct Order<'a> {
    pub(super) caller: &'a Caller,
    pub(super) prepared: &'a Preparation,
    pub(super) choice: &'a Choice,
    pub(super) body: &'a CreateWorkspace,
    pub(super) workspace: &'a NewWorkspace,
}

/// Why no prebuild served.
pub(super) struct Miss {
    reason: MissReason,
    detail: Value,
    /// The version that was looked at is not the active one any more.
    pub(super) is_outdated: bool,
}

impl Miss {
    fn because(reason: MissReason, detail: Value) -> Self {
        Self { reason, detail, is_outdated: false }
    }
}

impl Order<'_> {
    /// Hands a prebuild over: one of the version that is asked for, else one of the previous version
    /// where those are kept until enough new ones are ready. `None`: there is none to be had.
    pub(super) async fn claim(&self, work: &mut Work) -> Result<Option<Attempt>, ApiError> {
        let Some(pool) = self.choice.pool else { return Ok(None) };
        let hit = self.take(work, (self.prepared, self.choice), pool).await?;
        // A version that is named is the one that is meant.
        let may_be_older = self.body.template_version_id.is_none();
        match self.choice.previous(self.prepared).filter(|_| may_be_older) {
            Some(previous) if hit.is_none() => {
                let (preset, version) = (previous.preset_id, Wanted::Version(previous.version_id));
                self.claim_previous(work, pool, preset, version).await
            }
            _ => Ok(hit),
        }
    }

    /// Hands a prebuild of the previous version over, if the request is valid there: that version is
    /// what will be built.
    async fn claim_previous(
        &self,
        work: &mut Work,
        pool: PresetId,
        preset: PresetId,
        version: Wanted,
    ) -> Result<Option<Attempt>, ApiError> {
        let (owner, name) = (self.workspace.owner_id, &self.workspace.name);
        let old = claim::prepare(work.conn(), version, owner, name).await?;
        let Some(old) = old.filter(|it| !it.version_archived) else { return Ok(None) };
        let Ok(choice) = choose(&old, self.body.requested(), Some(preset)) else { return Ok(None) };
        if choice.affordable(&old).is_err() {
            return Ok(None);
        }
        let hit = self.take(work, (&old, &choice), preset).await?;
        if hit.is_some() {
            // The new pool may grow by what the old one lost.
            let now = work.now();
            pool::mark_dirty(work.conn(), &[pool], now).await?;
            work.emit(Wake::pool(preset));
        }
        Ok(hit)
    }

    async fn take(
        &self,
        work: &mut Work,
        (built, choice): (&Preparation, &Choice),
        pool: PresetId,
    ) -> Result<Option<Attempt>, ApiError> {
        let mut new = NewBuild {
            id: BuildId(work.id()),
            job_id: JobId(work.id()),
            // The statement finds the workspace.
            workspace_id: WorkspaceId(uuid::Uuid::nil()),
            version_id: built.version_id,
            preset_id: Some(pool),
            transition: Transition::Start,
            initiator_id: self.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::Claim,
            class: JobClass::Claim,
            pool_state: None,
            parameters: choice.parameters.clone(),
            trace: work.trace(),
            now: work.now(),
        };
        let taken = claim::take(work.conn(), pool, self.workspace, &new).await?;
        let Some(taken) = taken else { return Ok(None) };
        new.workspace_id = taken.workspace_id;
        // So that one can walk from a claim to the pass that ordered the prebuild, and to its build.
        let ordered = taken.prebuild_trace.as_object().into_iter().flatten();
        berth_bus::trace::link(ordered.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))));
        builder::announce(work, &new, &taken.build);
        work.emit(Event::Workspace(WorkspaceChanged {
            organization_id: taken.build.organization_id,
            workspace_id: taken.workspace_id,
            owner_id: self.workspace.owner_id,
            what: WorkspaceVerb::Claimed,
            revision: taken.build.revision,
        }));
        let detail = if taken.is_previous_version {
            json!({
                "previous_version": true,
                "version_id": built.version_id,
                "version_name": built.version_name,
            })
        } else {
            json!({})
        };
        let attempt = self.attempt(work, taken.workspace_id, new.id);
        let prebuild_created_at = Some(taken.prebuild_created_at);
        Ok(Some(Attempt { prebuild_created_at, detail, ..attempt }))
    }

    /// Makes an ordinary workspace.
    pub(super) async fn build(&self, work: &mut Work, miss: Miss) -> Result<Attempt, ApiError> {
        let Miss { reason, detail, .. } = miss;
        let id = WorkspaceId(work.id());
        let now = work.now();
        workspace::insert(work.conn(), id, self.workspace, now).await?;
        let request = BuildRequest {
            workspace_id: id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            transition: Transition::Start,
            initiator_id: self.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::None,
            class: JobClass::Human,
            pool_state: None,
            parameters: self.choice.parameters.clone(),
        };
        let queued = builder::queue(work, request).await?;
        work.emit(Event::Workspace(WorkspaceChanged {
            organization_id: self.prepared.organization_id,
            workspace_id: id,
            owner_id: self.workspace.owner_id,
            what: WorkspaceVerb::Created,
            revision: queued.build.revision,
        }));
        let attempt = self.attempt(work, id, queued.build_id);
        Ok(Attempt { outcome: ClaimOutcome::Miss, reason: Some(reason), detail, ..attempt })
    }

    /// Finds out why no prebuild served.
    pub(super) async fn miss(&self, work: &mut Work) -> Result<Miss, ApiError> {
        if let Some((reason, detail)) = &self.choice.miss {
            return Ok(Miss::because(*reason, detail.clone()));
        }
        let not_a_pool = Miss::because(MissReason::NotAPool, json!({}));
        let Some(pool) = self.choice.pool else { return Ok(not_a_pool) };
        let now = work.now();
        let facts = claim::diagnose(work.conn(), pool, now).await?;
        Ok(facts.map_or(not_a_pool, |facts| {
            let (reason, detail) = miss_reason(&facts);
            Miss { reason, detail, is_outdated: !facts.active }
        }))
    }

    fn attempt(&self, work: &Work, workspace: WorkspaceId, build: BuildId) -> Attempt {
        Attempt {
            id: work.id(),
            created_at: work.now(),
            organization_id: self.prepared.organization_id,
            template_id: self.prepared.template_id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            user_id: self.workspace.owner_id,
            workspace_id: workspace,
            build_id: build,
            outcome: ClaimOutcome::Hit,
            reason: None,
            detail: json!({}),
            prebuild_created_at: None,
            build_status: None,
        }
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
        let reasons = serde_json::to_value([Reason::Capacity]).unwrap();
        check(&PoolFacts { reasons, ..pool() }, MissReason::Capacity);
    }
}
