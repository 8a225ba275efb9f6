//! The errors of RFC 6749 §5.2 and its extensions, and how they are told.

use std::{borrow::Cow, error::Error, fmt, sync::Arc};

use crate::{store::StoreError, throttle::RetryAfter};

/// An error code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// "The resource owner or authorization server denied the request" (RFC 6749 §4.1.2.1).
    AccessDenied,
    /// "The Authorization Server requires End-User consent" (`OpenID` Connect Core §3.1.2.6).
    ConsentRequired,
    /// "The presented authorization is insufficient, and the authorization server is requesting the
    /// client to take additional steps" (draft-ietf-oauth-first-party-apps §5.2.2.1).
    InsufficientAuthorization,
    /// Client authentication failed (RFC 6749 §5.2). Always 401.
    InvalidClient,
    /// The grant or token was "issued to another client", among others (RFC 6749 §5.2).
    InvalidGrant,
    /// "The request is missing a required parameter, includes an unsupported parameter value (other
    /// than grant type), repeats a parameter, includes multiple credentials, utilizes more than one
    /// mechanism for authenticating the client, or is otherwise malformed" (RFC 6749 §5.2).
    InvalidRequest,
    /// "The requested scope is invalid, unknown, malformed, or exceeds the scope granted"
    /// (RFC 6749 §5.2).
    InvalidScope,
    /// "The Authorization Server requires End-User authentication" (`OpenID` Connect Core §3.1.2.6).
    LoginRequired,
    /// "The request is not able to be fulfilled with any further direct interaction with the user":
    /// by a browser, it is (draft-ietf-oauth-first-party-apps §5.2.2.1).
    RedirectToWeb,
    /// "The OP does not support use of the request parameter" (`OpenID` Connect Core §3.1.2.6).
    RequestNotSupported,
    /// "The OP does not support use of the `request_uri` parameter" (`OpenID` Connect Core §3.1.2.6).
    RequestUriNotSupported,
    /// The `auth_session` is "invalid, expired, revoked, or otherwise not acceptable"
    /// (draft-ietf-oauth-first-party-apps §5.2.2.1).
    InvalidSession,
    /// The requested resource is unknown or not granted (RFC 8707 §2).
    InvalidTarget,
    /// Something is wrong here, not with the request. 500.
    ServerError,
    /// The service cannot answer now. 503 with `Retry-After`.
    TemporarilyUnavailable,
    /// The service does not answer so often. The same code, but 429 (RFC 6585 §4).
    TooOften,
    /// The client may not use this grant (RFC 6749 §5.2).
    UnauthorizedClient,
    /// The grant type is none that this service knows (RFC 6749 §5.2).
    UnsupportedGrantType,
    /// "The authorization server does not support obtaining an authorization code using this method"
    /// (RFC 6749 §4.1.2.1).
    UnsupportedResponseType,
}

impl ErrorCode {
    /// The code as it stands in the response.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessDenied => "access_denied",
            Self::ConsentRequired => "consent_required",
            Self::LoginRequired => "login_required",
            Self::RedirectToWeb => "redirect_to_web",
            Self::RequestNotSupported => "request_not_supported",
            Self::RequestUriNotSupported => "request_uri_not_supported",
            Self::InsufficientAuthorization => "insufficient_authorization",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidSession => "invalid_session",
            Self::InvalidTarget => "invalid_target",
            Self::ServerError => "server_error",
            Self::TemporarilyUnavailable | Self::TooOften => "temporarily_unavailable",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
        }
    }
}

/// A refused request.
///
/// The description is made of constants of this program: neither input nor secrets can get into it.
#[derive(Debug)]
pub struct OAuthError {
    code: ErrorCode,
    reason: &'static str,
    description: Cow<'static, str>,
    retry_after: Option<RetryAfter>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl OAuthError {
    /// A refusal. `reason` is a stable word for programs, `description` a sentence for developers.
    pub const fn new(code: ErrorCode, reason: &'static str, description: &'static str) -> Self {
        Self {
            code,
            reason,
            description: Cow::Borrowed(description),
            retry_after: None,
            source: None,
        }
    }

    /// Our own failure; the cause goes to the log and nowhere else.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(ErrorCode::ServerError, "internal", "the service failed")
        }
    }

    /// The request itself is not well-formed.
    pub const fn malformed(description: &'static str) -> Self {
        Self::new(ErrorCode::InvalidRequest, "malformed", description)
    }

    /// A parameter that may occur once occurs more often.
    pub fn repeated(parameter: &'static str) -> Self {
        let description = format!("the parameter {parameter} occurs more than once");
        Self {
            description: Cow::Owned(description),
            ..Self::new(ErrorCode::InvalidRequest, "repeated_parameter", "")
        }
    }

    /// A limit has been reached.
    pub const fn too_often(retry_after: RetryAfter, description: &'static str) -> Self {
        let mut error = Self::new(ErrorCode::TooOften, "rate_limited", description);
        error.retry_after = Some(retry_after);
        error
    }

    /// The offline limit has passed.
    pub const fn offline() -> Self {
        Self::new(
            ErrorCode::TemporarilyUnavailable,
            "offline",
            "the service has lost its database for too long to answer",
        )
    }

    /// What the database could not do: try again later, or our own failure.
    pub fn of_store(error: impl Into<Arc<StoreError>>) -> Self {
        let error = error.into();
        match *error {
            StoreError::Unavailable(_) => Self {
                source: Some(Box::new(error)),
                ..Self::no_database()
            },
            StoreError::Refused(_) | StoreError::Conflict | StoreError::Corrupt { .. } => {
                Self::internal(error)
            }
        }
    }

    /// The database did not answer in time.
    pub const fn no_database() -> Self {
        Self::new(
            ErrorCode::TemporarilyUnavailable,
            "database",
            "the service cannot reach its database",
        )
    }

    /// The code for the response.
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The word for the header `Countersign-Reason`.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }

    /// When to come back, if that is known.
    pub const fn retry_after(&self) -> Option<RetryAfter> {
        self.retry_after
    }

    /// The sentence for `error_description`.
    pub fn description(&self) -> &str {
        &self.description
    }
}

impl fmt::Display for OAuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.description)
    }
}

impl Error for OAuthError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
