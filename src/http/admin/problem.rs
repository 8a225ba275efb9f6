//! Refusals of the admin listener: problem details (RFC 9457).

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
};
use serde_json::{Value, json};

use crate::{
    admin::{AdminError, FieldError, operator::OperatorError},
    http::body::BodyError,
};

/// When to come back after a 503, in seconds.
const RETRY_AFTER: &str = "5";

/// What is the matter, in general.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request around the call is malformed.
    Malformed,
    /// Fields of the body or the query are wrong.
    Invalid,
    /// There are no credentials.
    Unauthenticated,
    /// The access token is not valid here.
    InvalidToken,
    /// The access token lacks the scope of the call.
    InsufficientScope,
    /// It is above the authority of whoever asks.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body did not arrive in time.
    TooSlow,
    /// It exists already, was changed meanwhile, or its state forbids it.
    Conflict,
    /// Verifiers, or nodes, may not know the next key yet.
    TooEarly,
    /// The body is too large.
    TooLarge,
    /// The body has another media type than the call takes.
    UnsupportedMediaType,
    /// The service failed.
    Internal,
    /// The database cannot be reached.
    Unavailable,
    /// Too many passwords are being hashed.
    Busy,
}

impl Kind {
    /// Status, slug of the problem type, and title.
    pub(super) const fn describe(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "malformed", "The request is malformed"),
            Self::Invalid => (400, "invalid", "Fields are wrong"),
            Self::Unauthenticated => (401, "unauthenticated", "An access token is needed"),
            Self::InvalidToken => (401, "invalid-token", "The access token is not valid here"),
            Self::InsufficientScope => (
                403,
                "insufficient-scope",
                "The access token lacks the scope",
            ),
            Self::Forbidden => (403, "forbidden", "This is above your authority"),
            Self::NotFound => (404, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The path has other methods"),
            Self::TooSlow => (408, "too-slow", "The body did not arrive in time"),
            Self::Conflict => (409, "conflict", "The state of things forbids this"),
            Self::TooEarly => (
                409,
                "too-early",
                "Verifiers or nodes may not know the next key yet",
            ),
            Self::TooLarge => (413, "too-large", "The body is too large"),
            Self::UnsupportedMediaType => (
                415,
                "unsupported-media-type",
                "The body has another media type",
            ),
            Self::Internal => (500, "internal", "The service failed"),
            Self::Unavailable => (503, "unavailable", "The database is not available"),
            Self::Busy => (503, "busy", "Too many passwords are being hashed"),
        }
    }

    /// The URI that names the type of the problem.
    pub(super) fn uri(self) -> String {
        let (_, slug, _) = self.describe();
        format!("urn:countersign:problem:{slug}")
    }
}

