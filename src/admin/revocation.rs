//! Revoking access tokens.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{AdminError, FieldError, document, family::FamilyAdmin};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change},
        id::{ClientId, FamilyId, UserId},
    },
    keys::lifecycle::{LONGEST_TOKEN_LIFE, Policy},
    store::{Store, StoreError},
};

/// The longest `jti` taken, in bytes.
const LONGEST_JTI: usize = 256;

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every access token that a client holds, and every session at it.
    Client(ClientId),
    /// Every session of a user, and every access token that anybody holds of it.
    Subject(UserId),
    /// A session and its access tokens.
    Family(FamilyId),
    /// One access token.
    Token {
        /// Its `jti`.
        jti: String,
        /// Its `exp`: the entry is kept for as long as somebody may accept the token.
        expires_at: Timestamp,
    },
}

/// A revocation as an operator writes it: one of `client_id`, `subject`, `family_id`, or `jti` and
/// `expires_at`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RevocationRequest {
    /// A client, all of whose access tokens are revoked, and every session at which ends.
    #[schema(pattern = "^[A-Za-z0-9._~-]{1,64}$")]
    client_id: Option<String>,
    /// A user, all of whose sessions end, and all of whose access tokens are revoked.
    #[schema(format = "uuid")]
    subject: Option<String>,
    /// A session, which ends with all its access tokens.
    #[schema(format = "uuid")]
    family_id: Option<String>,
    /// The `jti` of one access token.
    #[schema(min_length = 1, max_length = 256)]
    jti: Option<String>,
    /// The `exp` of that token, in seconds since 1970.
    expires_at: Option<i64>,
}

impl RevocationRequest {
    /// Reads the document of a revocation.
    pub fn read(members: Map<String, Value>) -> Result<Target, AdminError> {
        let (request, unread): (Self, _) = document::read(members);
        let mut errors = Vec::new();
        let target = request.target(&mut errors);
        match target {
            Some(target) if unread.is_empty() => Ok(target),
            _ => Err(AdminError::Invalid(document::all_wrong(unread, errors))),
        }
    }

    /// What is named, if that is one thing.
    fn target(self, errors: &mut Vec<FieldError>) -> Option<Target> {
        let Self {
            client_id,
            subject,
            family_id,
            jti,
            expires_at,
        } = self;
        let is_token = jti.is_some() || expires_at.is_some();
        match (client_id, subject, family_id, is_token) {
            (Some(id), None, None, false) => {
                let id = ClientId::parse(&id).map(Target::Client);
                id.map_err(|_| errors.push(FieldError::new("/client_id", "is no client id")))
                    .ok()
            }
            (None, Some(id), None, false) => {
                let id = UserId::parse(&id).map(Target::Subject);
                id.map_err(|_| errors.push(FieldError::new("/subject", "is not the id of a user")))
                    .ok()
            }
            (None, None, Some(id), false) => {
                let id = FamilyId::parse(&id).map(Target::Family);
                id.map_err(|_| {
                    errors.push(FieldError::new("/family_id", "is not the id of a family"));
                })
                .ok()
            }
            (None, None, None, true) => {
                if jti.is_none() {
                    errors.push(FieldError::new("/jti", "is missing: the jti of the token"));
                }
                if expires_at.is_none() {
                    let detail = "is missing: the exp of the token";
                    errors.push(FieldError::new("/expires_at", detail));
                }
                Some(Target::Token {
                    jti: jti?,
                    expires_at: Timestamp::from_seconds(expires_at?),
                })
            }
            _ => {
                let detail =
                    "must have one of client_id, subject, family_id, or jti and expires_at";
                errors.push(FieldError::new("", detail));
                None
            }
        }
    }
}

impl Target {
    /// What is revoked, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        match self {
            Self::Client(client_id) => json!({ "client_id": client_id.as_str() }),
            Self::Subject(id) => json!({ "subject": id.to_string() }),
            Self::Family(id) => json!({ "family_id": id.to_string() }),
            Self::Token { jti, expires_at } => {
                json!({ "jti": jti, "expires_at": expires_at.seconds() })
            }
        }
    }
}

/// The use cases about revocations, and about what a restored backup has forgotten of them.
#[derive(Clone)]
pub struct RevocationAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// How long tokens live, and are accepted somewhere after that.
    pub policy: Policy,
}

impl RevocationAdmin {
    /// Revokes what `target` names. Every node knows of it within the poll interval.
    pub async fn revoke(&self, target: &Target, cause: &Cause) -> Result<(), AdminError> {
        let now = self.clock.now();
        let tokens_die_at = now.plus(self.policy.retention());
        let change = match target {
            Target::Client(client_id) => Change::RevokeClientTokens {
                client_id: client_id.clone(),
                tokens_die_at,
            },
            Target::Subject(id) => Change::EndUserSessions {
                id: *id,
                tokens_die_at,
            },
            Target::Family(id) => {
                let families = FamilyAdmin {
                    store: Arc::clone(&self.store),
                    clock: self.clock.clone(),
                    policy: self.policy,
                };
                return families.end(*id, cause).await.map(drop);
            }
            Target::Token { jti, expires_at } => {
                check_token(jti, *expires_at, now)?;
                Change::RevokeToken {
                    jti: jti.clone(),
                    family: None,
                    client_id: None,
                    token_dies_at: expires_at.plus(self.policy.grace()),
                    tokens_die_at,
                }
            }
        };
        match self.store.apply(&change, cause, now).await {
            Err(StoreError::Conflict) => Err(AdminError::NotFound(match target {
                Target::Subject(_) => "user",
                Target::Client(_) | Target::Family(_) | Target::Token { .. } => "client",
            })),
            applied => Ok(applied.map(drop)?),
        }
    }

    /// Begins a new epoch after a backup was restored, so that every node reads everything again.
    ///
    /// Which tokens were revoked after the backup was made is forgotten, so that all issued so far
    /// are revoked, unless `keep_tokens`.
    pub async fn restored(&self, keep_tokens: bool, cause: &Cause) -> Result<(), AdminError> {
        let now = self.clock.now();
        let change = Change::Restore {
            keep_tokens,
            tokens_die_at: now.plus(self.policy.retention()),
        };
        self.store.apply(&change, cause, now).await?;
        Ok(())
    }
}

fn check_token(jti: &str, expires_at: Timestamp, now: Timestamp) -> Result<(), AdminError> {
    let mut errors = Vec::new();
    if jti.is_empty() || jti.len() > LONGEST_JTI || jti.contains('\0') {
        let detail = format!("must be 1 to {LONGEST_JTI} bytes without NUL");
        errors.push(FieldError::new("/jti", detail));
    }
    if expires_at <= now {
        errors.push(FieldError::new(
            "/expires_at",
            "has passed: nobody accepts the token any more",
        ));
    }
    if expires_at > now.plus(LONGEST_TOKEN_LIFE) {
        let detail = format!(
            "must be within the {} s that a token lives at most",
            LONGEST_TOKEN_LIFE.as_secs()
        );
        errors.push(FieldError::new("/expires_at", detail));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(AdminError::Invalid(errors))
    }
}
