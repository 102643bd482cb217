//! Promotes template versions: the one place, called by the API and by the reconciler.
//!
//! A plain promotion makes a version the active one at once. A warm one first has its pools built
//! beside the active ones (the version is the template's *candidate*), and the same switch follows
//! by itself when [`berth_domain::promotion::decide`] says so. Whoever switches, opens or ends holds
//! the template's row, so it happens once, however many replicas see that it is time.

use std::collections::BTreeMap;

use berth_bus::event::{Event, Notify, TemplateChanged, TemplateVerb, Wake};
use berth_db::promotion::{self, CandidatePool, LockedTemplate, NewPromotion};
use berth_db::{DbError, template};
use berth_domain::id::{PromotionId, TemplateId, UserId, VersionId};
use berth_domain::notification::NotificationTemplate;
use berth_domain::plan::{Policy, PoolConfig, PoolSnapshot, Standing, plan};
use berth_domain::promotion::{CallOff, Candidate, Promotion, Step, decide};
use berth_domain::state::{JobStatus, PromotionOutcome};
use jiff::Timestamp;

use crate::{Backbone, Work};

/// How a version is to become the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// At once.
    Plain,
    /// When its prebuilds are ready.
    Warm {
        /// Percent of each pool's wanted prebuilds that must be ready, 1 to 100.
        ready_percent: u32,
        /// When it is called off.
        deadline: Timestamp,
        /// Who asks.
        actor: UserId,
    },
}

/// What came of asking for a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promoted {
    /// The version is the active one.
    Active,
    /// Its pools are being built.
    Warming(PromotionId),
}

/// Why a version was not promoted.
#[derive(Debug, thiserror::Error)]
pub enum PromotionError {
    /// There is no such template, or it is deleted.
    #[error("no template {0}")]
    NoTemplate(TemplateId),
    /// The template has no such version.
    #[error("version {0} is no version of this template")]
    NoVersion(VersionId),
    /// It cannot be built.
    #[error(
        "version {version:?} {why}; promote one whose import succeeded and that is not archived"
    )]
    Unusable {
        /// Its name.
        version: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is active already; there is nothing to warm.
    #[error("version {version:?} is the active one already")]
    Active {
        /// Its name.
        version: String,
    },
    /// A deprecated template has no pools to warm.
    #[error("template {template:?} is deprecated and has no prebuilds: lift that first")]
    Deprecated {
        /// Its name.
        template: String,
    },
    /// One at a time.
    #[error(
        "the promotion of version {version:?} is under way until {deadline}: wait for it, cancel it, \
         or promote without warming"
    )]
    Open {
        /// The candidate's name.
        version: String,
        /// When it is called off at the latest.
        deadline: Timestamp,
    },
    /// Its prebuilds are those of the previous version and still serve claims; as a candidate's they
    /// would not.
    #[error(
        "version {version:?} was active before, and {claimable} of its prebuilds still serve claims: \
         promote it without warming"
    )]
    StillServes {
        /// Its name.
        version: String,
        /// Prebuilds that claims may have.
        claimable: i64,
    },
    /// It would be called off at once.
    #[error("version {version:?} cannot be warmed: {why}")]
    Sick {
        /// Its name.
        version: String,
        /// Why.
        why: CallOff,
    },
    /// The database.
    #[error("promote a version")]
    Db(#[from] DbError),
}

/// Makes a version the active one, or has its pools built first. A version without pools that would
/// have to be waited for is active at once, however it was asked for.
#[tracing::instrument(name = "promotion.promote", skip_all, fields(template.id = %template_id, version.id = %version), err)]
pub async fn promote(
    work: &mut Work,
    template_id: TemplateId,
    version: VersionId,
    how: How,
) -> Result<Promoted, PromotionError> {
    let now = work.now();
    let locked = promotion::lock(work.conn(), template_id).await?;
    let template = locked.ok_or(PromotionError::NoTemplate(template_id))?;
    let contender = promotion::find_contender(work.conn(), template_id, version, now).await?;
    let contender = contender.ok_or(PromotionError::NoVersion(version))?;
    let name = contender.name.clone();
    let unusable = match contender.import_status {
        _ if contender.archived => Some("is archived".to_owned()),
        JobStatus::Succeeded => None,
        status => Some(format!("has an import that is {status}")),
    };
    if let Some(why) = unusable {
        return Err(PromotionError::Unusable { version: name, why });
    }
    match how {
        How::Plain => {
            promotion::end(work.conn(), template_id, PromotionOutcome::Superseded, "", now).await?;
            switch(work, &template, version, false).await?;
            Ok(Promoted::Active)
        }
        How::Warm { ready_percent, deadline, actor } => {
            if version == template.active_version_id {
                return Err(PromotionError::Active { version: name });
            }
            if template.is_deprecated {
                return Err(PromotionError::Deprecated { template: template.name });
            }
            let open = promotion::find(work.conn(), template_id).await?;
            if let Some(open) = open.filter(promotion::Promotion::is_open) {
                let (version, deadline) = (open.candidate_version_name, open.deadline);
                return Err(PromotionError::Open { version, deadline });
            }
            if contender.claimable > 0 {
                let claimable = contender.claimable;
                return Err(PromotionError::StillServes { version: name, claimable });
            }
            let new = NewPromotion {
                id: PromotionId(work.id()),
                template_id,
                candidate_version_id: version,
                active_version_id: template.active_version_id,
                ready_percent,
                deadline,
                actor_id: actor,
                now,
            };
            open_or_switch(work, &template, &new, name).await
        }
    }
}

