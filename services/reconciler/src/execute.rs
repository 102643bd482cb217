//! Carries out a plan. Every write states what it assumes; what no longer holds is left alone and
//! the next pass sees it.

use std::collections::BTreeMap;

use anyhow::bail;
use berth_backbone::{Backbone, Work};
use berth_bus::event::{BuildChanged, Event, JobPosted, Notify, WorkspaceChanged, WorkspaceVerb};
use berth_db::pool::{self, BuildIds, Doomed, LockedPool, NewPrebuilds, Pending, Queued};
use berth_domain::id::{BuildId, JobId, PREBUILDS_USER, WorkspaceId};
use berth_domain::name;
use berth_domain::notification::NotificationTemplate;
use berth_domain::plan::{Action, Plan, Reason};
use berth_domain::state::{BuildStage, JobStatus, Transition};

/// What is left to do when the plan's transaction has committed.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Pending prebuilds that are to be cancelled in transactions of their own.
    pub(crate) pending: Vec<(WorkspaceId, BuildId)>,
    /// Something turned out otherwise than planned: the pool needs another look at once.
    pub(crate) is_stale: bool,
}

/// Writes what the plan says into the open transaction, each kind of action in one statement.
pub(crate) async fn carry_out(
    work: &mut Work,
    pool: &LockedPool,
    plan: &Plan,
) -> anyhow::Result<Rest> {
    let preset = pool.config.preset_id;
    let now = work.now();
    let mut rest = Rest::default();
    let mut doomed = Vec::new();
    for action in &plan.actions {
        match action {
            Action::OpenBreaker { consecutive } => {
                pool::open_breaker(work.conn(), preset, now).await?;
                tell(work, pool, NotificationTemplate::PrebuildFailureLimit, *consecutive);
            }
            Action::CloseBreaker => {
                pool::close_breaker(work.conn(), preset).await?;
                tell(work, pool, NotificationTemplate::PrebuildsRecovered, 0);
            }
            Action::CancelPending { workspace_id, build_id } => {
                rest.pending.push((*workspace_id, *build_id));
            }
            Action::Delete { workspace_id, build_id, .. } => {
                doomed.push((*workspace_id, *build_id));
            }
            Action::Create { count, is_probe } => {
                rest.is_stale |= !create(work, pool, *count).await?;
                if *is_probe {
                    pool::note_probe(work.conn(), preset, now).await?;
                }
            }
        }
    }
    if !doomed.is_empty() {
        delete(work, pool, &doomed).await?;
    }
    let refused = Reason::ValidationFailed.name();
    if plan.holds().contains(&refused) && !pool.last_holds.iter().any(|it| it == refused) {
        tell(work, pool, NotificationTemplate::PresetInvalid, 0);
    }
    Ok(rest)
}

/// Orders `count` prebuilds: workspace, build and job of each. `false`: not all of them came to be.
#[tracing::instrument(name = "reconcile.create", skip_all, fields(preset.id = %pool.config.preset_id, count), err)]
async fn create(work: &mut Work, pool: &LockedPool, count: u32) -> anyhow::Result<bool> {
    let preset = pool.config.preset_id;
    let Some(template_id) = pool.template_id else {
        bail!("preset {preset} is active but its version belongs to no template")
    };
    let found = pool::list_creation_parameters(work.conn(), pool.version_id, preset).await?;
    let mut parameters = Vec::with_capacity(found.len());
    for (name, value) in found {
        let Some(value) = value else {
            tracing::warn!(parameter = name, "the preset gives no value to a required parameter");
            pool::mark_invalid(work.conn(), preset).await?;
            return Ok(false);
        };
        parameters.push((name, value));
    }
    let ids: Vec<BuildIds> = (0..count).map(|_| ids(work, WorkspaceId(work.id()))).collect();
    let names: Vec<String> = ids.iter().map(|_| name::prebuild_name(work.ids().bytes())).collect();
    let new = NewPrebuilds {
        preset_id: preset,
        template_id,
        organization_id: pool.organization_id,
        version_id: pool.version_id,
        ids: &ids,
        names: &names,
        ttl_seconds: pool.config.prebuilds.as_ref().map_or(0, |it| it.ttl_seconds),
        parameters: &parameters,
        trace: &work.trace(),
        now: work.now(),
    };
    let queued = pool::insert_prebuilds(work.conn(), &new).await?;
    announce(work, pool, Transition::Start, &queued);
    Ok(queued.len() == ids.len())
}

