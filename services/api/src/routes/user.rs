//! `/users`: the first one, accounts, roles, passwords.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use berth_backbone::Work;
use berth_db::organization::{self, Organization};
use berth_db::user::{self, Filter, NewUser, User};
use berth_db::{api_key, member};
use berth_domain::authz::{
    Action, OrganizationRole, Resource, ResourceKind, SiteRole, assignable_site_roles,
};
use berth_domain::id::{OrganizationId, UserId};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::role::SlimRole;
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message, Validation};
use crate::extract::{Json, Paging, Path, Query};
use crate::{lookup, password};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/users", get(list).post(create))
        .route("/users/first", get(has_first).post(create_first))
        .route("/users/{user}", get(show))
        .route("/users/{user}/password", put(set_password))
        .route("/users/{user}/roles", get(show).put(set_roles))
        .route("/users/{user}/status/activate", put(activate))
        .route("/users/{user}/status/suspend", put(suspend))
}

/// A user.
#[derive(Debug, Serialize)]
pub(crate) struct UserView {
    id: UserId,
    username: String,
    email: String,
    name: String,
    avatar_url: String,
    status: String,
    login_type: String,
    theme_preference: &'static str,
    roles: Vec<SlimRole>,
    organization_ids: Vec<OrganizationId>,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_at: Option<Timestamp>,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            username: user.username,
            email: user.email,
            name: user.name,
            avatar_url: user.avatar_url,
            status: user.status,
            login_type: user.login_type,
            theme_preference: "",
            roles: user.roles.iter().map(|role| SlimRole::new(role.as_str(), None)).collect(),
            organization_ids: user.organization_ids,
            created_at: user.created_at,
            updated_at: user.updated_at,
            last_seen_at: user.last_seen_at,
        }
    }
}

#[tracing::instrument(name = "http.user.has_first", skip_all)]
async fn has_first(State(app): State<App>) -> Result<Json<Message>, ApiError> {
    if user::exists(app.db()).await? {
        Ok(Json(Message::new("The first user exists.")))
    } else {
        Err(ApiError::NotFound)
    }
}

#[derive(Deserialize)]
struct CreateFirst {
    email: String,
    username: String,
    #[serde(default)]
    name: String,
    password: String,
}

#[derive(Serialize)]
struct CreatedFirst {
    user_id: UserId,
    organization_id: OrganizationId,
}

/// Makes the owner and the default organization, only while there is nobody.
#[tracing::instrument(name = "http.user.create_first", skip_all)]
async fn create_first(
    State(app): State<App>,
    origin: Origin,
    Json(body): Json<CreateFirst>,
) -> Result<(StatusCode, Json<CreatedFirst>), ApiError> {
    check_account(&body.username, &body.email, &body.name, Some(&body.password))?;
    let taken = || ApiError::conflict("The first user has been created already.", None);
    if user::exists(app.db()).await? {
        return Err(taken());
    }
    let hash = app.passwords.hash(body.password).await.map_err(ApiError::Internal)?;
    let mut work = app.begin().await?;
    user::lock_first(work.conn()).await?;
    if user::exists(work.conn()).await? {
        return Err(taken());
    }
    let now = work.now();
    let (user_id, organization_id) = (UserId(work.id()), OrganizationId(work.id()));
    let new = NewUser {
        id: user_id,
        username: body.username,
        email: body.email,
        name: body.name,
        password_hash: Some(hash),
        status: "active".to_owned(),
        login_type: "password".to_owned(),
        roles: vec![SiteRole::Owner],
        now,
    };
    user::insert(work.conn(), &new).await?;
    let organization = Organization {
        id: organization_id,
        name: "default".to_owned(),
        display_name: "Default".to_owned(),
        description: String::new(),
        icon: String::new(),
        is_default: true,
        created_at: now,
        updated_at: now,
    };
    organization::insert(work.conn(), &organization).await?;
    let roles = [OrganizationRole::Admin.to_string()];
    member::insert(work.conn(), organization_id, user_id, &roles, now).await?;
    let change = Change::new("create", "user", user_id.0).of(new.username);
    audit::record(&mut work, user_id, &origin, change).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(CreatedFirst { user_id, organization_id })))
}

/// Names every field that is not allowed.
fn check_account(
    username: &str,
    email: &str,
    name: &str,
    password: Option<&str>,
) -> Result<(), ApiError> {
    let mut wrong = Vec::new();
    let mut refuse = |field: &str, detail: String| {
        wrong.push(Validation { field: field.to_owned(), detail });
    };
    if let Err(error) = berth_domain::name::user(username) {
        refuse("username", error.to_string());
    }
    if let Err(error) = berth_domain::name::full(name) {
        refuse("name", error.to_string());
    }
    if !is_address(email) {
        refuse("email", format!("{email:?} is not an e-mail address; use name@host"));
    }
    if let Some(Err(detail)) = password.map(password::check) {
        refuse("password", detail);
    }
    if wrong.is_empty() { Ok(()) } else { Err(ApiError::fields(wrong)) }
}