async fn open_or_switch(
    work: &mut Work,
    template: &LockedTemplate,
    new: &NewPromotion,
    name: String,
) -> Result<Promoted, PromotionError> {
    let version = new.candidate_version_id;
    let pools = promotion::list_pools(work.conn(), template.id, version, new.now).await?;
    let asked = Promotion {
        pools: pools.iter().map(|it| candidate(it, new.now)).collect(),
        ready_percent: new.ready_percent,
        deadline: new.deadline,
    };
    match decide(&asked, new.now) {
        Step::CallOff(why) => Err(PromotionError::Sick { version: name, why }),
        Step::Switch => {
            promotion::insert(work.conn(), new).await?;
            let outcome = PromotionOutcome::Promoted;
            promotion::end(work.conn(), template.id, outcome, "", new.now).await?;
            switch(work, template, version, true).await?;
            Ok(Promoted::Active)
        }
        Step::Wait { .. } => {
            promotion::insert(work.conn(), new).await?;
            tell(work, template, &[version], TemplateVerb::PolicyChanged).await?;
            Ok(Promoted::Warming(new.id))
        }
    }
}

/// The switch: one commit after which the version is what claims get.
async fn switch(
    work: &mut Work,
    locked: &LockedTemplate,
    version: VersionId,
    keeps_previous: bool,
) -> Result<(), DbError> {
    let now = work.now();
    if !template::promote(work.conn(), locked.id, version, keeps_previous, now).await? {
        let id = version.to_string();
        return Err(DbError::NotFound { what: "template version to promote", id });
    }
    let old = locked.active_version_id;
    if old != version {
        promotion::link_pools(work.conn(), locked.id, old, version).await?;
    }
    tell(work, locked, &[old, version], TemplateVerb::Promoted).await
}

/// Marks the pools that are concerned and tells of the change.
async fn tell(
    work: &mut Work,
    template: &LockedTemplate,
    versions: &[VersionId],
    what: TemplateVerb,
) -> Result<(), DbError> {
    let now = work.now();
    let organization_id = template.organization_id;
    let presets = promotion::mark_pools(work.conn(), template.id, versions, now).await?;
    work.emit(Event::Template(TemplateChanged { organization_id, template_id: template.id, what }));
    for preset in presets {
        work.emit(Wake::pool(preset));
    }
    work.emit(Wake::membership(organization_id));
    Ok(())
}

/// Ends the open warm promotion without a switch: the candidate's prebuilds go. Template admins are
/// told of one that was called off. Answers with it; `None`: none is open.
#[tracing::instrument(name = "promotion.stop", skip_all, fields(template.id = %template_id, outcome = %outcome), err)]
pub async fn stop(
    work: &mut Work,
    template_id: TemplateId,
    outcome: PromotionOutcome,
    reason: &str,
) -> Result<Option<promotion::Promotion>, DbError> {
    let Some(template) = promotion::lock(work.conn(), template_id).await? else { return Ok(None) };
    let open = promotion::find(work.conn(), template_id).await?;
    let Some(open) = open.filter(promotion::Promotion::is_open) else { return Ok(None) };
    end(work, &template, &open, outcome, reason).await?;
    Ok(Some(open))
}

async fn end(
    work: &mut Work,
    template: &LockedTemplate,
    open: &promotion::Promotion,
    outcome: PromotionOutcome,
    reason: &str,
) -> Result<(), DbError> {
    let now = work.now();
    promotion::end(work.conn(), template.id, outcome, reason, now).await?;
    tell(work, template, &[open.candidate_version_id], TemplateVerb::PolicyChanged).await?;
    if outcome == PromotionOutcome::CalledOff {
        let labels = [
            ("organization", template.organization_name.as_str()),
            ("template", &template.name),
            ("version", &open.candidate_version_name),
            ("reason", reason),
        ];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        work.emit(Event::Notify(Notify {
            template: NotificationTemplate::PromotionCalledOff.id(),
            organization_id: template.organization_id,
            user_id: None,
            labels: labels.map(own).into_iter().collect::<BTreeMap<_, _>>(),
            data: serde_json::Value::Null,
            // The promotion among them: a second one that ends alike on the same day is told, too.
            targets: vec![template.id.0, open.id.0],
        }));
    }
    Ok(())
}

