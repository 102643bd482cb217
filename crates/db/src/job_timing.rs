//! How long the actions of a job took.

use berth_domain::id::JobId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// One action.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Of which job.
    pub job_id: JobId,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `init`, `plan`, `apply` or `graph`.
    pub stage: &'static str,
    /// Who did it: a Terraform provider, or the tool itself.
    pub source: String,
    /// What was done.
    pub action: String,
    /// To which resource.
    pub resource: String,
}

/// Stores timings of jobs.
#[tracing::instrument(name = "db.job_timing.insert", level = "debug", skip_all, fields(timings = timings.len()), err)]
pub async fn insert(db: impl Executor<'_>, timings: &[Timing]) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = timings.iter().map(|it| it.job_id.0).collect();
    let starts: Vec<_> = timings.iter().map(|it| at(it.started_at)).collect();
    let ends: Vec<_> = timings.iter().map(|it| at(it.ended_at)).collect();
    let stages: Vec<String> = timings.iter().map(|it| it.stage.to_owned()).collect();
    let sources: Vec<String> = timings.iter().map(|it| it.source.clone()).collect();
    let actions: Vec<String> = timings.iter().map(|it| it.action.clone()).collect();
    let resources: Vec<String> = timings.iter().map(|it| it.resource.clone()).collect();
    sqlx::query!(
        "
        insert into provisioner_job_timings (
            job_id, started_at, ended_at, stage, source, action, resource
        )
        select * from unnest(
            $1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[]
        )",
        &jobs,
        &starts,
        &ends,
        &stages,
        &sources,
        &actions,
        &resources
    )
    .execute(db)
    .await?;
    Ok(())
}
