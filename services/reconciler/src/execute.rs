//! Carries out a plan. Every write states what it assumes; what no longer holds is left alone and
//! the next pass sees it.

use std::collections::BTreeMap;

use anyhow::bail;
use berth_backbone::builder::{self, BuildError, BuildRequest};
use berth_backbone::{Backbone, Work};
use berth_bus::event::{Event, Notify, WorkspaceChanged, WorkspaceVerb};
use berth_db::build;
use berth_db::pool::{self, LockedPool, NewPrebuild};
use berth_domain::id::{BuildId, PREBUILDS_USER, WorkspaceId};
use berth_domain::name;
use berth_domain::notification::NotificationTemplate;
use berth_domain::plan::{Action, DeleteReason, Plan};
use berth_domain::state::{BuildReason, BuildStage, JobClass, PoolState, Transition};
use jiff::SignedDuration;

/// Writes what the plan says into the open transaction. Answers with the pending prebuilds that are
/// to be cancelled in transactions of their own.
pub(crate) async fn carry_out(
    work: &mut Work,
    pool: &LockedPool,
    plan: &Plan,
) -> anyhow::Result<Vec<(WorkspaceId, BuildId)>> {
    let preset = pool.config.preset_id;
    let now = work.now();
    let mut pending = Vec::new();
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
                pending.push((*workspace_id, *build_id));
            }
            Action::Delete { workspace_id, build_id, why } => {
                delete(work, pool, (*workspace_id, *build_id), *why).await?;
            }
            Action::Create { count, is_probe } => {
                create(work, pool, *count).await?;
                if *is_probe {
                    pool::note_probe(work.conn(), preset, now).await?;
                }
            }
        }
    }
    Ok(pending)
}

/// Orders `count` prebuilds: workspace, build and job of each.
#[tracing::instrument(name = "reconcile.create", skip_all, fields(preset.id = %pool.config.preset_id, count), err)]
async fn create(work: &mut Work, pool: &LockedPool, count: u32) -> anyhow::Result<()> {
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
            tell(work, pool, NotificationTemplate::PresetInvalid, 0);
            return Ok(());
        };
        parameters.push((name, value));
    }
    let ttl = pool.config.prebuilds.as_ref().map_or(0, |it| it.ttl_seconds);
    for _ in 0..count {
        let id = WorkspaceId(work.id());
        let new = NewPrebuild {
            id,
            name: name::prebuild_name(work.ids().bytes()),
            organization_id: pool.organization_id,
            template_id,
            preset_id: preset,
            expires_at: (ttl > 0).then(|| work.now() + SignedDuration::from_secs(ttl)),
            now: work.now(),
        };
        pool::insert_prebuild(work.conn(), &new).await?;
        let mut request = prebuild_build(pool, id, Transition::Start);
        request.parameters.clone_from(&parameters);
        builder::queue(work, request).await?;
    }
    Ok(())
}

/// Orders the delete of one prebuild, unless it is none any more.
#[tracing::instrument(name = "reconcile.delete", skip_all, fields(workspace.id = %prebuild.0, why = %why), err)]
async fn delete(
    work: &mut Work,
    pool: &LockedPool,
    prebuild: (WorkspaceId, BuildId),
    why: DeleteReason,
) -> anyhow::Result<()> {
    let (workspace, latest) = prebuild;
    let preset = pool.config.preset_id;
    if !pool::is_still_member(work.conn(), preset, workspace, latest).await? {
        tracing::info!(why = %why, "no longer in the pool, left alone");
        return Ok(());
    }
    let mut request = prebuild_build(pool, workspace, Transition::Delete);
    request.parameters = build::list_parameters(work.conn(), latest).await?;
    match builder::queue(work, request).await {
        // Its latest build is not finished: the next pass sees what came of it.
        Ok(_) | Err(BuildError::Busy(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Cancels a first build that no daemon holds and deletes the workspace at once: nothing was made.
#[tracing::instrument(name = "reconcile.cancel_pending", skip_all, fields(workspace.id = %workspace), err)]
pub(crate) async fn cancel_pending(
    backbone: &Backbone,
    pool: &LockedPool,
    workspace: WorkspaceId,
    build: BuildId,
) -> anyhow::Result<()> {
    let mut work = backbone.begin().await?;
    let now = work.now();
    let preset = pool.config.preset_id;
    if !pool::is_still_member(work.conn(), preset, workspace, build).await?
        || !pool::cancel_pending(work.conn(), build, now).await?
    {
        // A daemon took it, or a person cancelled it: not ours any more.
        return Ok(());
    }
    let mut request = prebuild_build(pool, workspace, Transition::Delete);
    request.parameters = build::list_parameters(work.conn(), build).await?;
    let queued = builder::queue(&mut work, request).await?;
    let revision = pool::finish_orphan_delete(work.conn(), workspace, queued.job_id, now).await?;
    work.emit(Event::Workspace(WorkspaceChanged {
        organization_id: pool.organization_id,
        workspace_id: workspace,
        owner_id: PREBUILDS_USER,
        what: WorkspaceVerb::Deleted,
        revision,
    }));
    Ok(work.commit().await?)
}

fn prebuild_build(
    pool: &LockedPool,
    workspace: WorkspaceId,
    transition: Transition,
) -> BuildRequest {
    let (class, state) = match transition {
        Transition::Delete => (JobClass::PrebuildDelete, PoolState::Deleting),
        Transition::Start => (JobClass::PrebuildCreate, PoolState::Starting),
        Transition::Stop => (JobClass::PrebuildCreate, PoolState::Stopping),
    };
    BuildRequest {
        workspace_id: workspace,
        version_id: pool.version_id,
        preset_id: Some(pool.config.preset_id),
        transition,
        initiator_id: PREBUILDS_USER,
        reason: BuildReason::Initiator,
        stage: BuildStage::Prebuild,
        class,
        pool_state: Some(state),
        parameters: Vec::new(),
    }
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
