//! The userinfo endpoint (`OpenID` Connect Core §5.3).

use std::{collections::BTreeSet, sync::Arc};

use countersign_verifier::AccessTokenClaims;
use serde_json::{Map, Value};

use super::{error::OAuthError, live_token::LiveTokens, store_answer};
use crate::{
    domain::{
        client::Client,
        family::Grant,
        id::{ClientId, FamilyId, ResourceId},
        profile,
        resource::{Resource, ResourceUri},
        scope::{OPENID, Scope},
        user::User,
    },
    store::Store,
};

/// Where clients ask who has signed in, below the issuer.
pub const USERINFO_PATH: &str = "/oauth2/userinfo";

/// The scopes of `OpenID` Connect (Core §3.1.2.1, §5.4, §11).
pub const SCOPES: &str = "address email offline_access openid phone profile";

/// What they mean to people.
const SCOPES_IN_WORDS: [(&str, &str); 6] = [
    ("address", "See your postal address"),
    ("email", "See your e-mail address"),
    ("offline_access", "Stay signed in when you are not there"),
    ("openid", "Know who you are"),
    ("phone", "See your telephone number"),
    ("profile", "See your name, picture and profile"),
];

/// The endpoint as a resource: there without being registered, for every client that may ask for
/// `openid`.
pub fn resource(issuer: &str) -> Option<Resource> {
    Some(Resource {
        id: ResourceId::USERINFO,
        resource: ResourceUri::parse(&format!("{issuer}{USERINFO_PATH}")).ok()?,
        name: "Your account".to_owned(),
        scopes: Scope::parse(SCOPES).ok()?,
        scope_descriptions: SCOPES_IN_WORDS
            .map(|(token, words)| (token.to_owned(), words.to_owned()))
            .into(),
        introspection_clients: Vec::new(),
        demo: false,
    })
}

/// Why nothing is told (RFC 6750 §3.1).
#[derive(Debug)]
pub enum UserInfoError {
    /// "The access token provided is expired, revoked, malformed, or invalid for other reasons."
    InvalidToken,
    /// "The request requires higher privileges than provided by the access token."
    InsufficientScope,
    /// This node cannot tell now.
    Unavailable(OAuthError),
}

impl From<OAuthError> for UserInfoError {
    fn from(error: OAuthError) -> Self {
        Self::Unavailable(error)
    }
}

/// Tells clients who has signed in.
pub struct UserInfo {
    /// Judges access tokens.
    pub tokens: LiveTokens,
    /// Users, and whether their sign-ins live.
    pub store: Arc<dyn Store>,
}

impl UserInfo {
    /// What the bearer of an access token may know of its user: `sub` as in the ID Token, and the
    /// standard claims that its scope asks for (Core §5.4) or its client by name (Core §5.5), as far as
    /// they are known.
    ///
    /// The token is judged as introspection does: it is for this endpoint, neither it nor its sign-in
    /// has ended, and user and client are enabled.
    ///
    /// # Security
    /// `token` comes from whoever sends the request.
    pub async fn answer(&self, token: &str) -> Result<Map<String, Value>, UserInfoError> {
        let claims = self.live(token).await?;
        let claims = claims.ok_or(UserInfoError::InvalidToken)?;
        let scope = claims.scope.as_deref().map(Scope::parse).transpose();
        let scope = scope.map_err(|_| UserInfoError::InvalidToken)?;
        let scope = scope.unwrap_or_default();
        if !scope.contains(OPENID) {
            return Err(UserInfoError::InsufficientScope);
        }
        let grant = self.living(claims.sid.as_deref()).await?;
        let grant = grant.ok_or(UserInfoError::InvalidToken)?;
        let reading = self.store.user(grant.subject);
        let user = store_answer(&self.tokens.clock, reading).await?;
        let user = user.ok_or(UserInfoError::InvalidToken)?;
        let named = {
            let registry = self.tokens.snapshots.registry();
            let client = registry.client(&grant.client_id);
            let client = client.ok_or(UserInfoError::InvalidToken)?;
            still_allowed(client, &grant.claims.userinfo)
        };
        let mut told = claims_of(&user, |name, asks| {
            scope.contains(asks) || named.contains(name)
        });
        told.insert("sub".to_owned(), grant.subject.to_string().into());
        Ok(told)
    }

    /// The claims of a good token for this endpoint.
    async fn live(&self, token: &str) -> Result<Option<AccessTokenClaims<'static>>, UserInfoError> {
        let audience = format!("{}{USERINFO_PATH}", self.tokens.issuer);
        let find = || {
            let found = self.tokens.find(token)?;
            Ok::<_, OAuthError>(found.filter(|claims| claims.aud.contains(&audience)))
        };
        let found = find()?;
        if found.is_some() {
            return Ok(found);
        }
        let is_of_stranger = self
            .tokens
            .genuine(token, audience.clone())
            .and_then(|claims| ClientId::parse(&claims.client_id).ok())
            .is_some_and(|id| self.tokens.snapshots.registry().client(&id).is_none());
        if !is_of_stranger {
            return Ok(None);
        }
        // It may have been registered at another node.
        self.tokens.renewed().await;
        Ok(find()?)
    }

    /// What was granted in a sign-in that has not ended.
    async fn living(&self, sid: Option<&str>) -> Result<Option<Grant>, UserInfoError> {
        let Some(Ok(family)) = sid.map(FamilyId::parse) else {
            return Ok(None);
        };
        let clock = &self.tokens.clock;
        let found = store_answer(clock, self.store.family(family)).await?;
        Ok(found.and_then(|(family, standing)| {
            let is_living = family.ending(&standing, clock.now()).is_none();
            is_living.then_some(family.grant)
        }))
    }
}

/// Those claims that the client may still ask for.
pub(super) fn still_allowed(client: &Client, names: &BTreeSet<String>) -> BTreeSet<String> {
    let is_allowed =
        |name: &&String| profile::scope_of(name).is_some_and(|scope| client.scope.contains(scope));
    names.iter().filter(is_allowed).cloned().collect()
}

/// The standard claims about a user that are asked for, given the name of each and the scope that asks
/// for it.
pub(super) fn claims_of(user: &User, is_asked: impl Fn(&str, &str) -> bool) -> Map<String, Value> {
    let of_user = [
        ("preferred_username", user.username.as_str().into()),
        ("updated_at", user.updated_at.seconds().into()),
    ];
    let of_user = of_user.map(|(name, value): (&str, Value)| (name.to_owned(), value));
    let members = user.profile.members().clone().into_iter();
    members
        .chain(of_user)
        .filter(|(name, _)| profile::scope_of(name).is_some_and(|scope| is_asked(name, scope)))
        .collect()
}
