//! Errors as HTTP answers: the one place where they meet.

use crate::error::DirectorError;
use crate::hints;
use axum::Json;
use axum::response::{IntoResponse, Response};
use conpaas_model::api::ErrorBody;
use http::{HeaderValue, StatusCode, header};

/// The HTTP status of an error.
pub fn status(error: &DirectorError) -> StatusCode {
    match error {
        DirectorError::NotFound(_) => StatusCode::NOT_FOUND,
        DirectorError::Conflict(_) | DirectorError::Quota(_) => StatusCode::CONFLICT,
        DirectorError::Invalid(_) => StatusCode::BAD_REQUEST,
        DirectorError::Forbidden(_) => StatusCode::FORBIDDEN,
        DirectorError::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
        DirectorError::PreconditionFailed(_) => StatusCode::PRECONDITION_FAILED,
        DirectorError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        DirectorError::Unavailable(explain) if explain.code == "too_many_attempts" => {
            StatusCode::TOO_MANY_REQUESTS
        }
        DirectorError::Unavailable(explain) if explain.code == "disk_full" => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        DirectorError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        DirectorError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn body(error: DirectorError) -> ErrorBody {
    match error {
        DirectorError::NotFound(explain)
        | DirectorError::Conflict(explain)
        | DirectorError::Quota(explain)
        | DirectorError::Invalid(explain)
        | DirectorError::Forbidden(explain)
        | DirectorError::Unauthenticated(explain)
        | DirectorError::PreconditionFailed(explain)
        | DirectorError::TooLarge(explain)
        | DirectorError::Unavailable(explain) => ErrorBody {
            code: explain.code.to_owned(),
            message: explain.message,
            hint: Some(
                explain
                    .hint
                    .unwrap_or_else(|| hints::usual(explain.code).to_owned()),
            ),
        },
        DirectorError::Internal { what, source } => {
            tracing::error!(error = &*source as &dyn std::error::Error, "{what}");
            ErrorBody {
                code: "internal".to_owned(),
                message: format!("{what}; the Director's log says more"),
                hint: Some(
                    "try again; if it stays, show the operator the Director's log".to_owned(),
                ),
            }
        }
    }
}

impl IntoResponse for DirectorError {
    fn into_response(self) -> Response {
        let status = status(&self);
        let retry_after = match &self {
            DirectorError::Unavailable(explain) | DirectorError::Conflict(explain) => {
                explain.retry_after
            }
            _ => None,
        };
        let mut response = (status, Json(body(self))).into_response();
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) async fn no_such_path(uri: http::Uri) -> DirectorError {
    DirectorError::not_found(format!("the API has no path {}", uri.path()))
        .hint("its paths are described at /v1/openapi.json")
}

pub(super) async fn no_such_method(method: http::Method, uri: http::Uri) -> Response {
    let error = DirectorError::invalid(
        "no_such_method",
        format!("{} does not take {method}", uri.path()),
    );
    (StatusCode::METHOD_NOT_ALLOWED, Json(body(error))).into_response()
}
