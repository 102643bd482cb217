//! What a request may have: the checks before anything is written, and what they choose.

use berth_db::claim::{self, Preparation, PreviousPool, Wanted};
use berth_db::workspace::NewWorkspace;
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::PresetId;
use berth_domain::parameter::{Occasion, Resolution, Value as ParameterValue, validate};
use berth_domain::preset::{Match, Preset, matching};
use berth_domain::quota::QuotaExceeded;
use berth_domain::state::{JobStatus, MissReason};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Request;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Validation};
use crate::lookup;
use crate::routes::workspace_change;

/// Reads what decides, and decides whether the caller may.
pub(super) async fn prepare(
    app: &App,
    caller: &Caller,
    request: &Request,
) -> Result<Preparation, ApiError> {
    let body = &request.body;
    let (wanted, field) = match (body.template_version_id, body.template_id) {
        (Some(version), _) => (Wanted::Version(version), "template_version_id"),
        (None, Some(template)) => (Wanted::Template(template), "template_id"),
        (None, None) => {
            return Err(ApiError::field(
                "template_id",
                "name a template, or a version in template_version_id",
            ));
        }
    };
    let missing = || ApiError::field(field, "there is no such template, or you may not see it");
    let prepared = claim::prepare(app.db(), wanted, request.owner.id, &body.name).await?;
    let is_there = organization(app, caller, request, prepared.as_ref()).await?;
    let prepared = prepared.filter(|_| is_there).ok_or_else(missing)?;
    let in_organization = |kind| Resource::new(kind).in_organization(prepared.organization_id);
    let template = in_organization(ResourceKind::Template).with_acl(prepared.acl.clone());
    let elsewhere = body.template_id.is_some_and(|it| it != prepared.template_id);
    if prepared.template_deleted || elsewhere || !caller.may(Action::Read, &template) {
        return Err(missing());
    }
    caller.authorize(Action::Use, &template)?;
    let workspace = in_organization(ResourceKind::Workspace).owned_by(request.owner.id);
    caller.authorize(Action::Create, &workspace)?;
    if request.owner.is_system || !prepared.owner_is_member {
        return Err(ApiError::invalid(format!(
            "{} is no member of the organization that the template belongs to.",
            request.owner.username
        )));
    }
    usable(&prepared, field)?;
    let may_choose_version = caller.may(Action::Update, &template);
    if prepared.require_active_version
        && prepared.version_id != prepared.active_version_id
        && !may_choose_version
    {
        return Err(ApiError::field(
            "template_version_id",
            "the template requires its active version; leave the version out",
        ));
    }
    Ok(prepared)
}

/// Whether the organization that the request names is the template's. Fails for one that the caller may
/// not see. The template's own needs no look-up.
async fn organization(
    app: &App,
    caller: &Caller,
    request: &Request,
    prepared: Option<&Preparation>,
) -> Result<bool, ApiError> {
    let Some(named) = request.organization.as_deref() else { return Ok(true) };
    let is_meant = |it: &&Preparation| match Uuid::try_parse(named) {
        Ok(id) => id == it.organization_id.0,
        Err(_) if named == "default" => it.organization_is_default,
        Err(_) => named.to_lowercase() == it.organization_name.to_lowercase(),
    };
    if let Some(it) = prepared.filter(is_meant) {
        let kind = ResourceKind::Organization;
        let resource = Resource::new(kind).in_organization(it.organization_id);
        caller.authorize(Action::Read, &resource)?;
        return Ok(true);
    }
    let found = lookup::organization(app, caller, named).await?.id;
    Ok(prepared.is_some_and(|it| it.organization_id == found))
}

fn usable(prepared: &Preparation, field: &str) -> Result<(), ApiError> {
    if !prepared.deprecation_message.is_empty() {
        return Err(ApiError::field(
            field,
            format!(
                "template {:?} is deprecated: {}",
                prepared.template_name, prepared.deprecation_message
            ),
        ));
    }
    if prepared.version_archived {
        return Err(ApiError::field(field, "the version is archived; name another one"));
    }
    if prepared.import_status != JobStatus::Succeeded {
        return Err(ApiError::field(
            field,
            format!(
                "the import of the version is {}; only versions whose import succeeded can be built",
                prepared.import_status
            ),
        ));
    }
    Ok(())
}

