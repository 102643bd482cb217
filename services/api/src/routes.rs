//! Every route of the API.

use axum::Router;
use axum::middleware;

use crate::app::App;
use crate::edge;
use crate::error::ApiError;

/// One module per resource; one line each, in order.
const RESOURCES: &[fn() -> Router<App>] = &[];

/// The whole API. Each resource is a module that gives its routes, relative to `/api/v2`.
pub(crate) fn router(app: App) -> Router {
    let api = RESOURCES.iter().fold(Router::new(), |api, routes| api.merge(routes()));
    Router::new()
        .nest("/api/v2", api.fallback(unknown).method_not_allowed_fallback(unknown))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(app.clone(), edge::guard))
        .with_state(app)
}

async fn unknown() -> ApiError {
    ApiError::NotFound
}
