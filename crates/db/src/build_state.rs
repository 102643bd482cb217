//! Provisioner state of builds: compressed with zstd, then sealed for its workspace, apart from the
//! build row, read by nothing but the statements here.

use berth_domain::id::{BuildId, JobId, WorkspaceId};
use uuid::Uuid;

use crate::{DbError, Executor, Seal, Stored};

/// The state of the build before this one; `None` for the first, or where it left none.
#[tracing::instrument(name = "db.build_state.find_previous", skip_all, fields(build.id = %build), err)]
pub async fn find_previous(
    db: impl Executor<'_>,
    build: BuildId,
) -> Result<Option<Stored>, DbError> {
    let row = sqlx::query!(
        "
        select s.state, s.key_id, s.data_key
        from workspace_builds b
        join workspace_builds p
            on p.workspace_id = b.workspace_id and p.build_number = b.build_number - 1
        join workspace_build_states s on s.build_id = p.id
        where b.id = $1",
        build.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Stored::new(row.state, row.key_id, row.data_key)))
}

/// The state that a build left; `None` where it left none.
#[tracing::instrument(name = "db.build_state.find", skip_all, fields(build.id = %build), err)]
pub async fn find(db: impl Executor<'_>, build: BuildId) -> Result<Option<Stored>, DbError> {
    let row = sqlx::query!(
        "select state, key_id, data_key from workspace_build_states where build_id = $1",
        build.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Stored::new(row.state, row.key_id, row.data_key)))
}

/// Stores the state that a build left.
#[tracing::instrument(name = "db.build_state.insert", skip_all, fields(build.id = %build, bytes = state.bytes.len()), err)]
pub async fn insert(db: impl Executor<'_>, build: BuildId, state: &Stored) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into workspace_build_states (build_id, state, key_id, data_key)
        values ($1, $2, $3, $4)
        on conflict (build_id) do update
            set state = excluded.state, key_id = excluded.key_id, data_key = excluded.data_key",
        build.0,
        state.bytes,
        state.key_id(),
        state.data_key()
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
        insert into workspace_build_states (build_id, state, key_id, data_key)
        select b.id, s.state, s.key_id, s.data_key
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

/// A state as an operator's change of keys sees it. It has no `Debug`: the bytes may be readable.
#[derive(Clone)]
pub struct KeyedState {
    /// The build that left it.
    pub build_id: BuildId,
    /// The workspace that it is sealed for.
    pub workspace_id: WorkspaceId,
    /// The bytes; only where they are not sealed, or where they were asked for.
    pub bytes: Option<Vec<u8>>,
    /// What sealed them.
    pub seal: Option<Seal>,
}

/// The first `limit` states after build `after`, in their order, that another key than `key_id`
/// sealed or none. `with_bytes` also reads bytes that are sealed.
#[tracing::instrument(name = "db.build_state.list_keyed_otherwise", skip_all, err)]
pub async fn list_keyed_otherwise(
    db: impl Executor<'_>,
    key_id: Option<&str>,
    (after, limit): (BuildId, i64),
    with_bytes: bool,
) -> Result<Vec<KeyedState>, DbError> {
    let rows = sqlx::query!(
        r#"
        select s.build_id, b.workspace_id, s.key_id, s.data_key,
               case when $4 or s.key_id is null then s.state end as bytes
        from workspace_build_states s
        join workspace_builds b on b.id = s.build_id
        where s.build_id > $2 and s.key_id is distinct from $1
        order by s.build_id limit $3"#,
        key_id,
        after.0,
        limit,
        with_bytes
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| KeyedState {
            build_id: BuildId(row.build_id),
            workspace_id: WorkspaceId(row.workspace_id),
            bytes: row.bytes,
            seal: row.key_id.zip(row.data_key).map(|(key_id, data_key)| Seal { key_id, data_key }),
        })
        .collect())
}

/// Replaces the data key of a state that `old` sealed; `false`: it is another by now.
#[tracing::instrument(name = "db.build_state.reseal", skip_all, fields(build.id = %build), err)]
pub async fn reseal(
    db: impl Executor<'_>,
    build: BuildId,
    old: &Seal,
    new: &Seal,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update workspace_build_states set key_id = $4, data_key = $5
        where build_id = $1 and key_id = $2 and data_key = $3",
        build.0,
        old.key_id,
        old.data_key,
        new.key_id,
        new.data_key
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Replaces bytes that `old` sealed, or none; `false`: they are others by now.
#[tracing::instrument(name = "db.build_state.replace", skip_all, fields(build.id = %build), err)]
pub async fn replace(
    db: impl Executor<'_>,
    build: BuildId,
    old: Option<&Seal>,
    new: &Stored,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update workspace_build_states set state = $3, key_id = $4, data_key = $5
        where build_id = $1 and data_key is not distinct from $2",
        build.0,
        old.map(|it| it.data_key.as_slice()),
        new.bytes,
        new.key_id(),
        new.data_key()
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The workspace of a build, for which its state is sealed; `None`: there is no such build.
#[tracing::instrument(name = "db.build_state.find_workspace", skip_all, fields(build.id = %build), err)]
pub async fn find_workspace(
    db: impl Executor<'_>,
    build: BuildId,
) -> Result<Option<WorkspaceId>, DbError> {
    let id =
        sqlx::query_scalar!("select workspace_id from workspace_builds where id = $1", build.0)
            .fetch_optional(db)
            .await?;
    Ok(id.map(WorkspaceId))
}
