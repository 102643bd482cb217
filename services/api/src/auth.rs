//! Who is asking: people by session or token, agents by their token.

use axum::extract::FromRequestParts;
use berth_db::agent::AgentIdentity;
use berth_db::api_key::{self, ApiKey, NewKey};
use berth_db::user::{self, User};
use berth_domain::authz::{
    Action, Decision, Person, Resource, Scope, SiteRole, Subject, allowed, assignable_site_roles,
};
use berth_domain::id::{UserId, WorkspaceId};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::app::App;
use crate::error::ApiError;

/// Carries sessions, tokens and agents' tokens.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("coder-session-token");
/// The cookie that carries a session.
pub(crate) const COOKIE: &str = "coder_session_token";
const ID_LENGTH: usize = 10;
const SECRET_LENGTH: usize = 22;
/// A use is noted at most this often.
const NOTE_EVERY: SignedDuration = SignedDuration::from_mins(10);
const WHO: &str = "Log in first: the request carries no valid session or token.";

/// The credential of a request, whatever its kind.
pub(crate) fn credential(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(HEADER) {
        return value.to_str().ok().map(ToOwned::to_owned);
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|it| it.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value.to_owned())
}

/// A key that has just been made: the only time that its secret is known.
pub(crate) struct FreshKey {
    /// What is stored.
    pub(crate) stored: NewKey,
    /// What the client keeps: `id-secret`.
    pub(crate) token: String,
}

/// What a key is made for.
pub(crate) struct KeyPurpose {
    pub(crate) user_id: UserId,
    pub(crate) login_type: &'static str,
    pub(crate) scope: Scope,
    pub(crate) token_name: String,
    pub(crate) workspace_id: Option<WorkspaceId>,
    pub(crate) lifetime: SignedDuration,
}

/// Makes a key.
pub(crate) fn make_key(app: &App, purpose: KeyPurpose) -> Result<FreshKey, ApiError> {
    let id = random_text::<ID_LENGTH>(app);
    let secret = random_text::<SECRET_LENGTH>(app);
    let now = app.now();
    let expires_at = now.checked_add(purpose.lifetime).map_err(ApiError::internal)?;
    let stored = NewKey {
        id: id.clone(),
        secret_hash: Sha256::digest(secret.as_bytes()).into(),
        user_id: purpose.user_id,
        login_type: purpose.login_type,
        scope: purpose.scope,
        token_name: purpose.token_name,
        workspace_id: purpose.workspace_id,
        lifetime_seconds: purpose.lifetime.as_secs(),
        now,
        expires_at,
    };
    Ok(FreshKey { stored, token: format!("{id}-{secret}") })
}

/// `N` random letters and digits.
pub(crate) fn random_text<const N: usize>(app: &App) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(N);
    while text.len() < N {
        // Bytes past the last whole multiple would favour the first letters.
        let usable = app.backbone.ids.bytes::<32>().into_iter().filter(|byte| *byte < 248);
        let missing = N - text.len();
        text.extend(usable.take(missing).map(|byte| char::from(ALPHABET[usize::from(byte) % 62])));
    }
    text
}

/// A person who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// As authorization sees it.
    pub(crate) subject: Subject,
    /// As people see it.
    pub(crate) user: User,
    /// The session or token in use.
    pub(crate) key: ApiKey,
}

impl Caller {
    /// The user's id.
    pub(crate) fn id(&self) -> UserId {
        self.user.id
    }

    /// The same person by the same key as they are now; 401 once the key is no longer good. For
    /// what goes on long after its request.
    pub(crate) async fn renewed(&self, app: &App) -> Result<Self, ApiError> {
        let session = api_key::find_session(app.db(), &self.key.id).await?;
        let session = session.ok_or(ApiError::Unauthenticated(WHO))?;
        let is_good = session.key.expires_at > app.now() && session.user.status != "suspended";
        if !is_good {
            return Err(ApiError::Unauthenticated(WHO));
        }
        Ok(Self { subject: session.subject, user: session.user, key: session.key })
    }

    /// Roles, memberships and groups.
    pub(crate) fn person(&self) -> &Person {
        self.subject.person().expect("a caller is built from a person's session")
    }

    /// Fails unless the caller may: 404 for what it may not see, 403 otherwise.
    pub(crate) fn authorize(&self, action: Action, resource: &Resource) -> Result<(), ApiError> {
        match allowed(&self.subject, action, resource) {
            Decision::Allow => Ok(()),
            Decision::Forbidden => Err(ApiError::Forbidden),
            Decision::Hidden => Err(ApiError::NotFound),
        }
    }

