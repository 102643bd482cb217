//! Notifications in users' inboxes.

use berth_domain::id::{InboxId, NotificationTemplateId, UserId};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

/// A notification.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Its id.
    pub id: InboxId,
    /// Whose.
    pub user_id: UserId,
    /// Which kind.
    pub template_id: NotificationTemplateId,
    /// What it is about.
    pub targets: Vec<Uuid>,
    /// Its title.
    pub title: String,
    /// Its text.
    pub content: String,
    /// Its icon.
    pub icon: String,
    /// `[{label, url}]`
    pub actions: Value,
    /// When it was read.
    pub read_at: Option<Timestamp>,
    /// When it came.
    pub created_at: Timestamp,
}

/// Which notifications of a user.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This one.
    pub id: Option<InboxId>,
    /// About one of these; `None`: about anything.
    pub targets: Option<Vec<Uuid>>,
    /// Of one of these kinds; `None`: of any.
    pub templates: Option<Vec<Uuid>>,
    /// Read ones, unread ones, or both.
    pub read: Option<bool>,
    /// Older than this one.
    pub before: Option<Uuid>,
    /// At most.
    pub limit: i64,
}

/// Lists notifications of a user, newest first.
#[tracing::instrument(name = "db.inbox.list", skip_all, fields(user.id = %user), err)]
pub async fn list(
    db: impl Executor<'_>,
    user: UserId,
    filter: &Filter,
) -> Result<Vec<Notification>, DbError> {
    let rows = sqlx::query!(
        "
        select id, user_id, notification_template_id, targets, title, content, icon, actions,
               read_at, created_at
        from inbox_notifications
        where user_id = $1
          and ($2::uuid is null or id = $2)
          and ($3::uuid[] is null or targets && $3)
          and ($4::uuid[] is null or notification_template_id = any($4))
          and ($5::boolean is null or (read_at is not null) = $5)
          and ($6::uuid is null or (created_at, id) < (
              select created_at, id from inbox_notifications where id = $6
          ))
        order by created_at desc, id desc
        limit $7",
        user.0,
        filter.id.map(|it| it.0),
        filter.targets.as_deref(),
        filter.templates.as_deref(),
        filter.read,
        filter.before,
        filter.limit
    )
    .fetch_all(db)
    .await?;
    let notifications = rows.into_iter().map(|row| Notification {
        id: InboxId(row.id),
        user_id: UserId(row.user_id),
        template_id: NotificationTemplateId(row.notification_template_id),
        targets: row.targets,
        title: row.title,
        content: row.content,
        icon: row.icon,
        actions: row.actions,
        read_at: maybe_time(row.read_at),
        created_at: row.created_at.to_jiff(),
    });
    Ok(notifications.collect())
}

/// How many a user has not read.
#[tracing::instrument(name = "db.inbox.count_unread", skip_all, fields(user.id = %user), err)]
pub async fn count_unread(db: impl Executor<'_>, user: UserId) -> Result<i64, DbError> {
    let count = sqlx::query_scalar!(
        r#"
        select count(*) as "count!" from inbox_notifications
        where user_id = $1 and read_at is null"#,
        user.0
    )
    .fetch_one(db)
    .await?;
    Ok(count)
}

/// Marks one as read at `read_at`, or as unread. `false`: the user has none of that id.
#[tracing::instrument(name = "db.inbox.mark_read", skip_all, fields(user.id = %user), err)]
pub async fn mark_read(
    db: impl Executor<'_>,
    user: UserId,
    id: InboxId,
    read_at: Option<Timestamp>,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update inbox_notifications set read_at = $3 where id = $2 and user_id = $1",
        user.0,
        id.0,
        crate::maybe_at(read_at)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Marks all of a user as read.
#[tracing::instrument(name = "db.inbox.mark_all_read", skip_all, fields(user.id = %user), err)]
pub async fn mark_all_read(
    db: impl Executor<'_>,
    user: UserId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update inbox_notifications set read_at = $2 where user_id = $1 and read_at is null",
        user.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}
