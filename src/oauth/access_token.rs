//! Minting access tokens (RFC 9068): the hot path, almost all of it the signature itself.

use std::{borrow::Cow, sync::Arc, time::Duration};

use countersign_verifier::{AccessTokenClaims, Audience, base64url};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    error::{ErrorCode, OAuthError},
    form::Form,
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        client::Client,
        factor::acr,
        family::{Family, Grant, UserStanding},
        id::ResourceId,
        resource::{Resource, ResourceUri},
        revocation::LONGEST_PAUSE,
        scope::{OPENID, Scope},
    },
    entropy::Entropy,
    keys::ring::SigningKey,
    metrics::Metrics,
    registry::{Registry, Snapshots},
};

/// The most resources one token may be for; keeps it within what verifiers read.
const MOST_RESOURCES: usize = 16;

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
    /// The sign-in that it descends from; none where the client acts for itself.
    pub sign_in: Option<SignIn<'a>>,
}

/// What an access token says of a sign-in.
#[derive(Clone, Copy)]
pub struct SignIn<'a> {
    /// The family: its tokens end with it.
    pub family: &'a Family,
    /// Who has signed in.
    pub user: &'a UserStanding,
    /// When that was judged, or a later moment from which on its tokens count.
    pub issued_at: Timestamp,
}

/// The claims about a user that RFC 9068 §2.2.3.1 and operators add.
#[derive(Serialize)]
struct UserClaims<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    roles: &'a [String],
    #[serde(flatten)]
    others: &'a Map<String, Value>,
}

impl SignIn<'_> {
    /// Whether it ends before the second is over in which a token is issued: no verifier would take
    /// that.
    pub fn is_over(&self) -> bool {
        self.family.ends_at().seconds() <= self.issued_at.seconds()
    }
}

/// A minted token.
pub struct AccessToken {
    /// The JWT in compact serialization.
    pub token: String,
    /// Its life in seconds.
    pub expires_in: u32,
}