/// A warm promotion with the pools of its candidate.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The open promotion of the template, else the newest one.
    pub promotion: promotion::Promotion,
    /// Each pool with the number of prebuilds that it may have before the switch.
    pub pools: Vec<(CandidatePool, Candidate)>,
}

impl Progress {
    /// Reads it. `None`: no version of the template was ever promoted warm.
    pub async fn read(
        conn: &mut berth_db::Connection,
        template: TemplateId,
        now: Timestamp,
    ) -> Result<Option<Self>, DbError> {
        let Some(found) = promotion::find(&mut *conn, template).await? else { return Ok(None) };
        let version = found.candidate_version_id;
        let pools = promotion::list_pools(&mut *conn, template, version, now).await?;
        let pools = pools.into_iter().map(|it| (it.clone(), candidate(&it, now))).collect();
        Ok(Some(Self { promotion: found, pools }))
    }

    fn step(&self, now: Timestamp) -> Step {
        let asked = Promotion {
            pools: self.pools.iter().map(|(_, it)| it.clone()).collect(),
            ready_percent: self.promotion.ready_percent,
            deadline: self.promotion.deadline,
        };
        decide(&asked, now)
    }
}

/// What the decision looks at in a pool. How many are wanted is what its plan wants.
fn candidate(pool: &CandidatePool, now: Timestamp) -> Candidate {
    let config = PoolConfig {
        preset_id: pool.preset_id,
        standing: Standing::Candidate,
        prebuilds: Some(pool.prebuilds.clone()),
        status: pool.status,
        last_invalidated_at: None,
    };
    let policy = Policy { pool: pool.policy.clone(), ..Policy::default() };
    Candidate {
        preset_name: pool.preset_name.clone(),
        desired: plan(&config, &policy, &PoolSnapshot::default(), now).desired,
        eligible: pool.ready,
        status: pool.status,
    }
}

/// Looks whether the template's open warm promotion is to end, and ends it. The first look needs no
/// lock; whoever finds something to do looks again under the template's, so that of two replicas one
/// does it. Answers with what was done; `None`: nothing was to be.
#[tracing::instrument(name = "promotion.look", skip_all, fields(template.id = %template), err)]
pub async fn look(
    backbone: &Backbone,
    template: TemplateId,
) -> Result<Option<PromotionOutcome>, DbError> {
    let mut conn = backbone.db.acquire().await?;
    let seen = Progress::read(&mut conn, template, backbone.clock.now()).await?;
    drop(conn);
    let idle = |it: &Progress| !it.promotion.is_open();
    if seen.is_none_or(|it| idle(&it) || ending(&it, backbone.clock.now()).is_none()) {
        return Ok(None);
    }
    let mut work = backbone.begin().await?;
    let now = work.now();
    let Some(locked) = promotion::lock(work.conn(), template).await? else { return Ok(None) };
    let Some(seen) = Progress::read(work.conn(), template, now).await? else { return Ok(None) };
    if idle(&seen) {
        return Ok(None);
    }
    let Some(ending) = ending(&seen, now) else { return Ok(None) };
    let open = &seen.promotion;
    let outcome = match ending {
        Ending::Switch => {
            let outcome = PromotionOutcome::Promoted;
            promotion::end(work.conn(), template, outcome, "", now).await?;
            switch(&mut work, &locked, open.candidate_version_id, true).await?;
            outcome
        }
        Ending::CallOff(reason) => {
            let outcome = PromotionOutcome::CalledOff;
            end(&mut work, &locked, open, outcome, &reason).await?;
            outcome
        }
    };
    work.commit().await?;
    tracing::info!(outcome = %outcome, version.id = %open.candidate_version_id, "warm promotion ended");
    Ok(Some(outcome))
}

/// How a promotion ends now.
enum Ending {
    Switch,
    CallOff(String),
}

fn ending(seen: &Progress, now: Timestamp) -> Option<Ending> {
    if seen.promotion.candidate_is_archived {
        return Some(Ending::CallOff("the version was archived".to_owned()));
    }
    match seen.step(now) {
        Step::Wait { .. } => None,
        Step::Switch => Some(Ending::Switch),
        Step::CallOff(why) => Some(Ending::CallOff(why.to_string())),
    }
}
