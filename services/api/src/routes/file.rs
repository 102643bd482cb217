//! `/files`: archives of templates.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use berth_db::file::{self, NewFile};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::FileId;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::template;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{self, Json, Path};

/// Most bytes of an archive as it is sent.
const MOST_ARCHIVE: usize = 100 << 20;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/files", post(upload)).route("/files/{file}", get(download))
}

#[derive(Serialize)]
struct Uploaded {
    hash: FileId,
}

/// Stores an archive. The same content by the same user has the same id.
#[tracing::instrument(name = "http.file.create", skip_all)]
async fn upload(
    State(app): State<App>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Uploaded>), ApiError> {
    caller.authorize(Action::Create, &Resource::new(ResourceKind::File).owned_by(caller.id()))?;
    let _slot = app.uploads.acquire().await.map_err(ApiError::internal)?;
    let data = extract::bytes(request, MOST_ARCHIVE).await?;
    let mimetype = archive_type(&data).ok_or_else(|| {
        ApiError::invalid("The body is no archive: send a tar, plain or packed with zstd or gzip.")
    })?;
    let hash = hex::encode(Sha256::digest(&data));
    let new = NewFile {
        id: FileId(app.backbone.ids.next()),
        hash: &hash,
        mimetype,
        created_by: caller.id(),
        data: &data,
        now: app.now(),
    };
    let id = file::insert(app.db(), &new).await?;
    Ok((StatusCode::CREATED, Json(Uploaded { hash: id })))
}

/// What the bytes are, whatever the request says they are.
fn archive_type(data: &[u8]) -> Option<&'static str> {
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    const GZIP: &[u8] = &[0x1f, 0x8b];
    // Where the header of a tar's first entry names its format.
    let is_tar = data.get(257..262) == Some(b"ustar".as_slice());
    if data.starts_with(ZSTD) {
        Some("application/zstd")
    } else if data.starts_with(GZIP) {
        Some("application/gzip")
    } else {
        is_tar.then_some("application/x-tar")
    }
}

#[tracing::instrument(name = "http.file.get", skip_all)]
async fn download(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<FileId>,
) -> Result<Response, ApiError> {
    let file = file::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    let resource = Resource::new(ResourceKind::File).owned_by(file.created_by);
    if !caller.may(Action::Read, &resource) {
        of_template(&app, &caller, id).await?;
    }
    let data = file::get_data(app.db(), id).await?;
    let mimetype = HeaderValue::from_str(&file.mimetype).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, mimetype)], data).into_response())
}

/// Whoever may change a template may read what its versions are made of, whoever pushed them.
async fn of_template(app: &App, caller: &Caller, id: FileId) -> Result<(), ApiError> {
    for it in file::list_templates(app.db(), id).await? {
        match template::find(app, caller, it, Action::Update).await {
            Ok(_) => return Ok(()),
            Err(ApiError::NotFound | ApiError::Forbidden) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_known_by_its_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(archive_type(&tar), Some("application/x-tar"));
        assert_eq!(archive_type(&[0x28, 0xb5, 0x2f, 0xfd, 0]), Some("application/zstd"));
        assert_eq!(archive_type(&[0x1f, 0x8b, 8]), Some("application/gzip"));
        assert_eq!(archive_type(b"PK\x03\x04"), None);
        assert_eq!(archive_type(b""), None);
    }
}
