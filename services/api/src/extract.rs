//! Extractors that fail in the shape of our errors.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::ApiError;

/// Most bytes of a JSON body.
pub(crate) const MOST_BODY: usize = 1 << 20;
/// Most rows of a page.
pub(crate) const MOST_ROWS: i64 = 1000;

/// A JSON body of at most [`MOST_BODY`] bytes. An answer, too.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = bytes(request, MOST_BODY).await?;
        let value = serde_json::from_slice(&body).map_err(|error| {
            ApiError::invalid(format!("The body is not the JSON that is expected: {error}"))
        })?;
        Ok(Self(value))
    }
}

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Reads a body of at most `most` bytes.
pub(crate) async fn bytes(request: Request, most: usize) -> Result<axum::body::Bytes, ApiError> {
    axum::body::to_bytes(request.into_body(), most).await.map_err(|error| {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(it) = source {
            // What `to_bytes` fails with past its limit.
            if it.to_string().contains("length limit exceeded") {
                return ApiError::TooLarge(most);
            }
            source = it.source();
        }
        ApiError::invalid("The body ended before its end.")
    })
}

/// Parts of the path. What cannot be read is 400.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|it| Self(it.0))
            .map_err(|error| ApiError::invalid(format!("The path cannot be read: {error}")))
    }
}

/// The query string. What cannot be read is 400.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|it| Self(it.0))
            .map_err(|error| ApiError::invalid(format!("The query cannot be read: {error}")))
    }
}

/// Which part of a list is asked for: `limit` (1 to [`MOST_ROWS`]; 0 or nothing means the most),
/// `offset`, `after_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Rows at most.
    pub(crate) limit: i64,
    /// Rows left out at the beginning.
    pub(crate) offset: i64,
    /// The list goes on behind this one.
    pub(crate) after_id: Option<Uuid>,
}

#[derive(Debug, serde::Deserialize)]
struct RawPaging {
    limit: Option<i64>,
    offset: Option<i64>,
    after_id: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(raw) = Query::<RawPaging>::from_request_parts(parts, state).await?;
        raw.check()
    }
}

impl RawPaging {
    fn check(self) -> Result<Paging, ApiError> {
        let limit = match self.limit.unwrap_or(0) {
            0 => MOST_ROWS,
            limit if (1..=MOST_ROWS).contains(&limit) => limit,
            limit => {
                return Err(ApiError::field(
                    "limit",
                    format!("is {limit}; use 1 to {MOST_ROWS}, and offset or after_id for more"),
                ));
            }
        };
        let offset = self.offset.unwrap_or(0);
        if offset < 0 {
            return Err(ApiError::field("offset", format!("is {offset}; use 0 or more")));
        }
        let after_id = match self.after_id.as_deref() {
            None | Some("") => None,
            Some(text) => Some(
                Uuid::parse_str(text)
                    .map_err(|error| ApiError::field("after_id", error.to_string()))?,
            ),
        };
        Ok(Paging { limit, offset, after_id: after_id.filter(|id| !id.is_nil()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(limit: Option<i64>, offset: Option<i64>, expected: Option<(i64, i64)>) {
        let paging = RawPaging { limit, offset, after_id: None }.check().ok();
        assert_eq!(paging.map(|it| (it.limit, it.offset)), expected);
    }

    #[test]
    fn a_page_has_bounds() {
        check(None, None, Some((1000, 0)));
        check(Some(0), Some(7), Some((1000, 7)));
        check(Some(1000), None, Some((1000, 0)));
        check(Some(1001), None, None);
        check(Some(-1), None, None);
        check(None, Some(-1), None);
    }
}