/// Mints access tokens with the key that is active.
#[derive(Clone)]
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
    /// Waits until new tokens count again, two seconds at most: those from before are revoked, up to
    /// the end of a second. Whether that took time, in which something else may have been revoked.
    ///
    /// # Errors
    /// 503 when that is not enough, as after a step of the clock: no token is dated ahead.
    pub async fn await_new_tokens(
        &self,
        not_before: Option<Timestamp>,
    ) -> Result<bool, OAuthError> {
        let Some(not_before) = not_before else {
            return Ok(false);
        };
        if self.clock.now() >= not_before {
            return Ok(false);
        }
        if self.clock.reach(not_before, LONGEST_PAUSE).await {
            Ok(true)
        } else {
            Err(not_yet())
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
        self.check_online()?;
        let key = ring.active(now).ok_or_else(no_signing_key)?;
        let ttl = grant
            .client
            .access_token_ttl_seconds
            .unwrap_or(self.default_ttl_seconds);
        // One call to the operating system for both: it is the second dearest step after signing.
        let random: [u8; 18] = self.entropy.bytes().map_err(OAuthError::internal)?;
        let [jti @ .., low, high] = random;
        let expires_in = spread(ttl, u16::from_le_bytes([low, high]));
        let issued_at = grant.sign_in.map_or(now, |sign_in| sign_in.issued_at);
        let expires_in = grant.sign_in.map_or(expires_in, |SignIn { family, .. }| {
            let left = family.ends_at().seconds() - issued_at.seconds();
            expires_in.min(u32::try_from(left.max(0)).unwrap_or(u32::MAX))
        });
        let issued_at = numeric_date(issued_at);
        let granted = grant.sign_in.map(|sign_in| &sign_in.family.grant);
        let sid = grant
            .sign_in
            .map(|SignIn { family, .. }| family.id.to_string());
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
            auth_time: granted.map(|grant| numeric_date(grant.auth_time)),
            acr: granted.map(|grant| acr(&grant.amr).into()),
            amr: granted.map(|grant| grant.amr.iter().map(Into::into).collect()),
            sid: sid.map(Cow::Owned),
        };
        let user = grant.sign_in.map(|SignIn { user, .. }| UserClaims {
            roles: &user.roles,
            others: &user.claims,
        });
        let token = self.timed(|| match &user {
            Some(user) => sign_with(key, &claims, user),
            None => sign(key, &claims),
        })?;
        Ok(AccessToken { token, expires_in })
    }

    /// Signs, and counts how long that takes.
    pub(super) fn timed<T>(&self, sign: impl FnOnce() -> T) -> T {
        let begun = self.clock.monotonic();
        let signed = tracing::debug_span!("sign").in_scope(sign);
        let took = self.clock.monotonic().saturating_sub(begun);
        self.metrics.signed(took);
        signed
    }

    /// Refuses what no token could be minted for in any case: before anything is spent for it.
    pub fn check_ready(&self) -> Result<(), OAuthError> {
        self.check_online()?;
        let is_there = self.snapshots.ring().active(self.clock.now()).is_some();
        is_there.then_some(()).ok_or_else(no_signing_key)
    }

    /// Refuses when this node has gone without the database for too long to go on.
    pub fn check_online(&self) -> Result<(), OAuthError> {
        if self.is_offline() {
            return Err(OAuthError::offline());
        }
        Ok(())
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

/// Seconds since 1970, as claims have them (RFC 7519 §2).
pub(super) fn numeric_date(time: Timestamp) -> u64 {
    u64::try_from(time.seconds()).unwrap_or(0)
}

/// Serializes and signs claims.
pub fn sign(key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Result<String, OAuthError> {
    let payload = serde_json::to_vec(claims).map_err(OAuthError::internal)?;
    sign_payload(key, &payload)
}

/// The same with claims about a user, none of which has the name of another claim: that is seen to
/// where they are written.
fn sign_with(
    key: &SigningKey,
    claims: &AccessTokenClaims<'_>,
    user: &UserClaims<'_>,
) -> Result<String, OAuthError> {
    let mut payload = serde_json::to_vec(claims).map_err(OAuthError::internal)?;
    let user = serde_json::to_vec(user).map_err(OAuthError::internal)?;
    // Two objects made into one, unless the second is empty.
    if let [_, members @ .., _] = user.as_slice()
        && !members.is_empty()
    {
        payload.pop();
        payload.push(b',');
        payload.extend_from_slice(members);
        payload.push(b'}');
    }
    sign_payload(key, &payload)
}

fn sign_payload(key: &SigningKey, payload: &[u8]) -> Result<String, OAuthError> {
    let signed = key.sign(&key.access_token_header, payload);
    signed.map_err(OAuthError::internal)
}

/// Resources and scope a token is to have.
pub struct Target {
    /// The resources: what was asked for, else the client's default.
    pub resources: Vec<ResourceUri>,
    /// The scope: what was asked for, else all the client has at those resources.
    pub scope: Scope,
}

impl Target {
    /// Judges what a client asks for itself (RFC 8707 §2, RFC 6749 §3.3).
    pub fn of_request<'a>(
        client: &Client,
        registry: &Registry,
        resources: impl Iterator<Item = &'a str>,
        scope: Option<&str>,
    ) -> Result<Self, OAuthError> {
        let mut targets = distinct(resources)?;
        if targets.is_empty() {
            targets.push(default_resource(client)?);
        }
        Self::judge(client, registry, targets, scope, offered)
    }

    /// The same for a client that asks in the name of a user. Where it asks who that is, the userinfo
    /// endpoint is one of the resources, whatever else it asks for.
    pub fn for_users(
        client: &Client,
        registry: &Registry,
        form: &Form,
    ) -> Result<Self, OAuthError> {
        let scope = form.one("scope")?;
        let userinfo = registry.userinfo().filter(|_| client.uses_openid());
        let userinfo = userinfo.map(|resource| &resource.resource);
        let asks_openid = scope.is_some_and(asks_openid);
        let mut targets = distinct(form.many("resource"))?;
        if targets.is_empty() {
            match default_resource(client) {
                Ok(resource) => targets.push(resource),
                Err(_) if asks_openid && userinfo.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let add = |targets: &mut Vec<ResourceUri>| {
            targets.extend(userinfo.filter(|uri| !targets.contains(uri)).cloned());
        };
        if asks_openid {
            add(&mut targets);
        }
        let mut target = Self::judge(client, registry, targets, scope, known_to_users)?;
        // That is for clients that act for themselves, with the authority that they have.
        if target.resources.iter().any(|uri| registry.is_admin(uri)) {
            return Err(OAuthError::new(
                ErrorCode::InvalidTarget,
                "admin_resource",
                "no user signs in to the admin interface",
            ));
        }
        // It has not said what for, and gets all that it may have.
        if target.scope.contains(OPENID) {
            add(&mut target.resources);
        }
        Ok(target)
    }

    fn judge(
        client: &Client,
        registry: &Registry,
        resources: Vec<ResourceUri>,
        scope: Option<&str>,
        offered: impl Fn(&Client, &Registry, &ResourceUri) -> Option<Arc<Resource>>,
    ) -> Result<Self, OAuthError> {
        let mut available = Scope::default();
        for target in &resources {
            let resource = offered(client, registry, target);
            available.extend(&resource.ok_or_else(unknown_target)?.scopes);
        }
        // Whoever receives a token can use it wherever else it is good: never at the admin interface.
        if resources.len() > 1 && resources.iter().any(|target| registry.is_admin(target)) {
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
        Ok(Self { resources, scope })
    }

    /// What an access token gets of a grant: what is asked for of it, as far as client and resources
    /// still have it.
    ///
    /// # Errors
    /// `invalid_target` when no resource is left.
    pub fn of_grant(
        client: &Client,
        registry: &Registry,
        grant: &Grant,
        asked: &Narrowing,
    ) -> Result<Self, OAuthError> {
        let mut resources = if asked.resources.is_empty() {
            grant.resources.clone()
        } else {
            asked.resources.clone()
        };
        let mut available = Scope::default();
        resources.retain(|uri| {
            let resource = offered_to_users(client, registry, uri);
            resource.is_some_and(|resource| {
                available.extend(&resource.scopes);
                true
            })
        });
        if resources.is_empty() {
            return Err(not_granted_target());
        }
        let scope = asked.scope.as_ref().unwrap_or(&grant.scope);
        Ok(Self {
            scope: scope.intersection(&available).intersection(&client.scope),
            resources,
        })
    }
}

/// What a request asks for of what was granted before (RFC 6749 §6, RFC 8707 §2.2).
#[derive(Default)]
pub struct Narrowing {
    /// No more than this scope; without one, all that was granted.
    pub scope: Option<Scope>,
    /// No more than these resources; none are all.
    pub resources: Vec<ResourceUri>,
}

impl Narrowing {
    /// Reads what a request asks for. Whether it was granted is not asked here.
    ///
    /// # Security
    /// All of it comes from whoever sends the request.
    pub fn of_request(form: &Form) -> Result<Self, OAuthError> {
        let scope = form.one("scope")?.map(Scope::parse).transpose();
        Ok(Self {
            scope: scope.map_err(|_| not_granted_scope())?,
            resources: distinct(form.many("resource"))?,
        })
    }

    /// Refuses what could not be issued whatever was granted: before a token or a code is spent.
    pub fn check(&self, client: &Client, registry: &Registry) -> Result<(), OAuthError> {
        let is_left = |uri| offered_to_users(client, registry, uri).is_some();
        if self.resources.is_empty() || self.resources.iter().any(is_left) {
            Ok(())
        } else {
            Err(not_granted_target())
        }
    }
}

/// The refusal where there is no key to sign with.
pub(super) const fn no_signing_key() -> OAuthError {
    OAuthError::new(
        ErrorCode::TemporarilyUnavailable,
        "no_key",
        "the service has no key to sign with",
    )
}

/// The refusal while tokens issued now are revoked.
pub(super) const fn not_yet() -> OAuthError {
    OAuthError::new(
        ErrorCode::TemporarilyUnavailable,
        "not_yet",
        "the tokens issued now are revoked; those issued in a moment are not",
    )
}

/// The refusal of a scope that goes beyond what was granted.
pub(super) const fn not_granted_scope() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidScope,
        "scope",
        "the scope is malformed, or more than was granted",
    )
}

/// The refusal of a resource that goes beyond what was granted.
pub(super) const fn not_granted_target() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidTarget,
        "resource",
        "the resource is malformed or was not granted, or the client may not have it any more",
    )
}

