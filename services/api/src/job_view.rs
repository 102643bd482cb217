//! A provisioner job, as it is shown wherever one is part of an answer.

use std::collections::HashMap;

use berth_db::job_view::{self, Filter, JobView};
use berth_domain::build::Tags;
use berth_domain::id::{
    DaemonId, FileId, JobId, OrganizationId, TemplateId, VersionId, WorkspaceId,
};
use berth_domain::state::{JobErrorCode, JobKind, JobStatus};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::error::ApiError;

/// A job.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProvisionerJob {
    pub(crate) id: JobId,
    organization_id: OrganizationId,
    #[serde(rename = "type")]
    kind: JobKind,
    pub(crate) status: JobStatus,
    file_id: FileId,
    input: Input,
    metadata: Metadata,
    tags: Tags,
    queue_position: i64,
    queue_size: i64,
    available_workers: Vec<DaemonId>,
    logs_overflowed: bool,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    /// Ours: whose fault the failure is.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<JobErrorCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<DaemonId>,
    #[serde(skip_serializing_if = "String::is_empty")]
    worker_name: String,
}

#[derive(Debug, Clone, Serialize)]
struct Input {
    #[serde(skip_serializing_if = "Option::is_none")]
    template_version_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_build_id: Option<Uuid>,
}

#[derive(Debug, Clone, Serialize)]
struct Metadata {
    template_version_name: String,
    template_name: String,
    template_display_name: String,
    template_icon: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_id: Option<TemplateId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_version_id: Option<VersionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<WorkspaceId>,
    #[serde(skip_serializing_if = "String::is_empty")]
    workspace_name: String,
}

impl From<JobView> for ProvisionerJob {
    fn from(job: JobView) -> Self {
        let id = |key: &str| job.input.get(key)?.as_str()?.parse().ok();
        Self {
            input: Input {
                template_version_id: id("template_version_id"),
                workspace_build_id: id("workspace_build_id"),
            },
            id: job.id,
            organization_id: job.organization_id,
            // Clients know no rehearsals; to them it is a plan that nothing follows.
            kind: match job.kind {
                JobKind::Rehearsal => JobKind::TemplateVersionDryRun,
                other => other,
            },
            status: job.status,
            file_id: job.file_id,
            metadata: Metadata {
                template_version_name: job.version_name,
                template_name: job.template_name,
                template_display_name: job.template_display_name,
                template_icon: job.template_icon,
                template_id: job.template_id,
                template_version_id: job.version_id,
                workspace_id: job.workspace_id,
                workspace_name: job.workspace_name,
            },
            tags: job.tags,
            queue_position: job.queue_position,
            queue_size: job.queue_size,
            available_workers: job.available_workers,
            logs_overflowed: job.logs_overflowed,
            created_at: job.created_at,
            started_at: job.started_at,
            completed_at: job.completed_at,
            canceled_at: job.canceled_at,
            error: job.error,
            // The one code that clients know: they ask for the values then.
            error_code: (job.error_code == Some(JobErrorCode::RequiredVariables))
                .then_some("REQUIRED_TEMPLATE_VARIABLES"),
            failure: job.error_code,
            worker_id: job.worker_id,
            worker_name: job.worker_name,
        }
    }
}

/// Loads jobs by id.
pub(crate) async fn load(
    app: &App,
    ids: impl IntoIterator<Item = JobId>,
) -> Result<HashMap<JobId, ProvisionerJob>, ApiError> {
    let ids: Vec<Uuid> = ids.into_iter().map(|id| id.0).collect();
    let jobs = job_view::list(app.db(), &Filter::by_ids(ids)).await?;
    Ok(jobs.into_iter().map(|job| (job.id, job.into())).collect())
}
