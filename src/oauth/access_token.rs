//! Minting access tokens (RFC 9068): the hot path, almost all of it the signature itself.

use std::{borrow::Cow, sync::Arc, time::Duration};

use countersign_verifier::{AccessTokenClaims, Audience, base64url};

use super::error::{ErrorCode, OAuthError};
use crate::{
    clock::AgreedClock,
    domain::{
        client::Client,
        resource::{Resource, ResourceUri},
        scope::Scope,
    },
    entropy::Entropy,
    keys::ring::SigningKey,
    metrics::Metrics,
    registry::{Registry, Snapshots},
};

/// The most resources one token may be for; keeps it within what verifiers read.
const MOST_RESOURCES: usize = 16;

/// How long a client waits at most whose tokens have just been revoked.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What an access token is to say.
pub struct AccessGrant<'a> {
    /// The client that gets it.
    pub client: &'a Client,
    /// Whom it speaks for.
    pub subject: &'a str,
    /// What it is for.
    pub resources: &'a [ResourceUri],
    /// What it allows there.
    pub scope: &'a Scope,
}

/// A minted token.
pub struct AccessToken {
    /// The JWT in compact serialization.
    pub token: String,
    /// Its life in seconds.
    pub expires_in: u32,
}

/// Mints access tokens with the key that is active.
pub struct Minter {
    /// This issuer's identifier.
    pub issuer: String,
    /// `tokens.access_token_ttl_seconds`.
    pub default_ttl_seconds: u32,
    /// `sync.offline_issuance_limit_seconds`.
    pub offline_limit: Duration,
    /// What this node knows.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws `jti` and the spread of expiries.
    pub entropy: Entropy,
    /// Where signatures are timed.
    pub metrics: Metrics,
}

impl Minter {
    /// Waits until tokens of the client count again, a second at most: those from before are
    /// revoked, up to the end of a second.
    pub async fn await_new_tokens(&self, client: &Client) {
        if let Some(not_before) = client.tokens_not_before {
            let pause = not_before.since(self.clock.now());
            if !pause.is_zero() {
                self.clock.sleep(pause.min(LONGEST_PAUSE)).await;
            }
        }
    }

    /// Mints a token.
    ///
    /// # Errors
    /// 503 when this node has not read the database for longer than the offline limit: it could
    /// then sign for clients long disabled, with keys long replaced.
    pub fn mint(&self, grant: &AccessGrant<'_>) -> Result<AccessToken, OAuthError> {
        let ring = self.snapshots.ring();
        let now = self.clock.now();
        if self.is_offline() {
            return Err(OAuthError::offline());
        }
        let key = ring.active(now).ok_or(OAuthError::new(
            ErrorCode::TemporarilyUnavailable,
            "no_key",
            "the service has no key to sign with",
        ))?;
        let ttl = grant
            .client
            .access_token_ttl_seconds
            .unwrap_or(self.default_ttl_seconds);
        // One call to the operating system for both: it is the second dearest step after signing.
        let random: [u8; 18] = self.entropy.bytes().map_err(OAuthError::internal)?;
        let [jti @ .., low, high] = random;
        let expires_in = spread(ttl, u16::from_le_bytes([low, high]));
        let issued_at = u64::try_from(now.seconds()).unwrap_or(0);
        let scope = grant.scope.to_string();
        let claims = AccessTokenClaims {
            iss: Cow::Borrowed(&self.issuer),
            sub: Cow::Borrowed(grant.subject),
            aud: audience(grant.resources),
            client_id: Cow::Borrowed(grant.client.client_id.as_str()),
            iat: issued_at,
            exp: issued_at + u64::from(expires_in),
            jti: base64url::encode(&jti).into(),
            scope: (!scope.is_empty()).then_some(scope.into()),
            auth_time: None,
            acr: None,
            amr: None,
            sid: None,
        };
        let begun = self.clock.monotonic();
        let token = tracing::debug_span!("sign").in_scope(|| sign(key, &claims))?;
        let took = self.clock.monotonic().saturating_sub(begun);
        self.metrics.signed(took);
        Ok(AccessToken { token, expires_in })
    }

