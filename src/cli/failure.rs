//! Why a command failed, in words that name the flag or setting and the remedy.

use super::output::{self, OutputError};
use crate::{
    admin::{AdminError, FieldError},
    app::StartError,
    clock::Timestamp,
    config::ConfigError,
    keys::{master::MasterKeyError, sealing::SealingError},
    store::StoreError,
};

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The use case refused or failed.
    #[error(transparent)]
    Admin(AdminError),
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database failed after it had been opened.
    #[error("setting database.url: {0}")]
    Database(#[source] StoreError),
    /// A master key file is in the way or missing.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// Anything else, as one sentence.
    #[error("{0}")]
    Message(String),
    /// Nobody can read the answer.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The service could not be started, or the database opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The output has told it already.
    #[error("")]
    Told,
    /// The command was not put together as it must be.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    /// A failure in these words.
    pub(super) fn message(sentence: impl Into<String>) -> Self {
        Self::Message(sentence.into())
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Invalid(fields) => {
                let fields: Vec<String> = fields.iter().map(in_flags).collect();
                Self::Message(fields.join("; "))
            }
            AdminError::NotFound(kind) => Self::Message(not_found(kind)),
            AdminError::TooEarly {
                earliest_activation_at,
            } => Self::Message(too_early(earliest_activation_at)),
            AdminError::Sealing(SealingError::MasterKeyMissing(id)) => Self::Message(format!(
                "the database needs master key {id}, which is not here; restore master-{id}.key to the folder of setting keys.directory"
            )),
            AdminError::Store(error) => Self::Database(error),
            error @ (AdminError::Busy(_)
            | AdminError::Conflict(_)
            | AdminError::Forbidden(_)
            | AdminError::Sealing(_)
            | AdminError::MasterKey(_)
            | AdminError::Entropy(_)) => Self::Admin(error),
        }
    }
}

fn not_found(kind: &str) -> String {
    let shown_by = match kind {
        "family" => "families list".to_owned(),
        "secret" => "clients show".to_owned(),
        _ => format!("{kind}s list"),
    };
    format!("there is no {kind} of this id; see: countersign {shown_by}")
}

fn too_early(earliest: Timestamp) -> String {
    // Rounded up: whoever comes back at the time shown is not to be refused again.
    let earliest = Timestamp::from_millis(earliest.millis().saturating_add(999));
    format!(
        "the next key may sign from {} on, as verifiers or nodes may not know it earlier; rotate then, or at once with --emergency if the active key has leaked",
        output::utc_seconds(earliest)
    )
}

/// What is wrong with a field, under the name of the flag that gave it.
fn in_flags(error: &FieldError) -> String {
    let path = error.pointer.trim_start_matches('/');
    let (field, index) = path.split_once('/').unwrap_or((path, ""));
    let flag = match field {
        "access_token_ttl_seconds" => "--ttl",
        "allowed_origins" => "--allowed-origin",
        "backchannel_logout_session_required" => "--backchannel-logout-session-required",
        "backchannel_logout_uri" => "--backchannel-logout-uri",
        "claims" => "--claims",
        "client_name" | "name" => "--name",
        "default_resource" => "--default-resource",
        "expires_at" => "--expires-at",
        "forward_auth" => "--forward-auth",
        "id_token_signed_response_alg" => "--id-token-signed-response-alg",
        "grant_types" | "token_endpoint_auth_method" => "--auth-method",
        "jwks" => "--jwks",
        "jwks_uri" => "--jwks-uri",
        "introspection_clients" => "--introspection-client",
        "jti" => "--jti",
        "profile" => "--profile",
        "post_logout_redirect_uris" => "--post-logout-redirect-uri",
        "redirect_uris" => "--redirect-uri",
        "refresh_policy" => "--refresh-policy",
        "require_pkce" => "--require-pkce",
        "resource" | "resources" => "--resource",
        "roles" => "--role",
        "scope" | "scopes" => "--scope",
        "second_factor_required" => "--second-factor-required",
        "session_tokens" => "--session-tokens",
        "username" => "--username",
        other => other,
    };
    let which = index
        .parse::<usize>()
        .map(|index| format!(" (number {})", index + 1))
        .unwrap_or_default();
    format!("{flag}{which}: {}", error.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_on_the_command_line() {
        let error = |pointer: &str| {
            in_flags(&FieldError {
                pointer: pointer.to_owned(),
                detail: "is wrong".to_owned(),
            })
        };
        assert_eq!(error("/client_name"), "--name: is wrong");
        assert_eq!(error("/resources/1"), "--resource (number 2): is wrong");
    }
}
