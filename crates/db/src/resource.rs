//! What builds made: resources.

use berth_domain::id::{JobId, ResourceId};
use berth_domain::state::Transition;
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::claim::json;
use crate::{DbError, Executor};

/// A resource of a build or of an import.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its id.
    pub id: ResourceId,
    /// The job that reported it.
    pub job_id: JobId,
    /// In which transition it exists.
    pub transition: Transition,
    /// Its type, as the tool spells it.
    pub kind: String,
    /// Its name in the template.
    pub name: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// Not to be shown.
    pub hide: bool,
    /// Credits a day.
    pub daily_cost: i32,
    /// What the template says about it.
    pub metadata: Vec<Metadata>,
    /// When it was reported.
    pub created_at: Timestamp,
}

/// One line about a resource.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: Option<String>,
    /// Not to be shown at once.
    #[serde(default)]
    pub sensitive: bool,
}

/// Resources of the given jobs, by job and name.
#[tracing::instrument(name = "db.resource.list", skip_all, fields(jobs = jobs.len()), err)]
pub async fn list(db: impl Executor<'_>, jobs: &[JobId]) -> Result<Vec<Resource>, DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        "
        select id, job_id, transition, type, name, icon, hide, daily_cost, metadata, created_at
        from workspace_resources where job_id = any($1) order by job_id, name, id",
        &jobs
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Resource {
                id: ResourceId(row.id),
                job_id: JobId(row.job_id),
                transition: row.transition.parse()?,
                kind: row.r#type,
                name: row.name,
                icon: row.icon,
                hide: row.hide,
                daily_cost: row.daily_cost,
                metadata: json("workspace_resources.metadata", row.metadata)?,
                created_at: row.created_at.to_jiff(),
            })
        })
        .collect()
}
