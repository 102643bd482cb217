//! The provisioner state that a build left.

use axum::body::Bytes;
use axum::extract::State;
use berth_db::build_state;
use berth_domain::authz::Action;
use berth_domain::id::BuildId;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::Path;
use crate::routes::{build, template, workspace_change};

/// What comes before the state: it is JSON, and nobody on the way keeps it.
type Headers = [(HeaderName, &'static str); 2];

/// Gives out the state of a build as the tool wrote it: for moving a workspace by hand, or for
/// finding what a lost daemon may have left. It has every secret of the template's resources in it,
/// so it takes the right to change both the workspace and its template, and is audited. 404 where
/// the build left no state.
pub(super) async fn export(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<BuildId>,
) -> Result<(Headers, Bytes), ApiError> {
    let build = build::find(&app, &caller, id, Action::Update).await?;
    template::find(&app, &caller, build.template_id, Action::Update).await?;
    let stored = build_state::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    let state = app
        .vault
        .open_state(build.workspace_id, stored)
        .map_err(|error| ApiError::Internal(error.into()))?;
    let mut work = app.begin().await?;
    let line = workspace_change::Line {
        organization: build.organization_id,
        action: "read",
        resource_type: "workspace_build_state",
        id: id.0,
        target: &build.workspace_name,
        diff: json!({ "bytes": state.len() }),
    };
    workspace_change::audit(&mut work, &caller, &origin, line).await?;
    // Nothing leaves that the log does not have.
    work.commit().await?;
    Ok(([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], state.into()))
}