/// Reads resources, each once; no further than to one too many.
fn distinct<'a>(resources: impl Iterator<Item = &'a str>) -> Result<Vec<ResourceUri>, OAuthError> {
    let mut targets = Vec::new();
    for resource in resources {
        let resource = ResourceUri::parse(resource).map_err(|_| unknown_target())?;
        if !targets.contains(&resource) {
            targets.push(resource);
        }
        // Not after the loop: each of them is compared with all before.
        if targets.len() > MOST_RESOURCES {
            return Err(unknown_target());
        }
    }
    Ok(targets)
}

/// What is offered to a client that acts for a user: the admin interface is for those that act for
/// themselves.
fn offered_to_users(
    client: &Client,
    registry: &Registry,
    uri: &ResourceUri,
) -> Option<Arc<Resource>> {
    known_to_users(client, registry, uri).filter(|_| !registry.is_admin(uri))
}

/// The same, with the admin interface.
fn known_to_users(
    client: &Client,
    registry: &Registry,
    uri: &ResourceUri,
) -> Option<Arc<Resource>> {
    let userinfo = registry.userinfo();
    match userinfo.filter(|userinfo| userinfo.resource == *uri) {
        Some(userinfo) => client.uses_openid().then(|| Arc::clone(userinfo)),
        None => offered(client, registry, uri),
    }
}

