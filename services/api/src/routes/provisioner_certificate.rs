//! Certificates of provisioner daemons that an organization does not take any more.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_db::provisioner_certificate::{self, Revocation};
use berth_domain::authz::Action;
use berth_domain::id::UserId;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::lookup;
use crate::routes::provisioner::daemons_of;

/// Longest reason, in characters.
const REASON_MAX: usize = 256;
/// Hexadecimal digits of a fingerprint, which is a SHA-256.
const DIGITS: usize = 64;

pub(crate) fn routes() -> Router<App> {
    Router::new().route(
        "/organizations/{organization}/provisionercertificates/revocations",
        get(list).post(revoke),
    )
}

#[derive(Serialize)]
struct RevocationView {
    fingerprint: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<UserId>,
    created_at: Timestamp,
}

impl From<Revocation> for RevocationView {
    fn from(it: Revocation) -> Self {
        Self {
            fingerprint: it.fingerprint,
            reason: it.reason,
            created_by: it.created_by,
            created_at: it.created_at,
        }
    }
}

#[tracing::instrument(name = "http.provisioner_certificate.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<RevocationView>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Read, &daemons_of(organization.id))?;
    let revoked = provisioner_certificate::list(app.db(), organization.id).await?;
    Ok(Json(revoked.into_iter().map(RevocationView::from).collect()))
}

#[derive(Deserialize)]
struct Revoke {
    /// As `openssl x509 -fingerprint -sha256` prints it, or without the colons.
    fingerprint: String,
    #[serde(default)]
    reason: String,
}

/// Revokes a certificate; doing so again changes nothing.
#[tracing::instrument(name = "http.provisioner_certificate.revoke", skip_all)]
async fn revoke(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<Revoke>,
) -> Result<StatusCode, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Delete, &daemons_of(organization.id))?;
    let fingerprint = normalized(&body.fingerprint).ok_or_else(|| {
        ApiError::field(
            "fingerprint",
            "A fingerprint is a SHA-256: 64 hexadecimal digits, with or without colons.",
        )
    })?;
    if body.reason.chars().count() > REASON_MAX || body.reason.contains('\0') {
        let text = format!("A reason has at most {REASON_MAX} characters.");
        return Err(ApiError::field("reason", text));
    }
    let mut work = app.begin().await?;
    let (by, what) = ((caller.id(), work.now()), (fingerprint.as_str(), body.reason.as_str()));
    if provisioner_certificate::revoke(work.conn(), organization.id, what, by).await? {
        let change = Change::new("delete", "provisioner_certificate", organization.id.0);
        let change = change.of(&fingerprint).within(organization.id);
        audit::record(&mut work, caller.id(), &origin, change).await?;
    }
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lower-case digits alone.
fn normalized(fingerprint: &str) -> Option<String> {
    let digits: String = fingerprint.trim().split(':').collect::<String>().to_ascii_lowercase();
    let is_one = digits.len() == DIGITS && digits.bytes().all(|it| it.is_ascii_hexdigit());
    is_one.then_some(digits)
}