/// Whether it looks like `name@host`. Whether it is one, only a letter can tell.
fn is_address(text: &str) -> bool {
    let fine = |it: char| it.is_ascii_graphic() && !matches!(it, '@' | ',' | ';' | '<' | '>' | '"');
    text.len() <= 254
        && text.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && format!("{name}{host}").chars().all(fine)
        })
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
}

#[derive(Serialize)]
struct Users {
    users: Vec<UserView>,
    count: i64,
}

#[tracing::instrument(name = "http.user.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
    Query(query): Query<ListQuery>,
) -> Result<Json<Users>, ApiError> {
    let sees_all = caller.may(Action::Read, &Resource::new(ResourceKind::User));
    let status = query.q.split_whitespace().find_map(|word| word.strip_prefix("status:"));
    let words: Vec<&str> = query.q.split_whitespace().filter(|word| !word.contains(':')).collect();
    let filter = Filter {
        search: (!words.is_empty()).then(|| words.join(" ")),
        status: status.map(ToOwned::to_owned),
        ids: (!sees_all).then(|| vec![caller.id()]),
        after_id: paging.after_id,
        limit: paging.limit,
        offset: paging.offset,
    };
    let (users, count) = user::list(app.db(), &filter).await?;
    Ok(Json(Users { users: users.into_iter().map(UserView::from).collect(), count }))
}

#[derive(Deserialize)]
struct Create {
    email: String,
    username: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    login_type: String,
    #[serde(default)]
    organization_ids: Vec<OrganizationId>,
    user_status: Option<String>,
}

#[tracing::instrument(name = "http.user.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Json<UserView>), ApiError> {
    caller.authorize(Action::Create, &Resource::new(ResourceKind::User))?;
    for id in &body.organization_ids {
        let kind = ResourceKind::OrganizationMember;
        caller.authorize(Action::Create, &Resource::new(kind).in_organization(*id))?;
    }
    let login_type = match body.login_type.as_str() {
        "" | "password" => "password",
        "none" => "none",
        other => {
            let detail = format!("{other:?} is not possible here; use \"password\" or \"none\"");
            return Err(ApiError::field("login_type", detail));
        }
    };
    let has_password = login_type == "password";
    let password = has_password.then_some(body.password.as_str());
    check_account(&body.username, &body.email, &body.name, password)?;
    let status = body.user_status.unwrap_or_else(|| "active".to_owned());
    if !matches!(status.as_str(), "active" | "dormant" | "suspended") {
        let detail = format!("{status:?} is unknown; use active, dormant or suspended");
        return Err(ApiError::field("user_status", detail));
    }
    let password_hash = if has_password {
        Some(app.passwords.hash(body.password).await.map_err(ApiError::Internal)?)
    } else {
        None
    };
    let mut work = app.begin().await?;
    let new = NewUser {
        id: UserId(work.id()),
        username: body.username,
        email: body.email,
        name: body.name,
        password_hash,
        status,
        login_type: login_type.to_owned(),
        roles: Vec::new(),
        now: work.now(),
    };
    user::insert(work.conn(), &new).await?;
    for id in body.organization_ids {
        if organization::find(work.conn(), id).await?.is_none() {
            return Err(ApiError::field("organization_ids", format!("no organization {id}")));
        }
        let now = work.now();
        member::insert(work.conn(), id, new.id, &[], now).await?;
    }
    let change = Change::new("create", "user", new.id.0).of(&new.username);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    let user = reread(&mut work, new.id).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(user)))
}

async fn reread(work: &mut Work, id: UserId) -> Result<UserView, ApiError> {
    Ok(user::find(work.conn(), id).await?.ok_or(ApiError::NotFound)?.into())
}

#[tracing::instrument(name = "http.user.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<UserView>, ApiError> {
    Ok(Json(lookup::user_for(&app, &caller, &user, Action::Read).await?.into()))
}

#[derive(Deserialize)]
struct SetPassword {
    #[serde(default)]
    old_password: String,
    password: String,
}

