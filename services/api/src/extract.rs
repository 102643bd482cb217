//! Extractors that fail in the shape of our errors.

use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
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
        let mut reader = serde_json::Deserializer::from_slice(&body);
        let value =
            serde_path_to_error::deserialize(&mut reader).map_err(|error| of_body(&error))?;
        // What follows the value, if anything does, belongs to no request.
        reader.end().map_err(|error| ApiError::invalid(format!("The body is no JSON: {error}")))?;
        Ok(Self(value))
    }
}

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Reads JSON. What cannot be read is 400 and named.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| of_body(&error))?;
    // What follows the value, if anything does, belongs to no request.
    reader.end().map_err(|error| ApiError::invalid(format!("The body is no JSON: {error}")))?;
    Ok(value)
}

/// Names the field that is not as it should be.
fn of_body(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (field, reason) = (error.path().to_string(), in_words(&error.inner().to_string()));
    if field == "." {
        return ApiError::invalid(format!("The body is not the JSON that is expected: {reason}"));
    }
    ApiError::invalid(format!("The body's {field} is not as expected: {reason}"))
}

/// Names the part of the path, what it is, and what it should be.
fn of_path(rejection: &PathRejection) -> ApiError {
    let PathRejection::FailedToDeserializePathParams(error) = rejection else {
        return ApiError::internal(anyhow::anyhow!("the route has no such parts: {rejection}"));
    };
    let text = match error.kind() {
        ErrorKind::DeserializeError { key, value, message } => {
            format!("{key} in the path is {value:?}: {}", in_words(message))
        }
        ErrorKind::ParseErrorAtKey { key, value, expected_type } => {
            format!("{key} in the path is {value:?}: use {}", kind(expected_type))
        }
        ErrorKind::ParseErrorAtIndex { value, expected_type, .. }
        | ErrorKind::ParseError { value, expected_type } => {
            format!("The path has {value:?}: use {}", kind(expected_type))
        }
        other => format!("The path cannot be read: {other}"),
    };
    ApiError::invalid(text)
}

/// What people call a type of ours.
fn kind(name: &str) -> &str {
    match name {
        "bool" | "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "String" | "str" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    }
}

/// A reason with no names of our types in it: `expected i64`, `expected struct CreateWorkspace`.
fn in_words(reason: &str) -> String {
    let Some((before, after)) = reason.rsplit_once("expected ") else { return reason.to_owned() };
    let (expected, place) = match after.split_once(" at line ") {
        Some((expected, place)) => (expected, format!(" at line {place}")),
        None => (after, String::new()),
    };
    let is_object = ["struct ", "internally tagged enum ", "adjacently tagged enum "];
    let expected = if is_object.iter().any(|it| expected.starts_with(it)) {
        "an object"
    } else if expected.starts_with("enum ") {
        "one of the known values"
    } else {
        kind(expected)
    };
    format!("{before}expected {expected}{place}")
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
            .map_err(|error| of_path(&error))
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
            .map_err(|error| {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                let reason = in_words(&reason.unwrap_or_else(|| error.to_string()));
                ApiError::invalid(format!("The query cannot be read: {reason}"))
            })
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

    #[derive(Debug, serde::Deserialize)]
    struct Asked {
        #[expect(dead_code, reason = "it is read, or refused")]
        count: i64,
    }

    #[tokio::test]
    async fn what_is_refused_is_named_by_its_field_and_in_words() {
        for (body, expected) in [
            (
                r#"{"count": "x"}"#,
                "The body's count is not as expected: invalid type: string \"x\", expected a whole number at line 1 column 13",
            ),
            (
                "5",
                "The body is not the JSON that is expected: invalid type: integer `5`, expected an object at line 1 column 1",
            ),
            (
                "{}",
                "The body is not the JSON that is expected: missing field `count` at line 1 column 2",
            ),
        ] {
            let request = Request::new(axum::body::Body::from(body));
            let refused = Json::<Asked>::from_request(request, &()).await.map(|it| it.0);
            assert_eq!(refused.unwrap_err().to_string(), expected);
        }
        let request = Request::new(axum::body::Body::from(r#"{"count": 1} {}"#));
        assert!(Json::<Asked>::from_request(request, &()).await.is_err(), "two values");
    }

    #[test]
    fn no_name_of_a_type_is_told() {
        for (reason, expected) in [
            ("limit: invalid digit found in string", "limit: invalid digit found in string"),
            (
                "invalid type: map, expected a sequence at line 2 column 1",
                "invalid type: map, expected a list at line 2 column 1",
            ),
            (
                "invalid length 0, expected struct Wanted with 2 elements",
                "invalid length 0, expected an object",
            ),
        ] {
            assert_eq!(in_words(reason), expected);
        }
    }

    #[test]
    fn a_value_of_no_known_set_is_told_in_words() {
        let error = "x".parse::<berth_domain::state::BuildStage>().unwrap_err();
        assert_eq!(error.to_string(), "\"x\" is no build stage; known are none, prebuild, claim");
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
