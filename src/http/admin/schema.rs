//! The documents that the calls answer with, as the `OpenAPI` document describes them.
//!
//! Domain types write them; a test holds every real answer against its description.

#![expect(
    clippy::struct_field_names,
    dead_code,
    reason = "describes documents, whose members have their names; is never made"
)]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// A registered client, under the names of RFC 7591.
#[expect(
    clippy::struct_excessive_bools,
    reason = "describes a document, whose members they are"
)]
#[derive(ToSchema)]
pub(super) struct Client {
    /// Its identifier.
    client_id: String,
    /// A name for people.
    client_name: String,
    /// The one way in which it authenticates.
    token_endpoint_auth_method: String,
    /// The grants it may use.
    grant_types: Vec<String>,
    /// What it gets from the authorization endpoint.
    response_types: Vec<String>,
    /// Where its users' browsers may be sent back to with a code.
    redirect_uris: Vec<String>,
    /// Where they may be sent after a sign-out.
    post_logout_redirect_uris: Vec<String>,
    /// Where it is told that its users have been signed out.
    #[schema(required)]
    backchannel_logout_uri: Option<String>,
    /// Whether it has to be told of which sign-in: the `sid` of its tokens.
    backchannel_logout_session_required: bool,
    /// What its ID Tokens and logout tokens are signed with: ES256 or RS256.
    id_token_signed_response_alg: String,
    /// Whether its codes are bound to a verifier.
    require_pkce: bool,
    /// Whether a password alone is not enough for anybody to sign in to it.
    second_factor_required: bool,
    /// Every scope token it may be given, separated by spaces.
    scope: String,
    /// Every resource it may ask tokens for.
    resources: Vec<String>,
    /// The one that is meant when a request names none.
    #[schema(required)]
    default_resource: Option<String>,
    /// Origins of its pages.
    allowed_origins: Vec<String>,
    /// Life of its access tokens in seconds; null for the service's own setting.
    #[schema(required)]
    access_token_ttl_seconds: Option<u32>,
    /// Its public keys (RFC 7517).
    #[schema(required, value_type = Option<Object>)]
    jwks: Option<Value>,
    /// Where its public keys are.
    #[schema(required)]
    jwks_uri: Option<String>,
    /// Whether it may take its users' credentials itself, without a browser, and has what it asks for
    /// without their consent.
    first_party: bool,
    /// Whether its pages have access tokens for the session of their browser, without a code.
    session_tokens: bool,
    /// Whether proxies ask in its name who sends a request to the hosts of its redirect URIs.
    forward_auth: bool,
    /// How its refresh tokens rotate: none, shared, standard or strict.
    refresh_policy: String,
    /// Whether somebody has said that processes may share its refresh tokens.
    refresh_sharing_acknowledged: bool,
    /// Whether it is refused.
    disabled: bool,
    /// Grows by one with each change.
    revision: i64,
    /// Since when it has been registered, in seconds since 1970.
    created_at: i64,
    /// When it was last changed, in seconds since 1970.
    updated_at: i64,
    /// Its live secrets, without what is secret of them.
    secrets: Vec<Secret>,
}

/// One of a client's secrets, without what is secret of it.
#[derive(ToSchema)]
pub(super) struct Secret {
    /// Names it.
    id: String,
    /// Since when it has been good, in seconds since 1970.
    created_at: i64,
}

/// A secret that was just added.
#[derive(ToSchema)]
pub(super) struct NewSecret {
    /// Names it.
    id: String,
    /// Since when it has been good, in seconds since 1970.
    created_at: i64,
    /// The secret. It is not shown again.
    client_secret: String,
}

/// A protected resource.
#[derive(ToSchema)]
pub(super) struct Resource {
    /// Names it at the admin interface.
    id: String,
    /// Its identifier (RFC 8707): what clients ask for and tokens carry in `aud`.
    resource: String,
    /// A name for people.
    name: String,
    /// The scope tokens it knows.
    scopes: Vec<String>,
    /// What they mean to people, by scope token.
    scope_descriptions: BTreeMap<String, String>,
    /// Clients that may introspect its tokens.
    introspection_clients: Vec<String>,
}

