//! Every route of the API.

mod agent;
mod audit_log;
mod build;
mod build_log;
mod build_state;
mod claim;
mod dry_run;
mod file;
mod group;
mod inbox;
mod instance_identity;
mod member;
mod meta;
mod notification_setting;
mod organization;
mod prebuild;
mod promotion;
mod provisioner;
mod provisioner_certificate;
mod provisioner_daemon;
mod pty;
mod reinit;
mod role;
mod session;
mod template;
mod template_view;
mod user;
mod user_secret;
mod version;
mod watch;
mod workspace;
mod workspace_change;
mod workspace_create;
pub(crate) mod workspace_view;

use axum::Router;
use axum::middleware;
use axum::routing::get;

use crate::app::App;
use crate::edge;
use crate::error::ApiError;

/// One module per resource; one line each, in order.
const RESOURCES: &[fn() -> Router<App>] = &[
    member::routes,
    inbox::routes,
    notification_setting::routes,
    group::routes,
    audit_log::routes,
    version::routes,
    dry_run::routes,
    template::routes,
    promotion::routes,
    meta::routes,
    file::routes,
    organization::routes,
    provisioner::routes,
    provisioner_certificate::routes,
    provisioner_daemon::routes,
    session::routes,
    role::routes,
    user::routes,
    user_secret::routes,
    agent::routes,
    instance_identity::routes,
    build::routes,
    build_log::routes,
    pty::routes,
    reinit::routes,
    watch::routes,
    workspace::routes,
    workspace_create::routes,
    claim::routes,
    prebuild::routes,
];

/// The whole API. Each resource is a module that gives its routes, relative to `/api/v2`.
pub(crate) fn router(app: App) -> Router {
    let api = RESOURCES.iter().fold(Router::new(), |api, routes| api.merge(routes()));
    Router::new()
        .nest("/api/v2", api.fallback(unknown).method_not_allowed_fallback(unknown))
        .merge(meta::outside())
        .route("/api/experimental/watch-all-workspacebuilds", get(watch::all))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(app.clone(), edge::guard))
        .with_state(app)
}

async fn unknown() -> ApiError {
    ApiError::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overlapping routes panic when they are merged.
    #[test]
    fn no_two_resources_claim_the_same_route() {
        let api: Router<App> = RESOURCES.iter().fold(Router::new(), |all, it| all.merge(it()));
        assert!(api.has_routes());
    }
}
