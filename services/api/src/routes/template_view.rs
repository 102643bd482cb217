//! Templates as clients see them.

use berth_db::template::{Settings, Template};
use berth_domain::id::{OrganizationId, TemplateId, UserId, VersionId};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

/// A template.
#[derive(Debug, Serialize)]
pub(crate) struct TemplateView {
    id: TemplateId,
    organization_id: OrganizationId,
    organization_name: String,
    organization_display_name: String,
    organization_icon: String,
    active_version_id: VersionId,
    active_user_count: i64,
    provisioner: &'static str,
    build_time_stats: Value,
    deprecated: bool,
    autostart_requirement: Value,
    autostop_requirement: Value,
    max_port_share_level: &'static str,
    cors_behavior: &'static str,
    use_classic_parameter_flow: bool,
    created_by_id: UserId,
    created_by_name: String,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(flatten)]
    settings: Value,
}

impl From<Template> for TemplateView {
    fn from(it: Template) -> Self {
        Self {
            settings: settings_json(&it.settings),
            deprecated: !it.settings.deprecation_message.is_empty(),
            id: it.id,
            organization_id: it.organization_id,
            organization_name: it.organization_name,
            organization_display_name: it.organization_display_name,
            organization_icon: it.organization_icon,
            active_version_id: it.active_version_id,
            active_user_count: it.active_users,
            provisioner: it.provisioner.as_str(),
            build_time_stats: json!({}),
            // Every day: nothing is required.
            autostart_requirement: json!({ "days_of_week": [
                "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"
            ] }),
            autostop_requirement: json!({ "days_of_week": [], "weeks": 1 }),
            max_port_share_level: "owner",
            cors_behavior: "simple",
            use_classic_parameter_flow: true,
            created_by_id: it.created_by,
            created_by_name: it.created_by_name,
            created_at: it.created_at,
            updated_at: it.updated_at,
        }
    }
}

/// What can be set, by the names that clients use.
pub(crate) fn settings_json(it: &Settings) -> Value {
    json!({
        "name": it.name,
        "display_name": it.display_name,
        "description": it.description,
        "icon": it.icon,
        "deprecation_message": it.deprecation_message,
        "default_ttl_ms": it.default_ttl_ms,
        "activity_bump_ms": it.activity_bump_ms,
        "failure_ttl_ms": it.failure_ttl_ms,
        "time_til_dormant_ms": it.time_til_dormant_ms,
        "time_til_dormant_autodelete_ms": it.time_til_dormant_autodelete_ms,
        "allow_user_autostart": it.allow_user_autostart,
        "allow_user_autostop": it.allow_user_autostop,
        "allow_user_cancel_workspace_jobs": it.allow_user_cancel_workspace_jobs,
        "reuse_terraform_workspace": it.reuse_terraform_workspace,
        "require_active_version": it.require_active_version,
    })
}
