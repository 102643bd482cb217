//! Finds what a path names. What the caller may not see is not found.

use berth_db::organization::{self, Organization};
use berth_db::user::{self, User};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{OrganizationId, UserId};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;

/// A user by `me`, id or name. Being seen is not checked: the caller's check names the action.
pub(crate) async fn user(app: &App, caller: &Caller, text: &str) -> Result<User, ApiError> {
    if text == "me" {
        return Ok(caller.user.clone());
    }
    let found = match Uuid::try_parse(text) {
        Ok(id) => user::find(app.db(), UserId(id)).await?,
        Err(_) => user::find_by_name(app.db(), text).await?,
    };
    found.ok_or(ApiError::NotFound)
}

/// The same, and the caller may do `action` to the user.
pub(crate) async fn user_for(
    app: &App,
    caller: &Caller,
    text: &str,
    action: Action,
) -> Result<User, ApiError> {
    let user = user(app, caller, text).await?;
    caller.authorize(action, &Resource::new(ResourceKind::User).owned_by(user.id))?;
    Ok(user)
}

/// An organization by id, name or `default`, which the caller may read.
pub(crate) async fn organization(
    app: &App,
    caller: &Caller,
    text: &str,
) -> Result<Organization, ApiError> {
    let found = match Uuid::try_parse(text) {
        Ok(id) => organization::find(app.db(), OrganizationId(id)).await?,
        Err(_) => organization::find_by_name(app.db(), text).await?,
    };
    let organization = found.ok_or(ApiError::NotFound)?;
    let resource = Resource::new(ResourceKind::Organization).in_organization(organization.id);
    caller.authorize(Action::Read, &resource)?;
    Ok(organization)
}