/// Why a call is not carried out.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    earliest_activation_at: Option<i64>,
    /// For `WWW-Authenticate` or `Allow`.
    header: Option<(&'static str, String)>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            earliest_activation_at: None,
            header: None,
        }
    }

    /// A body or a query of which fields are wrong.
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail =
            "see errors; each has the JSON Pointer of a member, or the name of a parameter";
        Self {
            errors,
            ..Self::new(Kind::Invalid, detail)
        }
    }

    /// Nothing of this id; also where the id is none that anything could have.
    pub(super) fn not_found(kind: &str) -> Self {
        Self::new(Kind::NotFound, format!("there is no {kind} of this id"))
    }

    /// A request without credentials: "the resource server SHOULD NOT include an error code"
    /// (RFC 6750 §3.1).
    pub(super) fn unauthenticated() -> Self {
        Self::new(
            Kind::Unauthenticated,
            "send an operator's access token as Authorization: Bearer",
        )
        .challenge("Bearer realm=\"countersign-admin\"".to_owned())
    }

    /// A request whose credentials are malformed, or that has several (RFC 6750 §3.1).
    pub(super) fn malformed_credentials() -> Self {
        Self::new(
            Kind::Malformed,
            "send one access token, in one Authorization header",
        )
        .challenge("Bearer realm=\"countersign-admin\", error=\"invalid_request\"".to_owned())
    }

    /// A token that was not accepted for a call that needs `scope`.
    pub(super) fn refused(error: &OperatorError, scope: &str) -> Self {
        match error {
            OperatorError::InvalidToken => Self::new(Kind::InvalidToken, error.to_string()).challenge(
                "Bearer realm=\"countersign-admin\", error=\"invalid_token\"".to_owned(),
            ),
            OperatorError::InsufficientScope => {
                Self::new(Kind::InsufficientScope, format!("this call needs the scope {scope}"))
                    .challenge(format!(
                        "Bearer realm=\"countersign-admin\", error=\"insufficient_scope\", scope=\"{scope}\""
                    ))
            }
            OperatorError::Offline => Self::new(Kind::Unavailable, error.to_string()),
        }
    }

    /// A method that the path does not have.
    pub(super) fn method_not_allowed(allow: &str) -> Self {
        Self {
            header: Some(("allow", allow.to_owned())),
            ..Self::new(Kind::MethodNotAllowed, format!("the path has {allow}"))
        }
    }

    fn challenge(self, challenge: String) -> Self {
        Self {
            header: Some(("www-authenticate", challenge)),
            ..self
        }
    }

    /// The answer.
    pub(super) fn answer(self) -> HttpResponse {
        let (status, _, title) = self.kind.describe();
        let mut document = json!({
            "type": self.kind.uri(),
            "title": title,
            "status": status,
            "detail": self.detail,
        });
        let mut put = |name: &str, value: Value| {
            if let Some(members) = document.as_object_mut() {
                members.insert(name.to_owned(), value);
            }
        };
        if self.kind == Kind::Invalid {
            let errors = self.errors.iter();
            let errors =
                errors.map(|error| json!({ "pointer": error.pointer, "detail": error.detail }));
            put("errors", errors.collect());
        }
        if let Some(earliest) = self.earliest_activation_at {
            put("earliest_activation_at", earliest.into());
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = HttpResponse::build(status);
        answer
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::CONTENT_TYPE, "application/problem+json"));
        if let Some((name, Ok(value))) = self
            .header
            .map(|(name, value)| (name, HeaderValue::from_str(&value)))
        {
            answer.insert_header((name, value));
        }
        if matches!(self.kind, Kind::Unavailable | Kind::Busy) {
            answer.insert_header((header::RETRY_AFTER, RETRY_AFTER));
        }
        answer.body(document.to_string())
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Invalid(errors) => Self::invalid(errors),
            AdminError::NotFound(kind) => Self::not_found(kind),
            AdminError::Forbidden(detail) => Self::new(Kind::Forbidden, detail),
            AdminError::Conflict(detail) => Self::new(Kind::Conflict, detail),
            AdminError::TooEarly {
                earliest_activation_at,
            } => Self {
                // Rounded up: whoever comes back at the time told is not to be refused again.
                earliest_activation_at: Some(
                    earliest_activation_at
                        .millis()
                        .saturating_add(999)
                        .div_euclid(1000),
                ),
                ..Self::new(Kind::TooEarly, error.to_string())
            },
            AdminError::Busy(_) => Self::new(Kind::Busy, "nothing was changed; try again"),
            _ if error.is_unavailable() => {
                log(&error);
                Self::new(
                    Kind::Unavailable,
                    "nothing was changed, or it is not known; look, and try again",
                )
            }
            AdminError::Store(_)
            | AdminError::Sealing(_)
            | AdminError::MasterKey(_)
            | AdminError::Entropy(_) => {
                log(&error);
                Self::new(
                    Kind::Internal,
                    "nothing was changed; the log of the service has the cause",
                )
            }
        }
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::MediaType => Kind::UnsupportedMediaType,
            BodyError::BrokenOff => Kind::Malformed,
            BodyError::TooSlow => Kind::TooSlow,
            BodyError::TooLarge => Kind::TooLarge,
        };
        Self::new(kind, error.to_string())
    }
}

fn log(error: &AdminError) {
    let cause: &dyn std::error::Error = error;
    tracing::error!(cause, "a call of the admin interface failed");
}
