//! Log lines of agents. An agent keeps at most [`MAX_BYTES`]; what comes after is dropped and the
//! agent is marked as overflowed.

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

/// Stores lines in order. `false`: they do not fit any more, none was stored, and the agent is
/// marked as overflowed.
#[tracing::instrument(name = "db.agent_log.insert", level = "debug", skip_all, fields(agent.id = %agent, lines = lines.len()), err)]
pub async fn insert(
    db: impl Executor<'_>,
    agent: AgentId,
    lines: &[Line],
) -> Result<bool, DbError> {
    let bytes = lines.iter().map(|line| line.output.len()).sum::<usize>();
    let bytes = i32::try_from(bytes).unwrap_or(MAX_BYTES + 1).min(MAX_BYTES + 1);
    let sources: Vec<Uuid> = lines.iter().map(|line| line.source_id.0).collect();
    let times: Vec<jiff_sqlx::Timestamp> = lines.iter().map(|line| at(line.created_at)).collect();
    let levels: Vec<String> = lines.iter().map(|line| line.level.clone()).collect();
    let outputs: Vec<String> = lines.iter().map(|line| line.output.clone()).collect();
    let fits = sqlx::query_scalar!(
        r#"
        with agent as (
            update workspace_agents
            set logs_length = case when logs_length + $2 <= $3 then logs_length + $2
                                   else logs_length end,
                logs_overflowed = logs_overflowed or logs_length + $2 > $3
            where id = $1
            returning id, not logs_overflowed as fits
        ), lines as (
            insert into workspace_agent_logs (agent_id, log_source_id, created_at, level, output)
            select a.id, l.source, l.created_at, l.level, l.output
            from agent a, unnest($4::uuid[], $5::timestamptz[], $6::text[], $7::text[])
                with ordinality as l (source, created_at, level, output, place)
            where a.fits
            order by l.place
        )
        select fits as "fits!" from agent"#,
        agent.0,
        bytes,
        MAX_BYTES,
        &sources,
        &times,
        &levels,
        &outputs
    )
    .fetch_optional(db)
    .await?;
    Ok(fits.unwrap_or_default())
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