/// A key: of access tokens, of ID Tokens signed with RS256, or of refresh tokens, which no verifier ever
/// sees.
#[derive(ToSchema)]
pub(super) struct Key {
    /// Of a key that signs, its RFC 7638 thumbprint.
    kid: String,
    /// `next`, `active`, `retiring`, `retired` or `revoked`.
    state: String,
    /// Since when it has been known to whoever needs it, in seconds since 1970.
    published_at: i64,
    /// From when on it signs, in seconds since 1970.
    activates_at: i64,
    /// When it is no longer needed, and leaves the JWKS, in seconds since 1970; null until it has a
    /// successor.
    #[schema(required)]
    withdrawn_at: Option<i64>,
    /// When it was declared compromised, in seconds since 1970.
    #[schema(required)]
    revoked_at: Option<i64>,
    /// The public key (RFC 7517); keys that sign alone have one.
    #[schema(required = false, value_type = Object)]
    jwk: Option<Value>,
    /// Its name in refresh tokens; refresh-MAC keys alone have one.
    version: Option<u32>,
}

/// A user.
#[derive(ToSchema)]
pub(super) struct User {
    /// The `sub` of its tokens.
    id: String,
    /// The name to sign in with.
    username: String,
    /// The `roles` of its access tokens.
    roles: Vec<String>,
    /// More claims of its access tokens.
    #[schema(value_type = Object)]
    claims: Value,
    /// What clients are told of it: standard claims of `OpenID` Connect.
    #[schema(value_type = Object)]
    profile: Value,
    /// Whether it is refused.
    disabled: bool,
    /// Whether a password alone is not enough for it to sign in.
    second_factor_required: bool,
    /// Whether it can sign in with a password.
    has_password: bool,
    /// Grows by one with each change.
    revision: i64,
    /// Since when there has been such a user, in seconds since 1970.
    created_at: i64,
    /// When it was last changed, in seconds since 1970.
    updated_at: i64,
    /// When its password was set, in seconds since 1970.
    #[schema(required)]
    password_changed_at: Option<i64>,
}

/// What a user allows a client.
#[derive(ToSchema)]
pub(super) struct Consent {
    /// The client.
    client_id: String,
    /// What, line by line, as the user has read it.
    permissions: Vec<Permission>,
    /// When the user was last asked, in seconds since 1970.
    given_at: i64,
}

/// One thing that is allowed.
#[derive(ToSchema)]
pub(super) struct Permission {
    /// At which protected resource.
    resource: String,
    /// The scope token; empty where none means anything there.
    scope: String,
}

/// The keys after a change of them.
#[derive(ToSchema)]
pub(super) struct KeyChange {
    /// Every key of the same use.
    keys: Vec<Key>,
    /// Until when verifiers may refuse tokens of a key that they could not know, in seconds since
    /// 1970; null when they know it.
    #[schema(required)]
    verifiers_may_lag_until: Option<i64>,
}

