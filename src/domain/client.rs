//! Registered clients, under the names of RFC 7591 §2.

use serde_json::{Value, json};

use super::{
    family::RefreshPolicy,
    id::{ClientId, SecretId},
    name::named,
    redirect::RedirectUri,
    resource::ResourceUri,
    scope::{OPENID, Scope},
    secret::StoredSecret,
};
use crate::clock::Timestamp;

/// How many secrets of one client may be live, so that they can be exchanged without a gap.
pub const MOST_SECRETS: usize = 2;

/// How many keys a client may have, so that they can be exchanged without a gap.
pub const MOST_KEYS: usize = 20;

/// Where users are sent back to at a host that a proxy protects.
pub const CALLBACK_PATH: &str = "/session/callback";

/// How many redirect URIs a client may have, of each sort.
pub const MOST_REDIRECT_URIS: usize = 50;

named!(
    /// How a client authenticates at the token endpoint (RFC 7591 §2).
    AuthMethod {
        /// Secret in the `Authorization` header (RFC 6749 §2.3.1).
        ClientSecretBasic = "client_secret_basic",
        /// Secret in the form body (RFC 6749 §2.3.1).
        ClientSecretPost = "client_secret_post",
        /// A public client: it has no secret to prove.
        None = "none",
        /// An assertion signed with a key of the client (RFC 7523 §2.2).
        PrivateKeyJwt = "private_key_jwt",
    }
);

named!(
    /// A grant a client may be allowed.
    GrantType {
        /// RFC 6749 §4.1.
        AuthorizationCode = "authorization_code",
        /// RFC 6749 §4.4.
        ClientCredentials = "client_credentials",
        /// RFC 6749 §6.
        RefreshToken = "refresh_token",
    }
);

named!(
    /// What ID Tokens of a client are signed with (`OpenID` Connect Registration §2).
    IdTokenAlg {
        /// What all else is signed with, too.
        Es256 = "ES256",
        /// For clients that know nothing else, where the service has opted in.
        Rs256 = "RS256",
    }
);

impl GrantType {
    /// Whether a client that keeps no secret may use it: "The client credentials grant type MUST only
    /// be used by confidential clients" (RFC 6749 §4.4).
    pub fn is_for_public_clients(self) -> bool {
        match self {
            Self::AuthorizationCode | Self::RefreshToken => true,
            Self::ClientCredentials => false,
        }
    }
}

/// Counts the changes of a stored thing; whoever changes it says which one was seen.
pub type Revision = i64;

/// A registered client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about the client, not a state"
)]
pub struct Client {
    /// The client's identifier.
    pub client_id: ClientId,
    /// A name for people.
    pub client_name: String,
    /// The one way in which this client authenticates.
    pub auth_method: AuthMethod,
    /// The grants it may use.
    pub grant_types: Vec<GrantType>,
    /// Every scope token it may be given.
    pub scope: Scope,
    /// Every resource it may ask tokens for.
    pub resources: Vec<ResourceUri>,
    /// The resource of a request that names none; one of `resources`.
    pub default_resource: Option<ResourceUri>,
    /// Where its users' browsers may be sent back to with a code.
    pub redirect_uris: Vec<RedirectUri>,
    /// Where they may be sent after a sign-out (`OpenID` Connect RP-Initiated Logout §3.1).
    pub post_logout_redirect_uris: Vec<RedirectUri>,
    /// Where it is told that its users have been signed out (Back-Channel Logout §2.2).
    pub backchannel_logout_uri: Option<String>,
    /// Whether it has to be told of which sign-in.
    pub backchannel_logout_session_required: bool,
    /// What its ID Tokens and logout tokens are signed with.
    pub id_token_alg: IdTokenAlg,
    /// Whether its codes are bound to a verifier (RFC 7636). Only a client that authenticates and
    /// uses `OpenID` Connect, whose `nonce` does the like, may do without.
    pub require_pkce: bool,
    /// Whether a password alone is not enough for anybody to sign in to it.
    pub second_factor_required: bool,
    /// Origins whose pages may call the token endpoint in this client's name.
    pub allowed_origins: Vec<String>,
    /// Life of its access tokens in seconds; the service's own setting when absent.
    pub access_token_ttl_seconds: Option<u32>,
    /// Whether it may take its users' credentials itself (draft-ietf-oauth-first-party-apps).
    pub first_party: bool,
    /// Whether its pages have access tokens for the session of their browser, without a code.
    pub session_tokens: bool,
    /// Whether proxies ask in its name who sends a request to the hosts that they stand before: those
    /// of its redirect URIs.
    pub forward_auth: bool,
    /// How its refresh tokens rotate.
    pub refresh_policy: RefreshPolicy,
    /// Somebody has said that processes may share its refresh tokens, although that hides thieves.
    pub refresh_sharing_acknowledged: bool,
    /// What codes and families of the client carry while they live. The store draws it: anew to end
    /// them all at once, and for a client that takes the id of one that was removed.
    pub session_epoch: i64,
    /// A disabled client is refused whatever it presents.
    pub disabled: bool,
    /// Made by the development start; production refuses a database that holds one.
    pub demo: bool,
    /// The keys that sign its assertions, as a JWK Set (RFC 7517 §5).
    pub jwks: Option<Value>,
    /// Where those keys are instead.
    pub jwks_uri: Option<String>,
    /// Tokens issued before this moment, a whole second, are revoked.
    pub tokens_not_before: Option<Timestamp>,
    /// At most [`MOST_SECRETS`].
    pub secrets: Vec<StoredSecret>,
    /// Grows by one with each change.
    pub revision: Revision,
    /// When the client was registered.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl Client {
    /// Whether the client keeps no secret (RFC 6749 §2.1).
    pub fn is_public(&self) -> bool {
        self.auth_method == AuthMethod::None
    }