/// What will be built, and the pool that may have it ready.
pub(super) struct Choice {
    /// The preset that is named or matched.
    pub(super) preset: Option<PresetId>,
    /// The preset, where it is a pool.
    pub(super) pool: Option<PresetId>,
    /// Why no pool is asked at all.
    pub(super) miss: Option<(MissReason, Value)>,
    /// Resolved parameters: name, value.
    pub(super) parameters: Vec<(String, String)>,
}

impl Choice {
    /// Whether the owner's quota covers what a claim from the pool is known to cost.
    pub(super) fn affordable(&self, prepared: &Preparation) -> Result<(), QuotaExceeded> {
        let cost = prepared.pools.iter().find(|it| Some(it.preset_id) == self.pool);
        cost.map_or(Ok(()), |cost| prepared.quota.check(cost.daily_cost, 0))
    }

    /// The previous version's pool that may serve where this one's cannot.
    pub(super) fn previous<'a>(&self, prepared: &'a Preparation) -> Option<&'a PreviousPool> {
        let pool = prepared.pools.iter().find(|it| Some(it.preset_id) == self.pool);
        pool.and_then(|it| it.previous.as_ref())
    }
}

/// Chooses the preset, named or matched, and resolves the parameters.
pub(super) fn choose(
    prepared: &Preparation,
    requested: &[ParameterValue],
    preset: Option<PresetId>,
) -> Result<Choice, ApiError> {
    let (preset, miss) = match preset {
        Some(id) => (Some(named(prepared, id)?), None),
        None => match matching(&prepared.presets, requested, &prepared.parameters) {
            Match::Preset(preset) => (Some(preset), None),
            Match::Miss(nearest) => {
                let detail = json!({ "nearest_preset": nearest });
                (None, Some((MissReason::NoMatchingPreset, detail)))
            }
        },
    };
    let values = validate(&Resolution {
        parameters: &prepared.parameters,
        requested,
        previous: &[],
        preset: &preset.map(|it| it.spec.values()).unwrap_or_default(),
        occasion: Occasion::First,
    })
    .map_err(refused)?;
    let pool = preset.filter(|it| it.spec.prebuilds.is_some()).map(|it| it.id);
    let miss = match (preset, pool) {
        (Some(_), None) => Some((MissReason::NotAPool, json!({}))),
        _ => miss,
    };
    Ok(Choice {
        preset: preset.map(|it| it.id),
        pool,
        miss,
        parameters: values.into_iter().map(|it| (it.name, it.value)).collect(),
    })
}

fn named(prepared: &Preparation, id: PresetId) -> Result<&Preset, ApiError> {
    prepared.presets.iter().find(|it| it.id == id).ok_or_else(|| {
        let known: Vec<String> =
            prepared.presets.iter().map(|it| format!("{} ({})", it.spec.name, it.id)).collect();
        ApiError::field(
            "template_version_preset_id",
            format!(
                "version {} has no preset {id}; it has: {}",
                prepared.version_id,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        )
    })
}

/// Refused parameters, by name.
pub(crate) fn refused(errors: Vec<berth_domain::parameter::FieldError>) -> ApiError {
    let validations =
        errors.into_iter().map(|it| Validation { field: it.field, detail: it.detail }).collect();
    ApiError::fields(validations)
}

/// The workspace's own settings, within what the template allows.
pub(super) fn new_workspace(
    request: &Request,
    prepared: &Preparation,
) -> Result<NewWorkspace, ApiError> {
    let body = &request.body;
    let schedule = body.autostart_schedule.as_deref().filter(|it| !it.trim().is_empty());
    if let Some(schedule) = schedule {
        workspace_change::check_schedule(schedule)?;
    }
    let asked = body.ttl_ms.map(workspace_change::check_ttl).transpose()?;
    let default = (prepared.default_ttl_ms > 0).then_some(prepared.default_ttl_ms);
    let ttl_ms = match asked {
        Some(ttl) if prepared.allow_user_autostop => ttl,
        _ => default,
    };
    Ok(NewWorkspace {
        owner_id: request.owner.id,
        organization_id: prepared.organization_id,
        template_id: prepared.template_id,
        name: body.name.clone(),
        autostart_schedule: schedule
            .filter(|_| prepared.allow_user_autostart)
            .map(ToOwned::to_owned),
        ttl_ms,
        automatic_updates: workspace_change::check_updates(body.automatic_updates.as_deref())?,
    })
}
