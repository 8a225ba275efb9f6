//! ID Tokens (`OpenID` Connect Core §2): who has signed in, told to the client that asked.

use countersign_verifier::{base64url, json, jws::Compact};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    access_token::{AccessToken, Minter, SignIn, no_signing_key, numeric_date},
    error::OAuthError,
};
use crate::{
    clock::Timestamp,
    domain::{
        client::{Client, IdTokenAlg},
        digest::sha256,
        factor::acr,
        id::{ClientId, FamilyId, UserId},
        scope::{OPENID, Scope},
    },
    keys::ring::{IdTokenKey, IdTokenKeys, KeyRing, NoIdTokenKey},
};

/// What their headers say that they are (RFC 7519 §5.1): no access token, so that neither passes for
/// the other.
const TYP: &str = "JWT";

/// What an ID Token is to say.
pub struct IdGrant<'a> {
    /// The client that gets it.
    pub client: &'a Client,
    /// The sign-in.
    pub sign_in: SignIn<'a>,
    /// The access token that it comes with, whose life it shares.
    pub access_token: &'a AccessToken,
    /// What the client wants repeated (Core §3.1.2.1); none for a token that is refreshed.
    pub nonce: Option<&'a str>,
    /// What it has asked for of the user, and may have: standard claims (Core §5.1).
    pub claims: Map<String, Value>,
}

/// The claims of Core §2, and of the session (Back-Channel Logout §2.1).
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: u64,
    exp: u64,
    auth_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
    at_hash: String,
    acr: &'a str,
    amr: &'a [String],
    sid: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Minter {
    /// Mints an ID Token, dated as the access token is.
    ///
    /// # Errors
    /// 503 where there is no key to sign with; see also [`Self::check_id_tokens`].
    pub fn mint_id_token(&self, grant: IdGrant<'_>) -> Result<String, OAuthError> {
        let ring = self.snapshots.ring();
        let key = key_for(&ring, grant.client, self.clock.now())?;
        let SignIn {
            family, issued_at, ..
        } = grant.sign_in;
        let iat = numeric_date(issued_at);
        let claims = Claims {
            iss: &self.issuer,
            sub: family.grant.subject.to_string(),
            aud: family.grant.client_id.as_str(),
            iat,
            exp: iat + u64::from(grant.access_token.expires_in),
            auth_time: numeric_date(family.grant.auth_time),
            nonce: grant.nonce,
            at_hash: at_hash(&grant.access_token.token),
            acr: acr(&family.grant.amr),
            amr: &family.grant.amr,
            sid: family.id.to_string(),
            others: grant.claims,
        };
        let payload = serde_json::to_vec(&claims).map_err(OAuthError::internal)?;
        let signed = self.timed(|| key.sign(TYP, &payload));
        signed.map_err(OAuthError::internal)
    }

    /// Refuses a client whose ID Tokens could not be signed as it wants them: before anything is spent
    /// for it.
    ///
    /// # Errors
    /// `server_error` where the service has opted out of RS256 since the client was registered. It is
    /// never given another algorithm.
    pub fn check_id_tokens(&self, client: &Client) -> Result<(), OAuthError> {
        if client.uses_openid() && client.id_token_alg != IdTokenAlg::Es256 {
            key_for(&self.snapshots.ring(), client, self.clock.now())?;
        }
        Ok(())
    }
}

/// Refuses a client whose ID Tokens could not be signed as it wants them, if it asks for one: before a
/// user signs in for a code that is worth nothing.
pub(super) fn check_asked(
    ring: &KeyRing,
    client: &Client,
    asked: &Scope,
    now: Timestamp,
) -> Result<(), OAuthError> {
    if asked.contains(OPENID) {
        key_for(ring, client, now)?;
    }
    Ok(())
}

/// The key that signs the ID Tokens of a client.
fn key_for<'a>(
    ring: &'a KeyRing,
    client: &Client,
    now: Timestamp,
) -> Result<IdTokenKey<'a>, OAuthError> {
    let key = ring.id_token_key(client.id_token_alg, now);
    key.map_err(|why| match why {
        NoIdTokenKey::None => no_signing_key(),
        NoIdTokenKey::NotAllowed => {
            let client = client.client_id.clone();
            OAuthError::internal(NotAllowed(client))
        }
    })
}

/// Why a client gets no ID Token, for the log.
#[derive(Debug, thiserror::Error)]
#[error(
    "client {0} wants ID Tokens signed with RS256, which setting keys.rs256_id_tokens does not allow"
)]
struct NotAllowed(ClientId);

/// "the base64url encoding of the left-most half of the hash of the octets of the ASCII representation
/// of the `access_token` value" (Core §3.1.3.6): that of ES256 and RS256 is SHA-256.
fn at_hash(access_token: &str) -> String {
    let hash = sha256(access_token);
    let (half, _) = hash.split_at(hash.len() / 2);
    base64url::encode(half)
}

/// Why a text is no ID Token that this issuer is known to have issued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHint {
    /// Nobody has signed it who could.
    #[error("not an ID Token of this issuer")]
    Unknown,
    /// It names a key that was revoked. It may be what clients were given before; it may as well have been
    /// made up, by whoever has the key or by anybody else.
    #[error("an ID Token by a key that was revoked")]
    Revoked,
}

/// What an ID Token said that comes back to its issuer, as a hint of whom a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The user.
    pub subject: UserId,
    /// The client that it was issued to.
    pub client_id: ClientId,
    /// The sign-in that it was issued in.
    pub family: FamilyId,
}

impl Hint {
    /// Reads an ID Token that was issued here and signed with one of these keys, however long it has been
    /// over (RP-Initiated Logout §2).
    ///
    /// # Security
    /// Anybody may present one, of whomever: it tells whom a request means, and proves nothing of who
    /// sends it.
    pub fn read(token: &str, issuer: &str, keys: &IdTokenKeys) -> Result<Self, InvalidHint> {
        let token = Compact::parse(token).map_err(|_| InvalidHint::Unknown)?;
        if keys.is_of_revoked(&token) {
            return Err(InvalidHint::Revoked);
        }
        Self::of(&token, issuer, keys).ok_or(InvalidHint::Unknown)
    }

    fn of(token: &Compact<'_>, issuer: &str, keys: &IdTokenKeys) -> Option<Self> {
        if !token.header().typ()?.eq_ignore_ascii_case(TYP) {
            return None;
        }
        let claims = json::parse_object(keys.verified(token)?).ok()?;
        let text = |name| claims.required_string(name).ok();
        if text("iss")? != issuer {
            return None;
        }
        Some(Self {
            subject: UserId::parse(text("sub")?).ok()?,
            client_id: ClientId::parse(text("aud")?).ok()?,
            family: FamilyId::parse(text("sid")?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Core §A.3 has the access token and the hash that belongs to it.
    #[test]
    fn the_hash_of_an_access_token_is_the_left_half() {
        assert_eq!(
            at_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"),
            "77QmUPtjPfzWtF2AnpK9RQ"
        );
    }
}
