//! Log lines of agents. An agent keeps at most [`MAX_BYTES`]; the first line that does not fit and all
//! after it are dropped, and the agent is marked as overflowed.

use berth_domain::id::{AgentId, LogSourceId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// Most bytes of log text kept per agent.
pub const MAX_BYTES: i32 = 1 << 20;

/// A line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Grows from line to line; ignored on insert.
    pub id: i64,
    /// Where it comes from.
    pub source_id: LogSourceId,
    /// When it was written.
    pub created_at: Timestamp,
    /// Its severity.
    pub level: String,
    /// The text.
    pub output: String,
}

/// What became of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// How many were stored, from the first on.
    pub lines: usize,
    /// Whether the agent keeps no more.
    pub is_full: bool,
    /// Whether these lines made it so.
    pub has_filled: bool,
}

/// Stores lines in order, up to the first that does not fit. Times that an agent's clock cannot know,
/// before the agent was and after `now`, are put right.
#[tracing::instrument(name = "db.agent_log.insert", level = "debug", skip_all, fields(agent.id = %agent, lines = lines.len()), err)]
pub async fn insert(
    db: impl Executor<'_>,
    agent: AgentId,
    lines: &[Line],
    now: Timestamp,
) -> Result<Stored, DbError> {
    let sources: Vec<Uuid> = lines.iter().map(|line| line.source_id.0).collect();
    let times: Vec<jiff_sqlx::Timestamp> = lines.iter().map(|line| at(line.created_at)).collect();
    let levels: Vec<String> = lines.iter().map(|line| line.level.clone()).collect();
    let outputs: Vec<String> = lines.iter().map(|line| line.output.clone()).collect();
    let row = sqlx::query!(
        r#"
        with agent as (
            select id, created_at, logs_length, logs_overflowed
            from workspace_agents where id = $1 for no key update
        ), wanted as (
            select l.*, a.logs_length + sum(octet_length(l.output)) over (order by l.place) as upto,
                   greatest(a.created_at, least(l.written_at, $6)) as at
            from agent a, unnest($2::uuid[], $3::timestamptz[], $4::text[], $5::text[])
                with ordinality as l (source, written_at, level, output, place)
            where not a.logs_overflowed
        ), lines as (
            insert into workspace_agent_logs (agent_id, log_source_id, created_at, level, output)
            select $1, source, at, level, output from wanted where upto <= $7 order by place
        ), fate as (
            select count(*) filter (where upto <= $7) as stored,
                   coalesce(max(upto) filter (where upto <= $7), 0) as bytes,
                   count(*) filter (where upto > $7) > 0 as overflows
            from wanted
        ), marked as (
            update workspace_agents a
            set logs_length = greatest(a.logs_length, f.bytes),
                logs_overflowed = a.logs_overflowed or f.overflows
            from fate f where a.id = $1 and (f.stored > 0 or f.overflows)
        )
        select f.stored as "stored!", a.logs_overflowed or f.overflows as "is_full!",
               f.overflows as "has_filled!"
        from fate f, agent a"#,
        agent.0,
        &sources,
        &times,
        &levels,
        &outputs,
        at(now),
        i64::from(MAX_BYTES)
    )
    .fetch_optional(db)
    .await?;
    // An agent that is gone keeps nothing.
    Ok(row.map_or(Stored { lines: 0, is_full: true, has_filled: false }, |row| Stored {
        lines: usize::try_from(row.stored).unwrap_or_default(),
        is_full: row.is_full,
        has_filled: row.has_filled,
    }))
}

/// Up to `limit` lines of an agent after the line `after`, in order.
#[tracing::instrument(name = "db.agent_log.list", level = "debug", skip_all, fields(agent.id = %agent), err)]
pub async fn list(
    db: impl Executor<'_>,
    agent: AgentId,
    after: i64,
    limit: i64,
) -> Result<Vec<Line>, DbError> {
    let rows = sqlx::query!(
        "
        select id, log_source_id, created_at, level, output
        from workspace_agent_logs where agent_id = $1 and id > $2 order by id limit $3",
        agent.0,
        after,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Line {
            id: row.id,
            source_id: LogSourceId(row.log_source_id),
            created_at: row.created_at.to_jiff(),
            level: row.level,
            output: row.output,
        })
        .collect())
}