    /// Whether this node has gone without the database for too long to go on.
    pub fn is_offline(&self) -> bool {
        self.snapshots.age(self.clock.monotonic()) > self.offline_limit
    }
}

/// The life of a token, shortened by up to 5 % so that tokens issued together do not all expire
/// together.
fn spread(ttl: u32, random: u16) -> u32 {
    let most = u64::from(ttl) / 20;
    let cut = u64::from(random) * (most + 1) / (1 << 16);
    ttl - u32::try_from(cut).unwrap_or(0)
}

/// One resource is written as a string, several as an array (RFC 7519 §4.1.3).
fn audience(resources: &[ResourceUri]) -> Audience<'_> {
    resources
        .iter()
        .map(|uri| Cow::Borrowed(uri.as_str()))
        .collect()
}

/// Serializes and signs claims.
pub fn sign(key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Result<String, OAuthError> {
    let payload = serde_json::to_vec(claims).map_err(OAuthError::internal)?;
    let header = &key.access_token_header;
    let mut token = String::with_capacity(header.len() + payload.len() * 4 / 3 + 96);
    token.push_str(header);
    base64url::encode_into(&payload, &mut token);
    let signature = key
        .signer
        .sign(token.as_bytes())
        .map_err(OAuthError::internal)?;
    token.push('.');
    base64url::encode_into(&signature, &mut token);
    Ok(token)
}

/// Resources and scope a token is to have.
pub struct Target {
    /// The resources: what was asked for, else the client's default.
    pub resources: Vec<ResourceUri>,
    /// The scope: what was asked for, else all the client has at those resources.
    pub scope: Scope,
}

impl Target {
    /// Judges what a client asks for (RFC 8707 §2, RFC 6749 §3.3).
    pub fn of_request<'a>(
        client: &Client,
        registry: &Registry,
        resources: impl Iterator<Item = &'a str>,
        scope: Option<&str>,
    ) -> Result<Self, OAuthError> {
        let mut targets: Vec<ResourceUri> = Vec::new();
        for resource in resources {
            let resource = ResourceUri::parse(resource).map_err(|_| unknown_target())?;
            if !targets.contains(&resource) {
                targets.push(resource);
            }
        }
        if targets.is_empty() {
            targets.push(client.default_resource.clone().ok_or(OAuthError::new(
                ErrorCode::InvalidTarget,
                "resource_required",
                "the client has no default resource; name one in the parameter resource",
            ))?);
        }
        if targets.len() > MOST_RESOURCES {
            return Err(unknown_target());
        }
        let mut available = Scope::default();
        for target in &targets {
            available.extend(
                &offered(client, registry, target)
                    .ok_or_else(unknown_target)?
                    .scopes,
            );
        }
        // Whoever receives a token can use it wherever else it is good: never at the admin interface.
        if targets.len() > 1 && targets.iter().any(|target| registry.is_admin(target)) {
            return Err(OAuthError::new(
                ErrorCode::InvalidTarget,
                "admin_resource",
                "a token for the admin interface is for nothing else",
            ));
        }
        let available = available.intersection(&client.scope);
        let scope = match scope {
            None => available,
            Some(text) => Scope::parse(text).ok().filter(|asked| asked.is_within(&available)).ok_or(
                OAuthError::new(
                    ErrorCode::InvalidScope,
                    "scope",
                    "the scope is malformed, unknown, or more than the client may have at this resource",
                ),
            )?,
        };
        Ok(Self {
            resources: targets,
            scope,
        })
    }
}

/// A resource, if it exists and the client may ask for it. Which of the two is wrong is not told.
fn offered(client: &Client, registry: &Registry, uri: &ResourceUri) -> Option<Arc<Resource>> {
    client
        .resources
        .contains(uri)
        .then(|| registry.resource(uri).cloned())
        .flatten()
}

fn unknown_target() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidTarget,
        "resource",
        "the resource is malformed, unknown, or not one of the client's",
    )
}