    /// Whether the caller may.
    pub(crate) fn may(&self, action: Action, resource: &Resource) -> bool {
        allowed(&self.subject, action, resource).is_allowed()
    }

    /// Fails with 403 where `user` has a role that the caller may not give: whoever could take over
    /// such an account would have the role himself.
    pub(crate) fn authorize_over(&self, user: &User) -> Result<(), ApiError> {
        if user.id == self.id() || reaches(&self.person().site_roles, &user.roles) {
            Ok(())
        } else {
            Err(ApiError::Forbidden)
        }
    }
}

/// Whether somebody with the roles `own` may act on an account with the roles `theirs`.
fn reaches(own: &[SiteRole], theirs: &[SiteRole]) -> bool {
    let assignable = assignable_site_roles(own);
    theirs.iter().all(|role| assignable.contains(role))
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = credential(&parts.headers).ok_or(ApiError::Unauthenticated(WHO))?;
        let (id, secret) = split(&token).ok_or(ApiError::Unauthenticated(WHO))?;
        let session =
            api_key::find_session(app.db(), id).await?.ok_or(ApiError::Unauthenticated(WHO))?;
        let hash = Sha256::digest(secret.as_bytes());
        let same: bool = hash.as_slice().ct_eq(&session.secret_hash).into();
        let now = app.now();
        if !same || session.key.expires_at <= now {
            return Err(ApiError::Unauthenticated(WHO));
        }
        if session.user.is_system || session.user.status == "suspended" {
            return Err(ApiError::Unauthenticated("The user of this session is suspended."));
        }
        note_use(app, &session.key, now).await?;
        Ok(Self { subject: session.subject, user: session.user, key: session.key })
    }
}

/// `id-secret`, by length, so that nothing else reaches the database.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('-')?;
    let plain = |text: &str| text.bytes().all(|it| it.is_ascii_alphanumeric());
    let whole = id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH;
    (whole && plain(id) && plain(secret)).then_some((id, secret))
}

async fn note_use(app: &App, key: &ApiKey, now: Timestamp) -> Result<(), ApiError> {
    if now.duration_since(key.last_used_at) < NOTE_EVERY {
        return Ok(());
    }
    let is_session = key.login_type != "token";
    let moved = now.checked_add(SignedDuration::from_secs(key.lifetime_seconds));
    let expires_at = if is_session { moved.unwrap_or(key.expires_at) } else { key.expires_at };
    api_key::mark_used(app.db(), &key.id, now, expires_at).await?;
    user::mark_seen(app.db(), key.user_id, now).await?;
    Ok(())
}

/// An agent that asks.
#[derive(Debug, Clone)]
pub(crate) struct AgentCaller {
    /// Which one.
    pub(crate) agent: AgentIdentity,
}

impl FromRequestParts<App> for AgentCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        const WHO: &str = "The request carries no valid agent token.";
        let token = credential(&parts.headers).and_then(|it| Uuid::try_parse(&it).ok());
        let token = token.ok_or(ApiError::Unauthenticated(WHO))?;
        let agent = berth_db::agent::find_by_token(app.db(), token).await?;
        Ok(Self { agent: agent.ok_or(ApiError::Unauthenticated(WHO))? })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_wins_over_the_cookie() {
        let mut headers = HeaderMap::new();
        assert_eq!(credential(&headers), None);
        headers.insert(header::COOKIE, HeaderValue::from_static("a=b; coder_session_token=one"));
        assert_eq!(credential(&headers).as_deref(), Some("one"));
        headers.insert(HEADER, HeaderValue::from_static("two"));
        assert_eq!(credential(&headers).as_deref(), Some("two"));
    }

    #[test]
    fn nobody_acts_on_an_account_with_roles_that_he_may_not_give() {
        let (owner, admin) = ([SiteRole::Owner], [SiteRole::UserAdmin]);
        assert!(reaches(&owner, &owner));
        assert!(reaches(&owner, &[SiteRole::UserAdmin, SiteRole::Auditor]));
        assert!(reaches(&admin, &[]));
        for above in [SiteRole::Owner, SiteRole::UserAdmin, SiteRole::TemplateAdmin] {
            assert!(!reaches(&admin, &[SiteRole::Member, above]), "{above}");
        }
        assert!(!reaches(&[], &owner));
    }

    #[test]
    fn only_keys_of_the_right_form_are_looked_up() {
        assert!(split("abcdefghij-abcdefghijklmnopqrstuv").is_some());
        assert!(split("abcdefghij-short").is_none());
        assert!(split("abcdefghij-abcdefghijklmnopqrst'v").is_none());
        assert!(split("c42fdf75-3097-471c-8c33-fb52454d81c0").is_none());
    }
}
