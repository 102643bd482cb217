//! Logging in and out, sessions and tokens.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use berth_db::api_key::{self, ApiKey};
use berth_db::user;
use berth_domain::authz::{Action, Resource, ResourceKind, Scope};
use berth_domain::id::{PREBUILDS_USER, UserId};
use http::{HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::{self, Caller, KeyPurpose};
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Path};
use crate::lookup;

/// Sessions that programs make live this long.
const KEY_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 7);

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/users/login", post(login))
        .route("/users/logout", post(logout))
        .route("/users/authmethods", get(methods))
        .route("/users/{user}/keys", post(create_key))
        .route("/users/{user}/keys/tokens", get(list_tokens).post(create_token))
        .route("/users/{user}/keys/{keyid}", get(show).delete(revoke))
}

#[derive(Deserialize)]
struct Login {
    email: String,
    password: String,
}

#[derive(Serialize)]
struct LoggedIn {
    session_token: String,
}

/// Answers the same, after the same time, whether the user or the password is wrong.
#[tracing::instrument(name = "http.session.login", skip_all)]
async fn login(
    State(app): State<App>,
    origin: Origin,
    Json(body): Json<Login>,
) -> Result<Response, ApiError> {
    let found = user::find_login(app.db(), &body.email).await?;
    let hash = found.as_ref().filter(|it| it.login_type == "password");
    let hash = hash.and_then(|it| it.password_hash.clone());
    let is_right = app.passwords.verify(body.password, hash).await.map_err(ApiError::Internal)?;
    let Some(user) = found.filter(|_| is_right) else {
        return Err(ApiError::Unauthenticated("Incorrect email or password."));
    };
    if user.status == "suspended" {
        return Err(ApiError::Unauthenticated("Your account is suspended; ask an administrator."));
    }
    let lifetime: std::time::Duration = app.config.session.lifetime.into();
    let purpose = KeyPurpose {
        user_id: user.id,
        login_type: "password",
        scope: Scope::All,
        token_name: String::new(),
        workspace_id: None,
        lifetime: lifetime.try_into().map_err(ApiError::internal)?,
    };
    let key = auth::make_key(&app, purpose)?;
    let mut work = app.begin().await?;
    let now = work.now();
    api_key::insert(work.conn(), &key.stored).await?;
    user::mark_seen(work.conn(), user.id, now).await?;
    let change = Change::new("login", "api_key", user.id.0).of(key.stored.id);
    audit::record(&mut work, user.id, &origin, change).await?;
    work.commit().await?;
    let cookie = cookie(&app, &key.token);
    let body = Json(LoggedIn { session_token: key.token });
    let mut response = (StatusCode::CREATED, body).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie?);
    Ok(response)
}

fn cookie(app: &App, value: &str) -> Result<HeaderValue, ApiError> {
    let secure = if app.config.http.access_url.starts_with("https:") { "; Secure" } else { "" };
    let age = if value.is_empty() { "; Max-Age=0" } else { "" };
    let name = auth::COOKIE;
    HeaderValue::from_str(&format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}"))
        .map_err(ApiError::internal)
}

#[tracing::instrument(name = "http.session.logout", skip_all)]
async fn logout(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
) -> Result<Response, ApiError> {
    let mut work = app.begin().await?;
    api_key::delete(work.conn(), caller.id(), &caller.key.id).await?;
    let change = Change::new("logout", "api_key", caller.id().0).of(&caller.key.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    let mut response = Json(Message::new("Logged out.")).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie(&app, "")?);
    Ok(response)
}

#[tracing::instrument(name = "http.session.methods", skip_all)]
async fn methods() -> Json<Value> {
    Json(json!({
        "terms_of_service_url": "",
        "password": { "enabled": true },
        "github": { "enabled": false, "default_provider_configured": false },
        "oidc": { "enabled": false, "signInText": "", "iconUrl": "" },
    }))
}

#[derive(Serialize)]
struct Generated {
    key: String,
}

/// The user of the path, if the caller may do this to his keys. System users own none.
async fn owner(app: &App, caller: &Caller, user: &str, action: Action) -> Result<UserId, ApiError> {
    let user = lookup::user(app, caller, user).await?;
    caller.authorize(action, &Resource::new(ResourceKind::ApiKey).owned_by(user.id))?;
    if user.is_system || user.id == PREBUILDS_USER {
        return Err(ApiError::invalid("A system user cannot own sessions or tokens."));
    }
    // Who makes a token of somebody can act as them.
    if action == Action::Create {
        caller.authorize_over(&user)?;
    }
    Ok(user.id)
}

