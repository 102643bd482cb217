//! Lines of the audit log, written in the transaction of the change.

use berth_backbone::Work;
use berth_db::DbError;
use berth_db::audit::{self, Entry};
use berth_domain::id::{OrganizationId, UserId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::edge::Origin;

/// What was changed.
pub(crate) struct Change {
    /// `create`, `write`, `delete`, `login`, …
    pub(crate) action: &'static str,
    /// What kind of thing.
    pub(crate) resource_type: &'static str,
    /// Which one.
    pub(crate) id: Uuid,
    /// Its name.
    pub(crate) target: String,
    /// Where.
    pub(crate) organization: Option<OrganizationId>,
    /// See [`diff`].
    pub(crate) diff: Value,
}

impl Change {
    pub(crate) fn new(action: &'static str, resource_type: &'static str, id: Uuid) -> Self {
        let diff = json!({});
        Self { action, resource_type, id, target: String::new(), organization: None, diff }
    }

    #[must_use]
    pub(crate) fn of(mut self, target: impl Into<String>) -> Self {
        self.target = target.into();
        self
    }

    #[must_use]
    pub(crate) fn within(mut self, organization: OrganizationId) -> Self {
        self.organization = Some(organization);
        self
    }

    #[must_use]
    pub(crate) fn with_diff(mut self, diff: Value) -> Self {
        self.diff = diff;
        self
    }
}

/// `{field: {old, new, secret}}` of the fields in which two objects differ.
pub(crate) fn diff(old: &Value, new: &Value) -> Value {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let changed = new.iter().filter(|(field, value)| old.get(*field) != Some(value));
    let fields = changed.map(|(field, value)| {
        let before = old.get(field).cloned().unwrap_or(Value::Null);
        (field.clone(), json!({ "old": before, "new": value, "secret": false }))
    });
    Value::Object(fields.collect())
}

/// Writes the line of a change.
pub(crate) async fn record(
    work: &mut Work,
    actor: UserId,
    origin: &Origin,
    change: Change,
) -> Result<(), DbError> {
    let entry = Entry {
        id: work.id(),
        now: work.now(),
        actor: Some(actor),
        organization: change.organization,
        action: change.action,
        resource_type: change.resource_type,
        resource_id: change.id,
        target: change.target,
        diff: change.diff,
        request_id: Some(origin.request_id),
        ip: origin.ip.to_string(),
        user_agent: origin.user_agent.clone(),
        status_code: if change.action == "create" { 201 } else { 200 },
    };
    audit::insert(work.conn(), &entry).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_holds_what_changed_and_nothing_else() {
        let diff = diff(&json!({ "a": 1, "b": 2 }), &json!({ "a": 1, "b": 3, "c": 4 }));
        assert_eq!(diff["b"], json!({ "old": 2, "new": 3, "secret": false }));
        assert_eq!(diff["c"]["old"], Value::Null);
        assert_eq!(diff.as_object().unwrap().len(), 2);
    }
}