/// All that a client may have when it acts for a user.
pub(super) fn offered_for_users(client: &Client, registry: &Registry) -> Vec<ResourceUri> {
    let userinfo = registry.userinfo().map(|resource| &resource.resource);
    let listed = client.resources.iter();
    listed
        .filter(|uri| Some(*uri) != userinfo)
        .chain(userinfo)
        .filter(|uri| offered_to_users(client, registry, uri).is_some())
        .cloned()
        .collect()
}

/// A resource, if it exists and the client may ask for it when it acts for itself. Which of the two is
/// wrong is not told.
fn offered(client: &Client, registry: &Registry, uri: &ResourceUri) -> Option<Arc<Resource>> {
    client
        .resources
        .contains(uri)
        .then(|| registry.resource(uri).cloned())
        .flatten()
        // There is no user to tell about.
        .filter(|resource| resource.id != ResourceId::USERINFO)
}

/// The resource of a request that names none.
fn default_resource(client: &Client) -> Result<ResourceUri, OAuthError> {
    client.default_resource.clone().ok_or(OAuthError::new(
        ErrorCode::InvalidTarget,
        "resource_required",
        "the client has no default resource; name one in the parameter resource",
    ))
}

/// Whether a request of this scope is one of `OpenID` Connect (Core §3.1.2.1).
pub(super) fn asks_openid(scope: &str) -> bool {
    scope.split(' ').any(|token| token == OPENID)
}

fn unknown_target() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidTarget,
        "resource",
        "the resource is malformed, unknown, or not one of the client's",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is compared with all before it: whoever sends a request chooses how many there are.
    #[test]
    fn resources_are_read_no_further_than_to_one_too_many() {
        let texts: Vec<String> = (0..1000).map(|number| format!("urn:{number}")).collect();
        let mut read = 0;
        let counted = texts.iter().map(|text| {
            read += 1;
            text.as_str()
        });
        assert!(distinct(counted).is_err());
        assert_eq!(read, MOST_RESOURCES + 1);
    }
}