async fn generate(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    purpose: KeyPurpose,
) -> Result<(StatusCode, Json<Generated>), ApiError> {
    let key = auth::make_key(app, purpose)?;
    let mut work = app.begin().await?;
    api_key::insert(work.conn(), &key.stored).await?;
    let change = Change::new("create", "api_key", key.stored.user_id.0).of(key.stored.id);
    audit::record(&mut work, caller.id(), origin, change).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(Generated { key: key.token })))
}

#[tracing::instrument(name = "http.api_key.create", skip_all)]
async fn create_key(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
) -> Result<(StatusCode, Json<Generated>), ApiError> {
    let user_id = owner(&app, &caller, &user, Action::Create).await?;
    let purpose = KeyPurpose {
        user_id,
        login_type: "password",
        scope: caller.key.scope,
        token_name: String::new(),
        workspace_id: None,
        lifetime: KEY_LIFETIME,
    };
    generate(&app, &caller, &origin, purpose).await
}

#[derive(Deserialize)]
struct CreateToken {
    /// In nanoseconds; 0 or nothing: the configured one.
    #[serde(default)]
    lifetime: i64,
    scope: Option<Scope>,
    #[serde(default)]
    token_name: String,
}

#[tracing::instrument(name = "http.api_key.create_token", skip_all)]
async fn create_token(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
    Json(body): Json<CreateToken>,
) -> Result<(StatusCode, Json<Generated>), ApiError> {
    let user_id = owner(&app, &caller, &user, Action::Create).await?;
    let session = &app.config.session;
    let most: std::time::Duration = session.max_token_lifetime.into();
    let default: std::time::Duration = session.token_lifetime.into();
    let lifetime = match body.lifetime {
        0 => default.try_into().map_err(ApiError::internal)?,
        it => SignedDuration::from_nanos(it),
    };
    if lifetime < SignedDuration::from_secs(1) || lifetime.as_secs() > most.as_secs().cast_signed()
    {
        let most = most.as_secs();
        let detail = format!("is {} s; use 1 to {most} s, in nanoseconds", lifetime.as_secs());
        return Err(ApiError::field("lifetime", detail));
    }
    let token_name = match body.token_name {
        name if name.is_empty() => auth::random_text::<10>(&app).to_lowercase(),
        name => name,
    };
    berth_domain::name::display(&token_name)
        .map_err(|error| ApiError::field("token_name", error.to_string()))?;
    let scope = match (caller.key.scope, body.scope.unwrap_or(Scope::All)) {
        (Scope::All, asked) => asked,
        (narrow, _) => narrow,
    };
    let purpose = KeyPurpose {
        user_id,
        login_type: "token",
        scope,
        token_name,
        workspace_id: None,
        lifetime,
    };
    generate(&app, &caller, &origin, purpose).await
}

#[derive(Serialize)]
struct KeyView {
    id: String,
    user_id: UserId,
    last_used: Timestamp,
    expires_at: Timestamp,
    created_at: Timestamp,
    updated_at: Timestamp,
    login_type: String,
    scope: Scope,
    token_name: String,
    lifetime_seconds: i64,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            user_id: key.user_id,
            last_used: key.last_used_at,
            expires_at: key.expires_at,
            created_at: key.created_at,
            updated_at: key.updated_at,
            login_type: key.login_type,
            scope: key.scope,
            token_name: key.token_name,
            lifetime_seconds: key.lifetime_seconds,
        }
    }
}

#[tracing::instrument(name = "http.api_key.list_tokens", skip_all)]
async fn list_tokens(
    State(app): State<App>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<KeyView>>, ApiError> {
    let user = owner(&app, &caller, &user, Action::Read).await?;
    let keys = api_key::list_tokens(app.db(), user).await?;
    Ok(Json(keys.into_iter().map(KeyView::from).collect()))
}

#[tracing::instrument(name = "http.api_key.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((user, id)): Path<(String, String)>,
) -> Result<Json<KeyView>, ApiError> {
    let user = owner(&app, &caller, &user, Action::Read).await?;
    let key = api_key::find(app.db(), user, &id).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(key.into()))
}

#[tracing::instrument(name = "http.api_key.delete", skip_all)]
async fn revoke(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((user, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let user = owner(&app, &caller, &user, Action::Delete).await?;
    let mut work = app.begin().await?;
    if !api_key::delete(work.conn(), user, &id).await? {
        return Err(ApiError::NotFound);
    }
    let change = Change::new("delete", "api_key", user.0).of(id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
