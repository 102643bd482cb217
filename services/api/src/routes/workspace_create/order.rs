//! A request that passed every check: a prebuild changes hands in one statement, or an ordinary build is
//! queued in one transaction.

use std::time::Instant;

use berth_backbone::builder::{self, BuildRequest, Queued};
use berth_backbone::{Single, Work};
use berth_bus::event::{BuildChanged, Event, JobPosted, Wake, WorkspaceChanged, WorkspaceVerb};
use berth_db::build::NewBuild;
use berth_db::claim::{self, Claim, Claimed, Preparation, Taken, Wanted};
use berth_db::claim_attempt::{self, Attempt};
use berth_db::idempotency;
use berth_db::outbox;
use berth_db::workspace::{self, NewWorkspace};
use berth_domain::id::{BuildId, JobId, PresetId, WorkspaceId};
use berth_domain::state::{
    BuildReason, BuildStage, ClaimOutcome, JobClass, JobStatus, MissReason, Transition,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::choice::{Choice, choose};
use super::miss::Miss;
use super::view::Fresh;
use super::{Asking, Made, of_write, view};
use crate::error::ApiError;
use crate::routes::workspace_change::{self, Line};

/// A request that passed every check.
pub(super) struct Order<'a> {
    pub(super) asking: &'a Asking<'a>,
    pub(super) prepared: &'a Preparation,
    pub(super) choice: &'a Choice,
    pub(super) workspace: &'a NewWorkspace,
}

/// What is asked of a pool: the version that would be built, and what of it.
#[derive(Clone, Copy)]
struct Offer<'a> {
    pool: PresetId,
    built: &'a Preparation,
    choice: &'a Choice,
}

