//! A new workspace as its owner sees it, from what its making knows: reading it again would cost more
//! round trips than a claim.

use berth_db::build::NewBuild;
use berth_db::build::read::{Build, Job};
use berth_db::claim::Preparation;
use berth_db::workspace::Workspace;
use berth_domain::build::Tags;
use berth_domain::id::{FileId, WorkspaceId};
use berth_domain::state::{JobKind, JobStatus, ProvisionerType};
use jiff::Timestamp;
use serde_json::Value;

use super::order::Order;
use crate::routes::workspace_view;

/// What the database told of a workspace when its build was queued.
pub(super) struct Fresh {
    pub(super) workspace_id: WorkspaceId,
    /// When the workspace, or the prebuild that it was, was made.
    pub(super) created_at: Timestamp,
    pub(super) revision: i64,
    pub(super) build_number: i32,
    pub(super) daily_cost: i32,
    pub(super) provisioner: ProvisionerType,
    pub(super) file_id: FileId,
    pub(super) tags: Tags,
}

/// The workspace with its build, of which nothing was built yet.
pub(super) fn of(order: &Order<'_>, built: &Preparation, new: &NewBuild, fresh: &Fresh) -> Value {
    let newest = build(order, built, new, fresh);
    workspace_view::queued(&workspace(order, new, fresh), &newest)
}

fn workspace(order: &Order<'_>, new: &NewBuild, fresh: &Fresh) -> Workspace {
    let (asked, owner) = (order.prepared, &order.asking.request.owner);
    let wanted = order.workspace;
    Workspace {
        id: fresh.workspace_id,
        owner_id: owner.id,
        owner_name: owner.username.clone(),
        owner_avatar_url: owner.avatar_url.clone(),
        organization_id: order.prepared.organization_id,
        organization_name: asked.organization_name.clone(),
        template_id: order.prepared.template_id,
        template_name: asked.template_name.clone(),
        template_display_name: asked.template_display_name.clone(),
        template_icon: asked.template_icon.clone(),
        template_active_version_id: asked.active_version_id.0,
        allow_user_cancel_workspace_jobs: asked.allow_user_cancel_workspace_jobs,
        require_active_version: asked.require_active_version,
        allow_user_autostart: asked.allow_user_autostart,
        allow_user_autostop: asked.allow_user_autostop,
        name: wanted.name.clone(),
        deleted: false,
        created_at: fresh.created_at,
        updated_at: new.now,
        last_used_at: new.now,
        autostart_schedule: wanted.autostart_schedule.clone(),
        ttl_ms: wanted.ttl_ms,
        automatic_updates: wanted.automatic_updates.clone(),
        dormant_at: None,
        deleting_at: None,
        favorite: false,
        revision: fresh.revision,
        latest_build_id: Some(new.id),
        pool_preset_id: None,
        pool_state: None,
    }
}

fn build(order: &Order<'_>, built: &Preparation, new: &NewBuild, fresh: &Fresh) -> Build {
    let (asked, owner) = (order.prepared, &order.asking.request.owner);
    Build {
        id: new.id,
        workspace_id: fresh.workspace_id,
        workspace_name: order.workspace.name.clone(),
        owner_id: owner.id,
        owner_name: owner.username.clone(),
        owner_avatar_url: owner.avatar_url.clone(),
        organization_id: order.prepared.organization_id,
        template_id: order.prepared.template_id,
        template_name: asked.template_name.clone(),
        template_display_name: asked.template_display_name.clone(),
        template_icon: asked.template_icon.clone(),
        version_id: new.version_id,
        version_name: built.version_name.clone(),
        preset_id: new.preset_id,
        number: fresh.build_number,
        transition: new.transition,
        initiator_id: new.initiator_id,
        initiator_name: order.asking.caller.user.username.clone(),
        reason: new.reason,
        stage: new.stage,
        daily_cost: fresh.daily_cost,
        deadline: None,
        max_deadline: None,
        created_at: new.now,
        updated_at: new.now,
        job: job(order, new, fresh),
    }
}

/// The job as it was inserted. Its place in the queue is left to whoever follows the build: telling it
/// means counting the queue.
fn job(order: &Order<'_>, new: &NewBuild, fresh: &Fresh) -> Job {
    Job {
        id: new.job_id,
        organization_id: order.prepared.organization_id,
        kind: JobKind::WorkspaceBuild,
        status: JobStatus::Pending,
        provisioner: fresh.provisioner,
        created_at: new.now,
        started_at: None,
        canceled_at: None,
        completed_at: None,
        error: String::new(),
        error_code: None,
        file_id: fresh.file_id,
        tags: fresh.tags.clone(),
        worker_id: None,
        worker_name: String::new(),
        logs_overflowed: false,
        queue_position: 0,
        queue_size: 0,
    }
}
