//! What a request may be answered with when it fails.

use axum::Json;
use axum::response::{IntoResponse, Response};
use berth_backbone::builder::BuildError;
use berth_db::DbError;
use berth_domain::name::NameError;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// Seconds after which a request that met an unavailable database may be tried again.
const RETRY_SECONDS: i64 = 1;

/// A field that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Validation {
    /// Which.
    pub(crate) field: String,
    /// Why.
    pub(crate) detail: String,
}

/// The body of every failure, and of successes that have nothing else to say.
#[expect(clippy::struct_field_names, reason = "the wire contract names it")]
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Message {
    /// For people.
    pub(crate) message: String,
    /// More of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    /// By field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) validations: Vec<Validation>,
}

impl Message {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

/// Everything a handler may fail with. The variant picks the status; nothing else does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// 400.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// By field.
        validations: Vec<Validation>,
    },
    /// 401.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// 403.
    #[error("You may not do this.")]
    Forbidden,
    /// 404, also for what may not be seen.
    #[error("Resource not found or you do not have access to it.")]
    NotFound,
    /// 404, for what this deployment has turned off.
    #[error("{0}")]
    Off(&'static str),
    /// 404, where whoever asks may know what there is.
    #[error("{0}")]
    Unknown(String),
    /// 409.
    #[error("{message}")]
    Conflict {
        /// What is in the way.
        message: String,
        /// By field.
        validations: Vec<Validation>,
    },
    /// 412.
    #[error("{0}")]
    Precondition(String),
    /// 413.
    #[error("The body is larger than {0} bytes.")]
    TooLarge(usize),
    /// 422.
    #[error("{0}")]
    Unprocessable(String),
    /// 429.
    #[error("Too many requests; try again in {0} s.")]
    TooMany(i64),
    /// 429, for streams.
    #[error(
        "{most} streams of yours are open at this server ({setting}), which is as many as there may \
         be; close one."
    )]
    TooManyStreams {
        /// How many there may be.
        most: usize,
        /// The setting that says so.
        setting: &'static str,
        /// Seconds after which to ask again.
        retry: i64,
    },
    /// 503.
    #[error("The service is not available at the moment; try again.")]
    Unavailable(#[source] anyhow::Error),
    /// 500.
    #[error("An internal error occurred.")]
    Internal(#[source] anyhow::Error),
}

impl ApiError {
    /// 400 without a field.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), validations: Vec::new() }
    }

    /// 400 because of one field.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::fields(vec![Validation { field: field.into(), detail: detail.into() }])
    }

    /// 400 because of fields.
    pub(crate) fn fields(validations: Vec<Validation>) -> Self {
        Self::Invalid { message: "Validation failed.".to_owned(), validations }
    }

    /// 409, with the field that is in the way if there is one.
    pub(crate) fn conflict(message: impl Into<String>, field: Option<&str>) -> Self {
        let message = message.into();
        let validations = field
            .map(|field| Validation { field: field.to_owned(), detail: message.clone() })
            .into_iter()
            .collect();
        Self::Conflict { message, validations }
    }

    /// 500 from anything.
    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::Internal(error.into())
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::Off(_) | Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::Precondition(_) => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany(_) | Self::TooManyStreams { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What a violated constraint means to whoever asked: a sentence and the field in the way.
fn conflict_of(constraint: &str) -> Option<(&'static str, &'static str)> {
    Some(match constraint {
        "users_username_key" => ("A user with this name already exists.", "username"),
        "users_email_key" => ("A user with this e-mail address already exists.", "email"),
        "organizations_name_key" => ("An organization with this name already exists.", "name"),
        "organization_members_pkey" => ("The user is already a member.", "user"),
        "groups_organization_id_name_key" => ("A group with this name already exists.", "name"),
        "templates_organization_id_name_key" => {
            ("A template with this name already exists.", "name")
        }
        "template_versions_template_id_name_key" => {
            ("The template already has a version with this name.", "name")
        }
        "workspaces_owner_name_key" => ("A workspace with this name already exists.", "name"),
        "api_keys_user_id_token_name_key" => {
            ("A token with this name already exists.", "token_name")
        }
        "user_secrets_user_id_name_key" => ("A secret with this name already exists.", "name"),
        "user_secrets_user_id_env_name_key" => ("Another secret has this variable.", "env_name"),
        "user_secrets_user_id_file_path_key" => ("Another secret has this path.", "file_path"),
        "provisioner_keys_organization_id_name_key" => {
            ("A provisioner key with this name already exists.", "name")
        }
        _ => return None,
    })
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        if let Some((message, field)) = error.constraint().and_then(conflict_of) {
            return Self::conflict(message, Some(field));
        }
        match error {
            DbError::NotFound { .. } => Self::NotFound,
            error if error.is_unavailable() => Self::Unavailable(error.into()),
            error => Self::Internal(error.into()),
        }
    }
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Busy(_) => Self::conflict(error.to_string(), None),
            BuildError::Db(error) => error.into(),
        }
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::field("name", error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut body = Message::new(self.to_string());
        let mut retry = None;
        match self {
            Self::Internal(source) => {
                tracing::error!(error = format!("{source:#}"), "request failed");
                body.detail = crate::edge::request_reference();
            }
            Self::Unavailable(source) => {
                tracing::warn!(error = format!("{source:#}"), "request refused");
                body.detail = crate::edge::request_reference();
                retry = Some(RETRY_SECONDS);
            }
            Self::TooMany(seconds) | Self::TooManyStreams { retry: seconds, .. } => {
                retry = Some(seconds);
            }
            Self::Invalid { validations, .. } | Self::Conflict { validations, .. } => {
                body.validations = validations;
            }
            _ => {}
        }
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_cannot_be_reached_is_503_with_retry_after_and_its_error_stays_inside() {
        let source = anyhow::anyhow!("secret host");
        let response = ApiError::Unavailable(source).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[tokio::test]
    async fn a_refused_field_is_named_in_the_body() {
        let response = ApiError::field("limit", "is 5000; at most 1000").into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["validations"][0]["field"], "limit");
        assert_eq!(body["message"], "Validation failed.");
    }
}
