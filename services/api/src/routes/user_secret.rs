//! `/users/{user}/secrets`: what the templates of a user's workspaces may ask for. Values go in and
//! never come out.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_backbone::user_secret_place;
use berth_db::Stored;
use berth_db::user::User;
use berth_db::user_secret::{self, UserSecret};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::PREBUILDS_USER;
use berth_domain::secret;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/users/{user}/secrets", get(list).post(create))
        .route("/users/{user}/secrets/{name}", get(show).patch(update).delete(delete))
}

/// A secret as people see it.
#[derive(Debug, Serialize)]
struct SecretView {
    id: Uuid,
    name: String,
    description: String,
    env_name: String,
    file_path: String,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<UserSecret> for SecretView {
    fn from(it: UserSecret) -> Self {
        Self {
            id: it.id,
            name: it.name,
            description: it.description,
            env_name: it.env_name,
            file_path: it.file_path,
            created_at: it.created_at,
            updated_at: it.updated_at,
        }
    }
}

/// The user of a path, whose secrets the caller may do `action` to.
async fn owner(app: &App, caller: &Caller, text: &str, action: Action) -> Result<User, ApiError> {
    let user = lookup::user(app, caller, text).await?;
    caller.authorize(action, &Resource::new(ResourceKind::UserSecret).owned_by(user.id))?;
    Ok(user)
}

#[tracing::instrument(name = "http.user_secret.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<SecretView>>, ApiError> {
    let user = owner(&app, &caller, &user, Action::Read).await?;
    let secrets = user_secret::list(app.db(), user.id).await?;
    Ok(Json(secrets.into_iter().map(SecretView::from).collect()))
}

#[tracing::instrument(name = "http.user_secret.show", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((user, name)): Path<(String, String)>,
) -> Result<Json<SecretView>, ApiError> {
    let user = owner(&app, &caller, &user, Action::Read).await?;
    let found = user_secret::find(app.db(), user.id, &name).await?;
    Ok(Json(found.ok_or(ApiError::NotFound)?.into()))
}

#[derive(Deserialize)]
struct Create {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    env_name: String,
    #[serde(default)]
    file_path: String,
    value: String,
}

#[tracing::instrument(name = "http.user_secret.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Json<SecretView>), ApiError> {
    let user = owner(&app, &caller, &user, Action::Create).await?;
    if user.id == PREBUILDS_USER {
        return Err(ApiError::invalid("The prebuilds user owns no secrets."));
    }
    secret::check_name(&body.name).map_err(refused)?;
    check(&body.description, (&body.env_name, &body.file_path), Some(&body.value))?;
    let mut work = app.begin().await?;
    let (id, now) = (work.id(), work.now());
    let new = UserSecret {
        id,
        name: body.name,
        description: body.description,
        env_name: body.env_name,
        file_path: body.file_path,
        size: bytes(&body.value),
        created_at: now,
        updated_at: now,
    };
    let (count, total) = user_secret::lock(work.conn(), user.id).await?;
    if count >= i64::try_from(secret::MOST).unwrap_or(i64::MAX) {
        let most = secret::MOST;
        return Err(ApiError::invalid(format!("A user has at most {most} secrets; delete one.")));
    }
    check_total(total + i64::from(new.size))?;
    let value = seal(&app, id, body.value)?;
    user_secret::insert(work.conn(), user.id, &new, &value).await?;
    let change = Change::new("create", "user_secret", id).of(&new.name);
    let change = change.with_diff(diff(None, &new, true));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(new.into())))
}

#[derive(Deserialize)]
struct Update {
    description: Option<String>,
    env_name: Option<String>,
    file_path: Option<String>,
    value: Option<String>,
}

#[tracing::instrument(name = "http.user_secret.update", skip_all)]
async fn update(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((user, name)): Path<(String, String)>,
    Json(body): Json<Update>,
) -> Result<Json<SecretView>, ApiError> {
    let user = owner(&app, &caller, &user, Action::Update).await?;
    let mut work = app.begin().await?;
    let (_, total) = user_secret::lock(work.conn(), user.id).await?;
    let old = user_secret::find(work.conn(), user.id, &name).await?.ok_or(ApiError::NotFound)?;
    let new = UserSecret {
        description: body.description.unwrap_or_else(|| old.description.clone()),
        env_name: body.env_name.unwrap_or_else(|| old.env_name.clone()),
        file_path: body.file_path.unwrap_or_else(|| old.file_path.clone()),
        size: body.value.as_deref().map_or(old.size, bytes),
        updated_at: work.now(),
        ..old.clone()
    };
    check(&new.description, (&new.env_name, &new.file_path), body.value.as_deref())?;
    check_total(total + i64::from(new.size) - i64::from(old.size))?;
    let valued = body.value.is_some();
    let value = body.value.map(|value| seal(&app, old.id, value)).transpose()?;
    user_secret::update(work.conn(), &new, value.as_ref()).await?;
    let change = Change::new("write", "user_secret", new.id).of(&new.name);
    let change = change.with_diff(diff(Some(&old), &new, valued));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(new.into()))
}

#[tracing::instrument(name = "http.user_secret.delete", skip_all)]
async fn delete(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((user, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let user = owner(&app, &caller, &user, Action::Delete).await?;
    let mut work = app.begin().await?;
    let old = user_secret::find(work.conn(), user.id, &name).await?.ok_or(ApiError::NotFound)?;
    user_secret::delete(work.conn(), old.id).await?;
    let change = Change::new("delete", "user_secret", old.id).of(&old.name);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn refused(error: secret::SecretError) -> ApiError {
    ApiError::field(error.field, error.detail)
}

fn check(
    description: &str,
    (env_name, file_path): (&str, &str),
    value: Option<&str>,
) -> Result<(), ApiError> {
    secret::check_description(description).map_err(refused)?;
    secret::check_targets(env_name, file_path).map_err(refused)?;
    value.map_or(Ok(()), secret::check_value).map_err(refused)
}

fn check_total(bytes: i64) -> Result<(), ApiError> {
    let most = secret::TOTAL_MAX;
    if bytes > most {
        let detail = format!("the user's secrets would have {bytes} bytes; at most {most} fit");
        return Err(ApiError::field("value", detail));
    }
    Ok(())
}

/// Bytes of a value; it was checked to be short, or will be.
fn bytes(value: &str) -> i32 {
    i32::try_from(value.len()).unwrap_or(i32::MAX)
}

fn seal(app: &App, id: Uuid, value: String) -> Result<Stored, ApiError> {
    let sealed = app.vault.seal(user_secret_place(&id.to_string()), value.into_bytes());
    sealed.map_err(|error| ApiError::Unavailable(error.into()))
}

/// What the audit log says of a change: of the value only that it has another.
fn diff(old: Option<&UserSecret>, new: &UserSecret, valued: bool) -> Value {
    let seen = |it: &UserSecret| {
        json!({
            "description": it.description,
            "env_name": it.env_name,
            "file_path": it.file_path,
        })
    };
    let mut diff = audit::diff(&old.map_or(json!({}), seen), &seen(new));
    if valued {
        diff["value"] = json!({ "old": "", "new": "", "secret": true });
    }
    diff
}
