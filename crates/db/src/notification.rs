//! Messages to people: one row per recipient and method, stored once whatever the number of
//! deliveries.

use berth_domain::id::{NotificationTemplateId, OrganizationId, UserId};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A message, rendered, before it is expanded to recipients.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// Which message.
    pub template: NotificationTemplateId,
    /// Whose template admins receive it, when `user_id` says nobody.
    pub organization_id: OrganizationId,
    /// The one recipient.
    pub user_id: Option<UserId>,
    /// What it was rendered from: `{labels, data}`.
    pub payload: Value,
    /// What it is about, sorted, so that the same targets in another order are the same message.
    pub targets: Vec<Uuid>,
    /// One line.
    pub title: String,
    /// The text.
    pub content: String,
    /// When.
    pub now: Timestamp,
}

/// Stores a message for each of its recipients, and in their inboxes, in one statement. Left out:
/// users who are no people, are gone or suspended, or have switched the template off, and whoever
/// got the same message (template, payload, targets) on this UTC day. Answers with how many
/// messages are new.
#[tracing::instrument(name = "db.notification.insert", skip_all, fields(template = %new.template), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewMessage) -> Result<u64, DbError> {
    let row = sqlx::query!(
        r#"
        with recipient as (
            select u.id
            from users u
            where not u.is_system and not u.deleted and u.status <> 'suspended'
              and case
                  when $3::uuid is not null then u.id = $3
                  else u.roles && array['owner', 'template-admin']
                      or exists (
                          select from organization_members m
                          where m.organization_id = $2 and m.user_id = u.id
                            and m.roles && array['organization-admin', 'organization-template-admin']
                      )
                  end
              and not exists (
                  select from notification_preferences p
                  where p.user_id = u.id and p.notification_template_id = $1 and p.disabled
              )
        ), message as (
            insert into notification_messages (
                id, notification_template_id, user_id, method, payload, targets, status, attempts,
                dedupe_hash, created_at, sent_at
            )
            -- The inbox is these two tables: storing the message is sending it.
            select gen_random_uuid(), $1, r.id, 'inbox', $4, $5, 'sent', 1,
                   encode(sha256(convert_to(
                       concat_ws('|', $1::uuid, r.id, 'inbox', $4::jsonb, $5::uuid[],
                                 ($6::timestamptz at time zone 'UTC')::date),
                       'UTF8')), 'hex'),
                   $6, $6
            from recipient r
            on conflict (dedupe_hash) do nothing
            returning id, user_id
        ), inbox as (
            insert into inbox_notifications (
                id, user_id, notification_template_id, targets, title, content, created_at
            )
            select id, user_id, $1, $5, $7, $8, $6 from message
        )
        select count(*) as "stored!" from message"#,
        new.template.0,
        new.organization_id.0,
        new.user_id.map(|it| it.0),
        new.payload,
        &new.targets,
        at(new.now),
        new.title,
        new.content
    )
    .fetch_one(db)
    .await?;
    Ok(u64::try_from(row.stored).unwrap_or_default())
}

/// Whether an operator has switched notifications off.
#[tracing::instrument(name = "db.notification.is_paused", level = "debug", skip_all, err)]
pub async fn is_paused(db: impl Executor<'_>) -> Result<bool, DbError> {
    let paused = sqlx::query_scalar!(
        r#"
        select exists (
            select from site_settings where key = 'notifier_paused' and value = 'true'::jsonb
        ) as "paused!""#
    )
    .fetch_one(db)
    .await?;
    Ok(paused)
}
