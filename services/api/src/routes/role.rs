//! Roles: as they are shown, and `/users/roles`.

use axum::Router;
use axum::routing::get;
use berth_domain::authz::{Action, Resource, ResourceKind, SiteRole, assignable_site_roles};
use berth_domain::id::OrganizationId;
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::Json;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/users/roles", get(list_roles))
}

/// A role by name.
#[derive(Debug, Serialize)]
pub(crate) struct SlimRole {
    name: String,
    display_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<String>,
}

impl SlimRole {
    pub(crate) fn new(name: &str, organization: Option<OrganizationId>) -> Self {
        let mut display_name = name.trim_start_matches("organization-").replace('-', " ");
        if let Some(first) = display_name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let organization_id = organization.map(|it| it.to_string());
        Self { name: name.to_owned(), display_name, organization_id }
    }
}

/// A role and whether the caller may give it.
#[derive(Debug, Serialize)]
pub(crate) struct AssignableRole {
    name: String,
    display_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<Uuid>,
    assignable: bool,
    built_in: bool,
    site_permissions: [(); 0],
    organization_permissions: [(); 0],
    user_permissions: [(); 0],
}

impl AssignableRole {
    pub(crate) fn new(name: &str, organization: Option<OrganizationId>, assignable: bool) -> Self {
        let slim = SlimRole::new(name, None);
        Self {
            name: slim.name,
            display_name: slim.display_name,
            organization_id: organization.map(|it| it.0),
            assignable,
            built_in: true,
            site_permissions: [],
            organization_permissions: [],
            user_permissions: [],
        }
    }
}

#[tracing::instrument(name = "http.user.list_roles", skip_all)]
async fn list_roles(caller: Caller) -> Result<Json<Vec<AssignableRole>>, ApiError> {
    caller.authorize(Action::Read, &Resource::new(ResourceKind::AssignRole))?;
    let mine = assignable_site_roles(&caller.person().site_roles);
    let roles = SiteRole::ALL.iter();
    let roles = roles.map(|it| AssignableRole::new(it.as_str(), None, mine.contains(it)));
    Ok(Json(roles.collect()))
}
