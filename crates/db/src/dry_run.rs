//! Dry runs: a version planned with given values, for whoever asks.

use berth_domain::id::{JobId, OrganizationId, UserId, VersionId};
use berth_domain::state::{JobClass, ProvisionerType};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{DbError, Executor, at};

/// A dry run to be queued.
#[derive(Debug)]
pub struct NewDryRun<'a> {
    /// Its job.
    pub job_id: JobId,
    /// What is planned.
    pub version_id: VersionId,
    /// Name of the workspace that it is planned for.
    pub workspace_name: &'a str,
    /// Values of the parameters, checked and completed: name, value.
    pub parameters: &'a [(String, String)],
    /// Who asks.
    pub initiator_id: UserId,
    /// W3C trace context of whoever asks.
    pub trace: &'a Value,
    /// When.
    pub now: Timestamp,
}

/// Queues a dry run with the archive and the tags of the version's import. Gives whose daemons may
/// run it and the tool it needs; `None`: there is no such version.
#[tracing::instrument(name = "db.dry_run.insert", skip_all, fields(job.id = %new.job_id), err)]
pub async fn insert(
    db: impl Executor<'_>,
    new: &NewDryRun<'_>,
) -> Result<Option<(OrganizationId, ProvisionerType)>, DbError> {
    let parameters: Vec<Value> = new
        .parameters
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    let input = json!({
        "template_version_id": new.version_id,
        "workspace_name": new.workspace_name,
        "parameters": parameters,
    });
    let row = sqlx::query!(
        "
        insert into provisioner_jobs (
            id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
            trace_metadata, created_at, updated_at
        )
        select $1, v.organization_id, $2, 'template_version_dry_run', v.provisioner, $3, i.file_id,
               $4, i.tags, $5, $6, $6
        from template_versions v join provisioner_jobs i on i.id = v.job_id
        where v.id = $7
        returning organization_id, provisioner",
        new.job_id.0,
        new.initiator_id.0,
        JobClass::Template.rank(),
        input,
        new.trace,
        at(new.now),
        new.version_id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| Ok((OrganizationId(row.organization_id), row.provisioner.parse()?))).transpose()
}

/// Who asked for a dry run of the version; `None`: the job is none of this version.
#[tracing::instrument(name = "db.dry_run.find_initiator", skip_all, fields(job.id = %job), err)]
pub async fn find_initiator(
    db: impl Executor<'_>,
    version: VersionId,
    job: JobId,
) -> Result<Option<UserId>, DbError> {
    let id = sqlx::query_scalar!(
        "
        select initiator_id from provisioner_jobs
        where id = $1 and kind = 'template_version_dry_run'
          and input ->> 'template_version_id' = $2::uuid::text",
        job.0,
        version.0
    )
    .fetch_optional(db)
    .await?;
    Ok(id.map(UserId))
}