/// Orders the deletes of prebuilds; those that are none any more are left alone.
#[tracing::instrument(name = "reconcile.delete", skip_all, fields(preset.id = %pool.config.preset_id, count = doomed.len()), err)]
async fn delete(
    work: &mut Work,
    pool: &LockedPool,
    doomed: &[(WorkspaceId, BuildId)],
) -> anyhow::Result<()> {
    let ids: Vec<BuildIds> = doomed.iter().map(|(workspace, _)| ids(work, *workspace)).collect();
    let latest: Vec<BuildId> = doomed.iter().map(|(_, latest)| *latest).collect();
    let doomed = Doomed {
        preset_id: pool.config.preset_id,
        version_id: pool.version_id,
        ids: &ids,
        latest: &latest,
        trace: &work.trace(),
        now: work.now(),
    };
    let queued = pool::queue_deletes(work.conn(), &doomed).await?;
    if queued.len() < ids.len() {
        let left = ids.len() - queued.len();
        tracing::info!(left, "no longer in the pool or busy, left alone");
    }
    announce(work, pool, Transition::Delete, &queued);
    Ok(())
}

/// Cancels a first build that no daemon holds and deletes the workspace at once: nothing was made.
/// `false`: it is not ours any more, and is left alone.
#[tracing::instrument(name = "reconcile.cancel_pending", skip_all, fields(workspace.id = %workspace), err)]
pub(crate) async fn cancel_pending(
    backbone: &Backbone,
    pool: &LockedPool,
    workspace: WorkspaceId,
    first: BuildId,
) -> anyhow::Result<bool> {
    let mut work = backbone.begin().await?;
    let pending = Pending {
        preset_id: pool.config.preset_id,
        version_id: pool.version_id,
        ids: ids(&work, workspace),
        first,
        trace: &work.trace(),
        now: work.now(),
    };
    let Some(done) = pool::cancel_pending(work.conn(), &pending).await? else { return Ok(false) };
    let canceled = Queued { build_id: first, number: 1, ..done.clone() };
    work.emit(build_changed(pool, &canceled, Transition::Start, JobStatus::Canceled));
    work.emit(build_changed(pool, &done, Transition::Delete, JobStatus::Succeeded));
    work.emit(Event::Workspace(WorkspaceChanged {
        organization_id: pool.organization_id,
        workspace_id: workspace,
        owner_id: PREBUILDS_USER,
        what: WorkspaceVerb::Deleted,
        revision: done.revision,
    }));
    work.commit().await?;
    Ok(true)
}

fn ids(work: &Work, workspace: WorkspaceId) -> BuildIds {
    BuildIds { workspace, build: BuildId(work.id()), job: JobId(work.id()) }
}

/// Tells that builds were queued, and once that their jobs are there.
fn announce(work: &mut Work, pool: &LockedPool, transition: Transition, queued: &[Queued]) {
    for build in queued {
        work.emit(build_changed(pool, build, transition, JobStatus::Pending));
    }
    if let Ok(count @ 1..) = u32::try_from(queued.len()) {
        let (organization_id, provisioner) = (pool.organization_id, pool.provisioner);
        work.emit(Event::JobPosted(JobPosted { organization_id, provisioner, count }));
    }
}

fn build_changed(
    pool: &LockedPool,
    build: &Queued,
    transition: Transition,
    job_status: JobStatus,
) -> Event {
    Event::Build(BuildChanged {
        organization_id: pool.organization_id,
        workspace_id: build.workspace_id,
        workspace_name: build.name.clone(),
        owner_id: PREBUILDS_USER,
        template_id: build.template_id,
        build_id: build.build_id,
        build_number: build.number,
        transition,
        stage: BuildStage::Prebuild,
        job_status,
        revision: build.revision,
    })
}

/// One message to the template admins of the organization.
fn tell(work: &mut Work, pool: &LockedPool, template: NotificationTemplate, failures: u32) {
    let [organization, name, version, preset] = pool.names.clone();
    let labels = BTreeMap::from([
        ("organization".to_owned(), organization),
        ("template".to_owned(), name),
        ("version".to_owned(), version),
        ("preset".to_owned(), preset),
        ("failures".to_owned(), failures.to_string()),
    ]);
    let targets = [pool.template_id.map(|it| it.0), Some(pool.config.preset_id.0)];
    work.emit(Event::Notify(Notify {
        template: template.id(),
        organization_id: pool.organization_id,
        user_id: None,
        labels,
        data: serde_json::Value::Null,
        targets: targets.into_iter().flatten().collect(),
    }));
}
