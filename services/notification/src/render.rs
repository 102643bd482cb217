//! Text templates: the first line is the title, the rest is the body.

use berth_domain::notification::NotificationTemplate;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};

/// A rendered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// One line.
    pub title: String,
    /// The text.
    pub body: String,
}

/// Fills in the message of `template`. `labels` are its text values by name; one that is missing
/// is left out of the text. `data` is what the message shows beside those.
pub fn render<L: serde::Serialize>(
    template: NotificationTemplate,
    labels: &L,
    data: &serde_json::Value,
) -> Result<Rendered, minijinja::Error> {
    let mut environment = Environment::new();
    // These are plain text; whoever puts one into HTML or a header escapes it there.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Split before they are filled in: a label with line breaks must not move the title's end.
    let (title, body) = source(template).split_once('\n').unwrap_or((source(template), ""));
    let values = context! {
        labels => Value::from(Serde(labels)),
        data => Value::from(Serde(data)),
    };
    let title = environment.render_str(title, &values)?;
    let body = environment.render_str(body.trim_end(), &values)?;
    Ok(Rendered { title: one_line(&title), body })
}

/// The same words on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

const fn source(template: NotificationTemplate) -> &'static str {
    match template {
        NotificationTemplate::PrebuildFailureLimit => {
            include_str!("../templates/prebuild_failure_limit.txt")
        }
        NotificationTemplate::PrebuildsRecovered => {
            include_str!("../templates/prebuilds_recovered.txt")
        }
        NotificationTemplate::ResourceReplaced => {
            include_str!("../templates/resource_replaced.txt")
        }
        NotificationTemplate::PresetInvalid => include_str!("../templates/preset_invalid.txt"),
        NotificationTemplate::PoolEmpty => include_str!("../templates/pool_empty.txt"),
        NotificationTemplate::PromotionCalledOff => {
            include_str!("../templates/promotion_called_off.txt")
        }
        NotificationTemplate::WorkspaceCreated => {
            include_str!("../templates/workspace_created.txt")
        }
        NotificationTemplate::WorkspaceDeleted => {
            include_str!("../templates/workspace_deleted.txt")
        }
        NotificationTemplate::WorkspaceManuallyUpdated => {
            include_str!("../templates/workspace_manually_updated.txt")
        }
        NotificationTemplate::WorkspaceAutobuildFailed => {
            include_str!("../templates/workspace_autobuild_failed.txt")
        }
        NotificationTemplate::WorkspaceManualBuildFailed => {
            include_str!("../templates/workspace_manual_build_failed.txt")
        }
        NotificationTemplate::WorkspaceDormant => {
            include_str!("../templates/workspace_dormant.txt")
        }
        NotificationTemplate::WorkspaceMarkedForDeletion => {
            include_str!("../templates/workspace_marked_for_deletion.txt")
        }
        NotificationTemplate::WorkspaceAutostopReminder => {
            include_str!("../templates/workspace_autostop_reminder.txt")
        }
        NotificationTemplate::WorkspaceAutoUpdated => {
            include_str!("../templates/workspace_auto_updated.txt")
        }
        NotificationTemplate::TemplateDeleted => include_str!("../templates/template_deleted.txt"),
        NotificationTemplate::TemplateDeprecated => {
            include_str!("../templates/template_deprecated.txt")
        }
        NotificationTemplate::BuildsFailedReport => {
            include_str!("../templates/builds_failed_report.txt")
        }
        NotificationTemplate::Test => include_str!("../templates/test.txt"),
    }
}

#[cfg(test)]
mod tests;