/// Sets a password; his own needs the old one. All other sessions of the user end.
#[tracing::instrument(name = "http.user.set_password", skip_all)]
async fn set_password(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
    Json(body): Json<SetPassword>,
) -> Result<StatusCode, ApiError> {
    let user = lookup::user_for(&app, &caller, &user, Action::UpdatePersonal).await?;
    caller.authorize_over(&user)?;
    if user.login_type != "password" {
        return Err(ApiError::invalid("This user does not log in with a password."));
    }
    password::check(&body.password).map_err(|detail| ApiError::field("password", detail))?;
    if user.id == caller.id() {
        let stored = user::find_password(app.db(), user.id).await?;
        let old = body.old_password;
        if !app.passwords.verify(old, stored).await.map_err(ApiError::Internal)? {
            return Err(ApiError::field("old_password", "is not the current password"));
        }
    }
    let hash = app.passwords.hash(body.password).await.map_err(ApiError::Internal)?;
    let mut work = app.begin().await?;
    let now = work.now();
    user::set_password(work.conn(), user.id, &hash, now).await?;
    api_key::delete_all(work.conn(), user.id, false, &caller.key.id).await?;
    let diff = serde_json::json!({ "password": { "old": "", "new": "", "secret": true } });
    let change = Change::new("write", "user", user.id.0).of(user.username).with_diff(diff);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct SetRoles {
    roles: Vec<String>,
}

#[tracing::instrument(name = "http.user.set_roles", skip_all)]
async fn set_roles(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
    Json(body): Json<SetRoles>,
) -> Result<Json<UserView>, ApiError> {
    let user = lookup::user_for(&app, &caller, &user, Action::Read).await?;
    let wanted = body.roles.iter().map(|role| role.parse::<SiteRole>());
    let wanted: Vec<SiteRole> = wanted
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::field("roles", error.to_string()))?;
    let wanted: Vec<SiteRole> = wanted.into_iter().filter(|it| *it != SiteRole::Member).collect();
    let kind = Resource::new(ResourceKind::AssignRole);
    caller.authorize(Action::Assign, &kind)?;
    caller.authorize(Action::Unassign, &kind)?;
    if user.id == caller.id() {
        return Err(ApiError::invalid("You cannot change your own roles."));
    }
    caller.authorize_over(&user)?;
    let mine = assignable_site_roles(&caller.person().site_roles);
    if !wanted.iter().all(|role| mine.contains(role)) {
        return Err(ApiError::Forbidden);
    }
    let mut work = app.begin().await?;
    let now = work.now();
    user::set_roles(work.conn(), user.id, &wanted, now).await?;
    let diff = audit::diff(
        &serde_json::json!({ "roles": user.roles }),
        &serde_json::json!({ "roles": wanted }),
    );
    let change = Change::new("write", "user", user.id.0).of(user.username).with_diff(diff);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    let user = reread(&mut work, user.id).await?;
    work.commit().await?;
    Ok(Json(user))
}

#[tracing::instrument(name = "http.user.activate", skip_all)]
async fn activate(
    state: State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
) -> Result<Json<UserView>, ApiError> {
    set_status(&state.0, &caller, &origin, (&user, "active")).await
}

#[tracing::instrument(name = "http.user.suspend", skip_all)]
async fn suspend(
    state: State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
) -> Result<Json<UserView>, ApiError> {
    set_status(&state.0, &caller, &origin, (&user, "suspended")).await
}

async fn set_status(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    (user, status): (&str, &str),
) -> Result<Json<UserView>, ApiError> {
    let user = lookup::user_for(app, caller, user, Action::Update).await?;
    if user.id == caller.id() {
        return Err(ApiError::invalid("You cannot change your own status."));
    }
    caller.authorize_over(&user)?;
    let mut work = app.begin().await?;
    let now = work.now();
    user::set_status(work.conn(), user.id, status, now).await?;
    let diff = audit::diff(
        &serde_json::json!({ "status": user.status }),
        &serde_json::json!({ "status": status }),
    );
    let change = Change::new("write", "user", user.id.0).of(user.username).with_diff(diff);
    audit::record(&mut work, caller.id(), origin, change).await?;
    let user = reread(&mut work, user.id).await?;
    work.commit().await?;
    Ok(Json(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_name_and_a_host() {
        for fine in ["admin@berth.local", "a.b+c@x"] {
            assert!(is_address(fine), "{fine}");
        }
        for wrong in ["", "admin", "@x", "a@", "a b@x", "a@b@c", "<a@b>"] {
            assert!(!is_address(wrong), "{wrong}");
        }
    }

    #[test]
    fn every_wrong_field_of_an_account_is_named() {
        let Err(ApiError::Invalid { validations, .. }) =
            check_account("me", "nowhere", "", Some("short"))
        else {
            panic!("it was accepted");
        };
        let fields: Vec<&str> = validations.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["username", "email", "password"]);
    }
}
