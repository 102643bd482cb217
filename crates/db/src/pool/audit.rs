//! The drift audit: what changed without a mark, or says something else than its build.

use berth_domain::id::{PresetId, WorkspaceId};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use uuid::Uuid;

use crate::claim::json;
use crate::{DbError, Executor, at};

/// A pool held for want of something shared is looked at again after this time, should whoever had
/// to say that there is some have said nothing.
const HELD_FOR_LONG: SignedDuration = SignedDuration::from_mins(10);

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Drift {
    /// The pool.
    pub preset_id: PresetId,
    /// The member that says something else than its build; `None`: the pool had changed without a
    /// mark.
    pub workspace_id: Option<WorkspaceId>,
    /// What was stored.
    pub found: String,
    /// What is so.
    pub expected: String,
}

/// What one slice of the audit found.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Where the next one begins; `None`: this was the last of the round.
    pub last: Option<PresetId>,
    /// What was found. It is repaired and marked.
    pub drift: Vec<Drift>,
    /// Pools marked.
    pub marked: i64,
}

/// Audits the next `limit` pools after `after`, by key, in one statement:
///
/// - A pool whose members by state are not what its newest plan left, and that nobody marked, is
///   marked. This is what a lost mark looks like, wherever it was lost.
/// - A member whose state contradicts its newest build, that build's job or its agents is set right,
///   if nobody holds its row, and its pool is marked. Members on their way somewhere are checked in
///   every round, the others one in sixteen: these do not change by themselves, and there are many.
///   `round` counts rounds.
/// - A pool that was held for long by something shared is marked.
///
/// A state and what it follows from are written in one transaction, so one snapshot never shows them
/// at odds: what is found here is a mistake, not a race. The slice reads its pools by key, their
/// members by index, and builds, jobs and agents of those that are checked by key.
#[tracing::instrument(name = "db.pool.audit", level = "debug", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement, laid out")]
pub async fn audit(
    db: impl Executor<'_>,
    after: Option<PresetId>,
    limit: i64,
    round: i32,
    now: Timestamp,
) -> Result<Slice, DbError> {
    let row = sqlx::query!(
        r#"
        with slice as materialized (
            select preset_id, seen, due_at, holds, last_reconciled_at
            from prebuild_pools where preset_id > $1
            order by preset_id
            limit $2
        ), member as materialized (
            select w.id, w.pool_preset_id as preset_id, w.pool_state as state,
                   w.latest_build_id as build_id
            from slice s join workspaces w on w.pool_preset_id = s.preset_id and not w.deleted
        ), digest as (
            select preset_id, string_agg(state || ':' || members, ',' order by state) as digest
            from (
                select preset_id, state, count(*) as members from member group by preset_id, state
            ) counted
            group by preset_id
        ), stale as (
            select s.preset_id, s.seen as found, coalesce(d.digest, '') as expected
            from slice s left join digest d on d.preset_id = s.preset_id
            where s.seen <> coalesce(d.digest, '') and (s.due_at is null or s.due_at > $4)
              and not exists (select from prebuild_pool_marks m where m.preset_id = s.preset_id)
        ), wrong as (
            select m.id, m.preset_id, m.build_id, m.state as found, truth.state as expected
            from member m
            join workspace_builds b on b.id = m.build_id
            join provisioner_jobs j on j.id = b.job_id
            cross join lateral (
                select case
                    when j.completed_at is null then
                        case b.transition when 'start' then 'starting' when 'stop' then 'stopping'
                                          else 'deleting' end
                    when j.status <> 'succeeded' then
                        case b.transition when 'delete' then 'failed_delete' else 'failed' end
                    when b.transition = 'delete' then 'deleted'
                    when b.transition = 'stop' then 'stopped'
                    -- An agent failed to start.
                    when m.state = 'failed' then 'failed'
                    when exists (
                        select from workspace_agents a
                        where a.build_id = b.id and a.parent_id is null and not a.retired
                          and (a.lifecycle_state <> 'ready' or a.disconnected_at is not null)
                    ) then 'unready'
                    else 'ready'
                end as state
            ) truth
            where (m.state in ('starting', 'stopping', 'deleting', 'unready')
                   or get_byte(uuid_send(m.id), 15) % 16 = $3 % 16)
              and m.state <> truth.state
        ), free as (
            select w.id from wrong x join workspaces w on w.id = x.id
            where w.pool_state = x.found and w.latest_build_id = x.build_id and not w.deleted
            for update of w skip locked
        ), repaired as (
            update workspaces w
            set deleted = x.expected = 'deleted', revision = w.revision + 1, updated_at = $4,
                pool_state = case x.expected when 'deleted' then w.pool_state else x.expected end,
                pool_ready_at = case x.expected when 'ready' then $4 end
            from wrong x join free f on f.id = x.id
            where w.id = x.id and w.pool_state = x.found and w.latest_build_id = x.build_id
            returning w.id, x.preset_id, x.found, x.expected
        ), held as (
            select s.preset_id from slice s
            where s.holds && '{capacity,in_flight_cap,quota}' and s.last_reconciled_at < $5
              and not exists (select from prebuild_pool_marks m where m.preset_id = s.preset_id)
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select preset_id, $4 from stale
            union select preset_id, $4 from repaired
            union select preset_id, $4 from held
            returning preset_id
        )
        select (select preset_id from slice order by preset_id desc limit 1) as last,
               (select count(*) from slice) as "size!",
               (select count(*) from marked) as "marked!",
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'preset_id', it.preset_id, 'workspace_id', it.id,
                       'found', it.found, 'expected', it.expected))
                   from (
                       select preset_id, null::uuid as id, found, expected from stale
                       union all
                       select preset_id, id, found, expected from repaired
                   ) it
               ), '[]') as "drift!""#,
        after.map_or(Uuid::nil(), |it| it.0),
        limit,
        round,
        at(now),
        at(now.checked_sub(HELD_FOR_LONG).unwrap_or(Timestamp::MIN))
    )
    .fetch_one(db)
    .await?;
    Ok(Slice {
        last: row.last.filter(|_| row.size >= limit).map(PresetId),
        drift: json("drift", row.drift)?,
        marked: row.marked,
    })
}