impl Order<'_> {
    /// Hands a prebuild over: one of the version that is asked for, else one of the previous version
    /// where those are kept until enough new ones are ready. `None`: there is none to be had.
    pub(super) async fn claim(&self) -> Result<Option<Made>, ApiError> {
        let Some(pool) = self.choice.pool.filter(|_| self.asking.app.config.claims.enabled) else {
            return Ok(None);
        };
        let offer = Offer { pool, built: self.prepared, choice: self.choice };
        match self.take(offer).await? {
            (Taken::Claimed(_), made) => return Ok(made),
            (Taken::OverQuota, _) => {
                return Err(ApiError::conflict(
                    "quota exceeded: what was left of it has just been spent on another workspace; \
                     stop or delete other workspaces, or ask for a larger allowance",
                    None,
                ));
            }
            (Taken::Nothing, _) => {}
        }
        // A version that is named is the one that is meant.
        if self.asking.request.body.template_version_id.is_some() {
            return Ok(None);
        }
        let Some(previous) = self.choice.previous(self.prepared) else { return Ok(None) };
        self.claim_previous(previous.preset_id, Wanted::Version(previous.version_id)).await
    }

    /// Hands a prebuild of the previous version over, if the request is valid there: that version is
    /// what will be built.
    async fn claim_previous(
        &self,
        pool: PresetId,
        version: Wanted,
    ) -> Result<Option<Made>, ApiError> {
        let (owner, name) = (self.workspace.owner_id, &self.workspace.name);
        let old = claim::prepare(self.asking.app.db(), version, owner, name).await?;
        let Some(old) = old.filter(|it| !it.version_archived) else { return Ok(None) };
        let requested = self.asking.request.body.requested();
        let Ok(choice) = choose(&old, requested, Some(pool)) else { return Ok(None) };
        if choice.affordable(&old).is_err() {
            return Ok(None);
        }
        let (_, made) = self.take(Offer { pool, built: &old, choice: &choice }).await?;
        Ok(made)
    }

    async fn take(&self, offer: Offer<'_>) -> Result<(Taken, Option<Made>), ApiError> {
        let Asking { app, caller, origin, key, .. } = self.asking;
        let single = app.backbone.single();
        let build = self.new_build(&single, offer);
        let events = self.events(&single, &build);
        let line = self.line(WorkspaceId(Uuid::nil()));
        let audit = workspace_change::entry((single.id(), single.now()), caller, origin, line);
        let claim = Claim {
            pool: offer.pool,
            workspace: self.workspace,
            build: &build,
            attempt_id: single.id(),
            asked_version: self.prepared.version_id,
            asked_preset: self.choice.preset,
            previous_detail: &previous_detail(offer.built),
            audit: &audit,
            key: key.map(|it| claim::Key { text: &it.text, body_hash: &it.body_hash }),
            events: &events,
        };
        let began = Instant::now();
        let mut taken = claim::take(app.db(), claim).await.map_err(of_write)?;
        let Taken::Claimed(claimed) = &mut taken else { return Ok((taken, None)) };
        app.metrics.claim_written(ClaimOutcome::Hit, began.elapsed());
        // So that one can walk from a claim to the pass that ordered the prebuild, and to its build.
        let ordered = claimed.prebuild_trace.as_object().into_iter().flatten();
        berth_bus::trace::link(ordered.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))));
        self.tell(single, claimed, offer.pool);
        let detail =
            if claimed.is_previous_version { previous_detail(offer.built) } else { json!({}) };
        let fresh = Fresh {
            workspace_id: claimed.workspace_id,
            created_at: claimed.prebuild_created_at,
            revision: claimed.revision,
            build_number: claimed.build_number,
            daily_cost: claimed.daily_cost,
            provisioner: claimed.provisioner,
            file_id: claimed.file_id,
            tags: claimed.tags.clone(),
        };
        let view = view::of(self, offer.built, &build, &fresh);
        let made = Made {
            workspace_id: claimed.workspace_id,
            preset: self.choice.preset,
            outcome: ClaimOutcome::Hit,
            reason: None,
            detail,
            view,
        };
        Ok((taken, Some(made)))
    }

    fn new_build(&self, single: &Single, offer: Offer<'_>) -> NewBuild {
        NewBuild {
            id: BuildId(single.id()),
            job_id: JobId(single.id()),
            // The statement finds the workspace.
            workspace_id: WorkspaceId(Uuid::nil()),
            version_id: offer.built.version_id,
            preset_id: Some(offer.pool),
            transition: Transition::Start,
            initiator_id: self.asking.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::Claim,
            class: JobClass::Claim,
            pool_state: None,
            parameters: offer.choice.parameters.clone(),
            trace: single.trace(),
            now: single.now(),
        }
    }

    /// The events that are stored with a claim; the statement fills in what it finds.
    fn events(&self, single: &Single, build: &NewBuild) -> [outbox::Row; 2] {
        [
            single.row(&Event::Build(BuildChanged {
                organization_id: self.prepared.organization_id,
                workspace_id: build.workspace_id,
                workspace_name: self.workspace.name.clone(),
                owner_id: self.workspace.owner_id,
                template_id: self.prepared.template_id,
                build_id: build.id,
                build_number: 0,
                transition: build.transition,
                stage: build.stage,
                job_status: JobStatus::Pending,
                revision: 0,
            })),
            single.row(&self.changed(build.workspace_id, WorkspaceVerb::Claimed, 0)),
        ]
    }

    fn changed(&self, workspace_id: WorkspaceId, what: WorkspaceVerb, revision: i64) -> Event {
        Event::Workspace(WorkspaceChanged {
            organization_id: self.prepared.organization_id,
            workspace_id,
            owner_id: self.workspace.owner_id,
            what,
            revision,
        })
    }

    fn line(&self, workspace: WorkspaceId) -> Line<'_> {
        let name = self.workspace.name.as_str();
        Line {
            organization: self.prepared.organization_id,
            action: "create",
            resource_type: "workspace",
            id: workspace.0,
            target: name,
            diff: json!({ "name": { "old": "", "new": name, "secret": false } }),
        }
    }

    /// Publishes what the claim stored, and tells of what a poll would find: the job, and the pools'
    /// marks.
    fn tell(&self, single: Single, claimed: &mut Claimed, pool: PresetId) {
        let mut notices = vec![
            Event::JobPosted(JobPosted {
                organization_id: claimed.organization_id,
                provisioner: claimed.provisioner,
                count: 1,
            }),
            Wake::pool(pool),
        ];
        notices.extend(self.choice.pool.filter(|it| *it != pool).map(Wake::pool));
        single.committed(std::mem::take(&mut claimed.events), &notices);
    }

    /// Makes an ordinary workspace.
    pub(super) async fn build(&self, mut work: Work, miss: Miss) -> Result<Made, ApiError> {
        let Miss { reason, detail, .. } = miss;
        let began = Instant::now();
        let id = WorkspaceId(work.id());
        let now = work.now();
        workspace::insert(work.conn(), id, self.workspace, now).await?;
        let request = BuildRequest {
            workspace_id: id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            transition: Transition::Start,
            initiator_id: self.asking.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::None,
            class: JobClass::Human,
            pool_state: None,
            parameters: self.choice.parameters.clone(),
        };
        let queued = builder::queue(&mut work, request).await?;
        work.emit(self.changed(id, WorkspaceVerb::Created, queued.build.revision));
        if let Some(pool) = self.choice.pool {
            work.emit(Wake::pool(pool));
        }
        self.record(&mut work, (id, queued.build_id), (reason, &detail)).await?;
        let view = self.queued(&work, id, &queued);
        work.commit().await?;
        self.asking.app.metrics.claim_written(ClaimOutcome::Miss, began.elapsed());
        Ok(Made {
            workspace_id: id,
            preset: self.choice.preset,
            outcome: ClaimOutcome::Miss,
            reason: Some(reason),
            detail,
            view,
        })
    }

    /// The ordinary workspace as it is shown.
    fn queued(&self, work: &Work, workspace_id: WorkspaceId, queued: &Queued) -> Value {
        let new = NewBuild {
            id: queued.build_id,
            job_id: queued.job_id,
            workspace_id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            transition: Transition::Start,
            initiator_id: self.asking.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::None,
            class: JobClass::Human,
            pool_state: None,
            parameters: Vec::new(),
            trace: Value::Null,
            now: work.now(),
        };
        let fresh = Fresh {
            workspace_id,
            created_at: work.now(),
            revision: queued.build.revision,
            build_number: queued.build.number,
            daily_cost: 0,
            provisioner: queued.build.provisioner,
            file_id: queued.build.file_id,
            tags: queued.build.tags.clone(),
        };
        view::of(self, self.prepared, &new, &fresh)
    }

    /// Finds out why no prebuild served.
    pub(super) async fn miss(&self, work: &mut Work) -> Result<Miss, ApiError> {
        if let Some((reason, detail)) = &self.choice.miss {
            return Ok(Miss::because(*reason, detail.clone()));
        }
        let not_a_pool = Miss::because(MissReason::NotAPool, json!({}));
        let Some(pool) = self.choice.pool else { return Ok(not_a_pool) };
        if !self.asking.app.config.claims.enabled {
            return Ok(Miss::because(MissReason::Disabled, json!({})));
        }
        let now = work.now();
        let facts = claim::diagnose(work.conn(), pool, now).await?;
        Ok(facts.map_or(not_a_pool, |facts| Miss::of(&facts)))
    }

    async fn record(
        &self,
        work: &mut Work,
        (workspace_id, build_id): (WorkspaceId, BuildId),
        (reason, detail): (MissReason, &Value),
    ) -> Result<(), ApiError> {
        let Asking { caller, origin, key, .. } = self.asking;
        let now = work.now();
        if let Some(key) = key {
            let body_hash = key.body_hash.clone();
            let stored = idempotency::Stored { body_hash, workspace_id };
            idempotency::insert(work.conn(), caller.id(), &key.text, &stored, now)
                .await
                .map_err(of_write)?;
        }
        let attempt = Attempt {
            id: work.id(),
            created_at: now,
            organization_id: self.prepared.organization_id,
            template_id: self.prepared.template_id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            user_id: self.workspace.owner_id,
            workspace_id,
            build_id,
            outcome: ClaimOutcome::Miss,
            reason: Some(reason),
            detail: detail.clone(),
            prebuild_created_at: None,
            build_status: None,
        };
        claim_attempt::insert(work.conn(), &attempt).await?;
        workspace_change::audit(work, caller, origin, self.line(workspace_id)).await
    }
}

/// What is told of a claim that the previous version served.
fn previous_detail(built: &Preparation) -> Value {
    json!({
        "previous_version": true,
        "version_id": built.version_id,
        "version_name": built.version_name,
    })
}