    /// Whether it may ask who its users are: then the userinfo endpoint is one of its resources, too.
    pub fn uses_openid(&self) -> bool {
        self.scope.contains(OPENID) && self.grant_types.contains(&GrantType::AuthorizationCode)
    }

    /// Whether the client authenticates with a secret.
    pub fn has_secrets(&self) -> bool {
        matches!(
            self.auth_method,
            AuthMethod::ClientSecretBasic | AuthMethod::ClientSecretPost
        )
    }

    /// The answers it gets from the authorization endpoint (RFC 7591 §2).
    pub fn response_types(&self) -> &'static [&'static str] {
        let has_codes = self.grant_types.contains(&GrantType::AuthorizationCode);
        if has_codes && !self.redirect_uris.is_empty() {
            &["code"]
        } else {
            &[]
        }
    }

    /// Everything about the client that may be shown: no secret and no hash of one.
    pub fn document(&self) -> Value {
        json!({
            "client_id": self.client_id.as_str(),
            "client_name": self.client_name,
            "token_endpoint_auth_method": self.auth_method.as_str(),
            "grant_types": self.grant_types.iter().map(|grant| grant.as_str()).collect::<Vec<_>>(),
            "response_types": self.response_types(),
            "redirect_uris": texts(&self.redirect_uris),
            "post_logout_redirect_uris": texts(&self.post_logout_redirect_uris),
            "backchannel_logout_uri": self.backchannel_logout_uri,
            "backchannel_logout_session_required": self.backchannel_logout_session_required,
            "id_token_signed_response_alg": self.id_token_alg.as_str(),
            "require_pkce": self.require_pkce,
            "second_factor_required": self.second_factor_required,
            "scope": self.scope.to_string(),
            "resources": texts(&self.resources),
            "default_resource": self.default_resource.as_ref().map(ResourceUri::as_str),
            "allowed_origins": self.allowed_origins,
            "access_token_ttl_seconds": self.access_token_ttl_seconds,
            "first_party": self.first_party,
            "session_tokens": self.session_tokens,
            "forward_auth": self.forward_auth,
            "refresh_policy": self.refresh_policy.as_str(),
            "refresh_sharing_acknowledged": self.refresh_sharing_acknowledged,
            "jwks": self.jwks,
            "jwks_uri": self.jwks_uri,
            "disabled": self.disabled,
            "revision": self.revision,
            "created_at": self.created_at.seconds(),
            "updated_at": self.updated_at.seconds(),
            "secrets": self.secrets.iter().map(|secret| json!({
                "id": secret.id.to_string(),
                "created_at": secret.created_at.seconds(),
            })).collect::<Vec<_>>(),
        })
    }

    /// Whether a proxy before this host asks in the name of the client: one of its redirect URIs leads
    /// back there.
    pub fn protects(&self, host: &str) -> bool {
        let callback = format!("https://{host}{CALLBACK_PATH}");
        let is_it = |uri: &RedirectUri| uri.as_str() == callback;
        self.forward_auth && self.redirect_uris.iter().any(is_it)
    }

    /// The stored secret of this id.
    pub fn secret(&self, id: SecretId) -> Option<&StoredSecret> {
        self.secrets.iter().find(|secret| secret.id == id)
    }
}

/// Each as text.
pub(crate) fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}
