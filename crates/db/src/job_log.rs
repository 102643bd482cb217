//! Log lines of jobs. A line is stored once however often it is sent: its number is its key.

use std::collections::BTreeMap;

use berth_domain::id::JobId;
use berth_domain::state::{LogLevel, LogSource};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A line to be stored.
#[derive(Debug, Clone)]
pub struct NewLine {
    /// Place of the line in its job: from 1, in the order the daemon wrote them.
    pub number: i64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Who wrote it.
    pub source: LogSource,
    /// How grave it is.
    pub level: LogLevel,
    /// The stage it belongs to.
    pub stage: String,
    /// The text, without line end.
    pub output: String,
}

/// A stored line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Grows with each stored line: what followers ask `after`.
    pub id: i64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Who wrote it.
    pub source: LogSource,
    /// How grave it is.
    pub level: LogLevel,
    /// The stage it belongs to.
    pub stage: String,
    /// The text.
    pub output: String,
}

/// Stores lines of a job; those stored before are left as they are. Gives the id of the newest line
/// that was stored now.
#[tracing::instrument(name = "db.job_log.insert", level = "debug", skip_all, fields(job.id = %job, lines = lines.len()), err)]
pub async fn insert(
    db: impl Executor<'_>,
    job: JobId,
    lines: &[NewLine],
) -> Result<Option<i64>, DbError> {
    let numbers: Vec<i64> = lines.iter().map(|it| it.number).collect();
    let times: Vec<_> = lines.iter().map(|it| at(it.created_at)).collect();
    let sources: Vec<String> = lines.iter().map(|it| it.source.to_string()).collect();
    let levels: Vec<String> = lines.iter().map(|it| it.level.to_string()).collect();
    let stages: Vec<String> = lines.iter().map(|it| it.stage.clone()).collect();
    let outputs: Vec<String> = lines.iter().map(|it| it.output.clone()).collect();
    let newest = sqlx::query_scalar!(
        "
        with added as (
            insert into provisioner_job_logs (job_id, number, created_at, source, level, stage, output)
            select $1, l.number, l.created_at, l.source, l.level, l.stage, l.output
            from unnest(
                $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[]
            ) with ordinality as l (number, created_at, source, level, stage, output, place)
            order by l.place
            on conflict on constraint provisioner_job_logs_job_id_number_key do nothing
            returning id
        )
        select max(id) from added",
        job.0,
        &numbers,
        &times,
        &sources,
        &levels,
        &stages,
        &outputs
    )
    .fetch_one(db)
    .await?;
    Ok(newest)
}

/// Adds one line of the broker's own to each of the jobs, numbered downwards from 0. The rows of the
/// jobs must be locked by the caller, so that two notes do not get one number.
#[tracing::instrument(name = "db.job_log.insert_notes", skip_all, fields(jobs = jobs.len()), err)]
pub async fn insert_notes(
    db: impl Executor<'_>,
    jobs: &[JobId],
    level: LogLevel,
    output: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    sqlx::query!(
        "
        insert into provisioner_job_logs (job_id, number, created_at, source, level, stage, output)
        select j.id,
               coalesce((select min(l.number) from provisioner_job_logs l where l.job_id = j.id and l.number <= 0), 1) - 1,
               $2, 'provisioner_daemon', $3, 'Provisioner broker', $4
        from unnest($1::uuid[]) as j (id)",
        &jobs,
        at(now),
        level.as_str(),
        output
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The id of the newest stored line of each job; jobs without lines are left out.
#[tracing::instrument(name = "db.job_log.last_ids", level = "debug", skip_all, err)]
pub async fn last_ids(
    db: impl Executor<'_>,
    jobs: &[JobId],
) -> Result<BTreeMap<JobId, i64>, DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"
        select job_id, max(id) as "id!" from provisioner_job_logs
        where job_id = any($1) group by job_id"#,
        &jobs
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), row.id)).collect())
}

/// Up to `limit` lines of a job after the line `after`, in order.
#[tracing::instrument(name = "db.job_log.list", level = "debug", skip_all, fields(job.id = %job), err)]
pub async fn list(
    db: impl Executor<'_>,
    job: JobId,
    after: i64,
    limit: i64,
) -> Result<Vec<Line>, DbError> {
    let rows = sqlx::query!(
        "
        select id, created_at, source, level, stage, output
        from provisioner_job_logs
        where job_id = $1 and id > $2
        order by id limit $3",
        job.0,
        after,
        limit
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Line {
                id: row.id,
                created_at: row.created_at.to_jiff(),
                source: row.source.parse()?,
                level: row.level.parse()?,
                stage: row.stage,
                output: row.output,
            })
        })
        .collect()
}
