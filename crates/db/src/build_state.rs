//! Provisioner state of builds: compressed with zstd, apart from the build row, read by nothing but
//! the statements here.

use berth_domain::id::{BuildId, JobId};
use uuid::Uuid;

use crate::{DbError, Executor};

/// The compressed state of the build before this one; `None` for the first, or where it left none.
#[tracing::instrument(name = "db.build_state.find_previous", skip_all, fields(build.id = %build), err)]
pub async fn find_previous(
    db: impl Executor<'_>,
    build: BuildId,
) -> Result<Option<Vec<u8>>, DbError> {
    let state = sqlx::query_scalar!(
        "
        select s.state
        from workspace_builds b
        join workspace_builds p
            on p.workspace_id = b.workspace_id and p.build_number = b.build_number - 1
        join workspace_build_states s on s.build_id = p.id
        where b.id = $1",
        build.0
    )
    .fetch_optional(db)
    .await?;
    Ok(state)
}

/// Stores the compressed state that a build left.
#[tracing::instrument(name = "db.build_state.insert", skip_all, fields(build.id = %build, bytes = state.len()), err)]
pub async fn insert(db: impl Executor<'_>, build: BuildId, state: &[u8]) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into workspace_build_states (build_id, state) values ($1, $2)
        on conflict (build_id) do update set state = excluded.state",
        build.0,
        state
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Gives the builds of the jobs that left no state of their own the state of the build before, so
/// that what exists is never forgotten.
#[tracing::instrument(name = "db.build_state.carry", skip_all, fields(jobs = jobs.len()), err)]
pub async fn carry(db: impl Executor<'_>, jobs: &[JobId]) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|it| it.0).collect();
    sqlx::query!(
        "
        insert into workspace_build_states (build_id, state, key_id)
        select b.id, s.state, s.key_id
        from workspace_builds b
        join workspace_builds p
            on p.workspace_id = b.workspace_id and p.build_number = b.build_number - 1
        join workspace_build_states s on s.build_id = p.id
        where b.job_id = any($1)
        on conflict (build_id) do nothing",
        &jobs
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Parameters of the build before this one: name, value.
#[tracing::instrument(name = "db.build_state.list_previous_parameters", skip_all, fields(build.id = %build), err)]
pub async fn list_previous_parameters(
    db: impl Executor<'_>,
    build: BuildId,
) -> Result<Vec<(String, String)>, DbError> {
    let rows = sqlx::query!(
        "
        select v.name, v.value
        from workspace_builds b
        join workspace_builds p
            on p.workspace_id = b.workspace_id and p.build_number = b.build_number - 1
        join workspace_build_parameters v on v.build_id = p.id
        where b.id = $1 order by v.name",
        build.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
}