/// A session of a user at a client: a family of refresh tokens.
#[derive(ToSchema)]
pub(super) struct Family {
    /// Names it; the `sid` of access tokens.
    id: String,
    /// The client that the user signed in at.
    client_id: String,
    /// The user; the `sub` of access tokens.
    subject: String,
    /// The user's name; null if the user was removed.
    #[schema(required)]
    username: Option<String>,
    /// `active`; `ended`, for ever; or `suspended`, for as long as its client is disabled.
    state: String,
    /// The scope that was granted, separated by spaces.
    scope: String,
    /// The resources that it was granted for.
    resources: Vec<String>,
    /// When the user authenticated, in seconds since 1970.
    auth_time: i64,
    /// How (RFC 8176).
    amr: Vec<String>,
    /// When it was opened, in seconds since 1970.
    created_at: i64,
    /// When it was refreshed last, in seconds since 1970; null if never, or not counted.
    #[schema(required)]
    refreshed_at: Option<i64>,
    /// How often it was refreshed; not counted where refresh tokens stay the same.
    refreshes: i64,
    /// When it ends unless it is refreshed before, in seconds since 1970.
    idle_expires_at: i64,
    /// When it ends in any case, in seconds since 1970.
    expires_at: i64,
    /// When it ended, or began to rest, in seconds since 1970; null if it did not, or nobody knows.
    #[schema(required)]
    ended_at: Option<i64>,
    /// Why: `reuse`, `code_reuse`, `revoked_by_client`, `revoked_by_operator`, `signed_out`, `expired`,
    /// `idle_expired`, `password_changed`, `user_disabled`, `user_deleted`, `user_sessions_ended`,
    /// `client_disabled`, `client_deleted`, `client_sessions_ended`, `key_revoked`, `restored`; null if
    /// it is active.
    #[schema(required)]
    end_reason: Option<String>,
    /// Who opened it.
    first: Party,
    /// Who refreshed it last, or opened it.
    last: Party,
}

/// Where a request came from.
#[derive(ToSchema)]
pub(super) struct Party {
    /// The network address.
    #[schema(required)]
    address: Option<String>,
    /// The beginning of the `User-Agent`.
    #[schema(required)]
    user_agent: Option<String>,
}

/// Something that happened to a session.
#[derive(ToSchema)]
pub(super) struct Told {
    /// When, in seconds since 1970; null if nobody knows.
    #[schema(required)]
    at: Option<i64>,
    /// What: `opened`, `refreshed`, `replayed`, `recovered`, `reused`, `code_reused`, `ended` or
    /// `suspended`.
    what: String,
    /// What, in words for people.
    text: String,
    /// The network address of who did it.
    #[schema(required)]
    address: Option<String>,
    /// The beginning of the `User-Agent` of who did it.
    #[schema(required)]
    user_agent: Option<String>,
}

/// A change that was made.
#[derive(ToSchema)]
pub(super) struct Event {
    /// Names it.
    id: String,
    /// When it was made, in seconds since 1970.
    at: i64,
    /// What happened, such as `client.created`.
    r#type: String,
    /// By whom: a client id, `cli:` and a user, or `system`.
    actor: String,
    /// What was changed: a client id, the id of a resource, the use of keys, a `jti`.
    target: String,
    /// The network address the request came from.
    #[schema(required)]
    address: Option<String>,
    /// The `User-Agent` of the request.
    #[schema(required)]
    user_agent: Option<String>,
    /// The id under which the request is logged.
    #[schema(required)]
    request_id: Option<String>,
    /// What the operator gave as the reason.
    #[schema(required)]
    reason: Option<String>,
    /// How it was before; null if it was not there.
    before: Value,
    /// How it is since; null if it is gone.
    after: Value,
}

/// Problem details (RFC 9457).
#[derive(ToSchema)]
pub(super) struct Problem {
    /// The type of the problem: `urn:countersign:problem:` and a word that stays.
    #[schema(pattern = "^urn:countersign:problem:[a-z-]+$")]
    r#type: String,
    /// The type in words.
    title: String,
    /// The status of the answer.
    status: u16,
    /// What is the matter here.
    detail: String,
    /// Of `invalid` alone: every field that is wrong.
    errors: Option<Vec<FieldError>>,
    /// Of `too-early` alone: when the rotation may happen, in seconds since 1970.
    earliest_activation_at: Option<i64>,
}

/// What is wrong with a field.
#[derive(ToSchema)]
pub(super) struct FieldError {
    /// Which one: a JSON Pointer (RFC 6901) into the body, or `/` and the name of a parameter.
    pointer: String,
    /// What is wrong with it.
    detail: String,
}
