//! The pool policy of a template, and what single presets say otherwise.

use std::collections::BTreeMap;

use axum::extract::State;
use berth_bus::event::{Event, TemplateChanged, TemplateVerb};
use berth_db::pool_policy::{self, Policies};
use berth_db::preset;
use berth_db::template::Template;
use berth_domain::authz::Action;
use berth_domain::id::TemplateId;
use berth_domain::plan::{PolicyOverride, PoolPolicy};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::wake;
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Validation};
use crate::extract::{Json, Path};
use crate::routes::template;

/// Most presets of a template that have a policy of their own.
const OVERRIDES_MAX: usize = 100;
/// Most characters of a preset's name here.
const NAME_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    policy: Value,
    #[serde(default)]
    presets: BTreeMap<String, Value>,
}

impl Body {
    /// Every complaint at once, by field.
    fn check(self) -> Result<Policies, ApiError> {
        let mut wrong = Vec::new();
        let mut complain = |field: String, detail: String| wrong.push(Validation { field, detail });
        let default = PoolPolicy::default();
        let template = read("policy", self.policy, &default, &mut complain);
        let base = template.as_ref().map_or(default, |(_, effective)| effective.clone());
        if self.presets.len() > OVERRIDES_MAX {
            let detail = format!("are {}; give at most {OVERRIDES_MAX}", self.presets.len());
            return Err(ApiError::field("presets", detail));
        }
        let mut presets = BTreeMap::new();
        for (name, value) in self.presets {
            let field = format!("presets.{name}");
            if name.is_empty() || name.chars().count() > NAME_MAX {
                let detail = format!("give a preset's name of 1 to {NAME_MAX} characters");
                complain(field, detail);
            } else if let Some((own, _)) = read(&field, value, &base, &mut complain) {
                presets.insert(name, own);
            }
        }
        if wrong.is_empty() {
            Ok(Policies { template: base, presets })
        } else {
            Err(ApiError::fields(wrong))
        }
    }
}

/// One policy, and what it comes to over `base`; complains where it is none.
fn read(
    field: &str,
    value: Value,
    base: &PoolPolicy,
    complain: &mut impl FnMut(String, String),
) -> Option<(PolicyOverride, PoolPolicy)> {
    let own: PolicyOverride = match serde_json::from_value(value) {
        Ok(own) => own,
        Err(error) => {
            complain(field.to_owned(), error.to_string());
            return None;
        }
    };
    match own.over(base) {
        Ok(effective) => Some((own, effective)),
        Err(error) => {
            let detail =
                format!("is {}; give a number from {} to {}", error.value, error.least, error.most);
            complain(format!("{field}.{}", error.field), detail);
            None
        }
    }
}

#[tracing::instrument(name = "http.prebuild.get_policy", skip_all)]
pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TemplateId>,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Read).await?;
    let policies = pool_policy::find(app.db(), id).await?;
    Ok(Json(view(&app, &template, &policies).await?))
}

/// Both parts take the place of what was there.
#[tracing::instrument(name = "http.prebuild.put_policy", skip_all)]
pub(super) async fn replace(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
    Json(body): Json<Body>,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Update).await?;
    let new = body.check()?;
    let mut work = app.begin().await?;
    let now = work.now();
    if !pool_policy::lock_template(work.conn(), id).await? {
        return Err(ApiError::NotFound);
    }
    let old = pool_policy::find(work.conn(), id).await?;
    if old != new {
        pool_policy::replace(work.conn(), id, &new, now).await?;
        let organization_id = template.organization_id;
        let changed = pool_policy::apply(work.conn(), id, now).await?;
        let what = TemplateVerb::PolicyChanged;
        work.emit(Event::Template(TemplateChanged { organization_id, template_id: id, what }));
        wake(&mut work, &changed);
        let change = Change::new("write", "template", id.0)
            .of(template.settings.name.clone())
            .within(organization_id)
            .with_diff(audit::diff(&stored(&old), &stored(&new)));
        audit::record(&mut work, caller.id(), &origin, change).await?;
        work.commit().await?;
    }
    Ok(Json(view(&app, &template, &new).await?))
}

/// As the audit log compares them.
fn stored(policies: &Policies) -> Value {
    json!({ "pool_policy": policies.template, "preset_pool_policies": policies.presets })
}

/// The choices, and what they come to for each preset of the active version.
async fn view(app: &App, template: &Template, policies: &Policies) -> Result<Value, ApiError> {
    let presets = preset::list(app.db(), template.active_version_id).await?;
    let mut effective = Map::new();
    for preset in &presets {
        let own = policies.presets.get(&preset.name).cloned().unwrap_or_default();
        let policy = own.over(&policies.template).map_err(ApiError::internal)?;
        effective.insert(preset.name.clone(), json!(policy));
    }
    let unknown: Vec<&String> =
        policies.presets.keys().filter(|it| !effective.contains_key(*it)).collect();
    Ok(json!({
        "policy": policies.template,
        "presets": policies.presets,
        "unknown_presets": unknown,
        "effective": effective,
    }))
}
