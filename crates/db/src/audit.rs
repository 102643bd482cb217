//! The audit log: written in the transaction of the change.

use berth_domain::id::{OrganizationId, UserId};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A line to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub now: Timestamp,
    /// Who; `None`: a service.
    pub actor: Option<UserId>,
    /// Where, if it is in an organization.
    pub organization: Option<OrganizationId>,
    /// `create`, `write`, `delete`, `login`, …
    pub action: &'static str,
    /// What kind of thing was changed.
    pub resource_type: &'static str,
    /// Which one.
    pub resource_id: Uuid,
    /// Its name.
    pub target: String,
    /// `{field: {old, new, secret}}`; secrets are masked already.
    pub diff: Value,
    /// The request.
    pub request_id: Option<Uuid>,
    /// Where it came from.
    pub ip: String,
    /// What sent it.
    pub user_agent: String,
    /// What it was answered with.
    pub status_code: i32,
}

/// Writes a line.
#[tracing::instrument(name = "db.audit.insert", skip_all, err)]
pub async fn insert(db: impl Executor<'_>, entry: &Entry) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into audit_logs (
            id, created_at, actor_id, organization_id, action, resource_type, resource_id,
            resource_target, diff, request_id, ip, user_agent, status_code
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        entry.id,
        at(entry.now),
        entry.actor.map(|it| it.0),
        entry.organization.map(|it| it.0),
        entry.action,
        entry.resource_type,
        entry.resource_id,
        entry.target,
        entry.diff,
        entry.request_id,
        entry.ip,
        entry.user_agent,
        entry.status_code
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A line that was written.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub actor_id: Option<UserId>,
    /// Where.
    pub organization_id: Option<OrganizationId>,
    /// What was done.
    pub action: String,
    /// To what kind of thing.
    pub resource_type: String,
    /// To which one.
    pub resource_id: Uuid,
    /// Its name.
    pub target: String,
    /// By field.
    pub diff: Value,
    /// The request.
    pub request_id: Option<Uuid>,
    /// Where it came from.
    pub ip: String,
    /// What sent it.
    pub user_agent: String,
    /// What it was answered with.
    pub status_code: i32,
}

/// Which lines.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these organizations; `None`: of any and of none.
    pub organizations: Option<Vec<Uuid>>,
    /// This action.
    pub action: Option<String>,
    /// This kind of thing.
    pub resource_type: Option<String>,
    /// This thing.
    pub resource_id: Option<Uuid>,
    /// By the user of this name.
    pub username: Option<String>,
    /// Rows at most.
    pub limit: i64,
    /// Rows left out.
    pub offset: i64,
}

/// Lists lines, newest first, and tells how many there are in all.
#[tracing::instrument(name = "db.audit.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<(Vec<Line>, i64), DbError> {
    let rows = sqlx::query!(
        r#"
        select a.id, a.created_at, a.actor_id, a.organization_id, a.action, a.resource_type,
               a.resource_id, a.resource_target, a.diff, a.request_id, a.ip, a.user_agent,
               a.status_code, count(*) over () as "total!"
        from audit_logs a left join users u on u.id = a.actor_id
        where ($1::uuid[] is null or a.organization_id = any($1))
          and ($2::text is null or a.action = $2)
          and ($3::text is null or a.resource_type = $3)
          and ($4::uuid is null or a.resource_id = $4)
          and ($5::text is null or lower(u.username) = lower($5))
        order by a.created_at desc, a.id desc
        limit $6 offset $7"#,
        filter.organizations.as_deref(),
        filter.action,
        filter.resource_type,
        filter.resource_id,
        filter.username,
        filter.limit,
        filter.offset
    )
    .fetch_all(db)
    .await?;
    let total = rows.first().map_or(0, |row| row.total);
    let lines = rows.into_iter().map(|row| Line {
        id: row.id,
        time: row.created_at.to_jiff(),
        actor_id: row.actor_id.map(UserId),
        organization_id: row.organization_id.map(OrganizationId),
        action: row.action,
        resource_type: row.resource_type,
        resource_id: row.resource_id,
        target: row.resource_target,
        diff: row.diff,
        request_id: row.request_id,
        ip: row.ip,
        user_agent: row.user_agent,
        status_code: row.status_code,
    });
    Ok((lines.collect(), total))
}
