//! What a session of a browser is good for without a code: access tokens for pages on the issuer's
//! site (RFC 10017 §6.1), and for hosts behind a proxy.
//!
//! The cookie never leaves the browser, and what it is turned into is never a refresh token: a page
//! that wants another token asks again, as long as the session lives.

pub mod hosts;
pub mod pages;

use std::{sync::Arc, time::Duration};

use super::{
    access_token::{AccessToken, Minter, Narrowing, Target, offered_for_users},
    error::{ErrorCode, OAuthError},
    grants::sign_in,
    refresh_tokens::{self, RefreshTokens},
    store_answer,
};
use crate::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        change::{Cause, Origin},
        client::Client,
        consent::Consent,
        family::{Family, Refusal, Standing, UserStanding},
        id::{FamilyId, SessionId, UserId},
        resource::ResourceUri,
        scope::Scope,
        session_family::{SessionFamily, SessionGrant},
    },
    oauth::authorization::request::permissions,
    registry::Registry,
    store::Store,
};

/// What a user is asked for when it signs in without the app being there (`OpenID` Connect Core §11).
/// Nothing of a session outlasts it.
const OFFLINE: &str = "offline_access";

/// Mints access tokens for sessions.
#[derive(Clone)]
pub struct SessionTokens {
    /// Mints them.
    pub minter: Minter,
    /// Knows the terms of families.
    pub refresh_tokens: RefreshTokens,
    /// How long a session may go unused.
    pub idle: Duration,
    /// Where sessions and their families are kept.
    pub store: Arc<dyn Store>,
}

/// A session at a client, which lives.
pub struct Live {
    /// The session.
    pub session: BrowserSession,
    /// Its family there.
    pub family: Family,
    /// What the user is now.
    pub user: UserStanding,
    standing: Standing,
    judged_at: Timestamp,
}

impl SessionTokens {
    /// The session as it is at a client at this moment; its family there is opened if need be.
    ///
    /// # Errors
    /// `login_required` when the session, or what it was at this client, is over, or a second factor is
    /// to be proved; `consent_required` when its user has not allowed the client anything.
    pub async fn live(
        &self,
        client: &Client,
        (session, subject): (SessionId, UserId),
        origin: &Origin,
    ) -> Result<Live, OAuthError> {
        self.minter.check_ready()?;
        let consent = self.consent(client, subject).await?;
        let judged_at = self.minter.clock.now();
        let grant = {
            let registry = self.minter.snapshots.registry();
            let (scope, resources) = all_of(client, &registry, consent.as_ref());
            let id = self.minter.entropy.uuid_v7(judged_at);
            let terms = self.refresh_tokens.terms(judged_at);
            SessionGrant {
                session,
                idle: self.idle,
                client_id: client.client_id.clone(),
                client_epoch: client.session_epoch,
                second_factor_required: client.second_factor_required,
                scope,
                resources,
                allowed: consent.map(|it| it.permissions).unwrap_or_default(),
                family_id: FamilyId::from_uuid(id.map_err(OAuthError::internal)?),
                terms: terms.ok_or_else(refresh_tokens::no_key)?,
                cause: Cause::of_request(&client.client_id, origin, None),
            }
        };
        let asking = self.store.session_family(&grant, judged_at);
        match store_answer(&self.minter.clock, asking).await? {
            SessionFamily::Refused(refusal) => Err(signed_out(refusal)),
            SessionFamily::Open {
                session,
                family,
                standing,
            } => Ok(Live {
                session: *session,
                family: *family,
                user: standing
                    .user
                    .clone()
                    .ok_or_else(|| signed_out(Refusal::UserDeleted))?,
                standing: *standing,
                judged_at,
            }),
        }
    }

    /// Mints an access token for a session; with the scope that it has.
    ///
    /// # Errors
    /// `consent_required` when it asks for more than its user has allowed the client.
    pub async fn mint(
        &self,
        client: &Client,
        live: &Live,
        target: Target,
    ) -> Result<(AccessToken, Scope), OAuthError> {
        let scope = without_offline(&target.scope);
        if !client.first_party {
            let consent = self.consent(client, live.session.subject).await?;
            let registry = self.minter.snapshots.registry();
            let wanted = permissions(&scope, &target.resources, &registry);
            let is_allowed = consent.is_some_and(|it| wanted.is_subset(&it.permissions));
            if !is_allowed {
                return Err(consent_required());
            }
        }
        let asked = Narrowing {
            scope: Some(scope),
            resources: target.resources,
        };
        let sign_in = (&live.family, &live.standing);
        let (minter, store) = (&self.minter, &*self.store);
        let minting = sign_in::access_token(minter, store, client, sign_in, &asked, live.judged_at);
        match minting.await {
            Ok(access) => Ok((access.token, access.scope)),
            Err(error) if error.code() == ErrorCode::InvalidGrant => {
                Err(login_required(error.reason()))
            }
            Err(error) => Err(error),
        }
    }

    /// What the user of a session has allowed a client; none where that is not asked.
    async fn consent(
        &self,
        client: &Client,
        subject: UserId,
    ) -> Result<Option<Consent>, OAuthError> {
        if client.first_party {
            return Ok(None);
        }
        let reading = self.store.consent(subject, &client.client_id);
        let consent = store_answer(&self.minter.clock, reading).await?;
        let consent = consent.filter(|consent| consent.client_epoch == client.session_epoch);
        consent.map(Some).ok_or_else(consent_required)
    }
}

/// All that a client may have for the users of its sessions: what it is registered for, as far as
/// there is consent where there must be.
fn all_of(
    client: &Client,
    registry: &Registry,
    consent: Option<&Consent>,
) -> (Scope, Vec<ResourceUri>) {
    let is_allowed =
        |uri: &_| consent.is_none_or(|consent| consent.permissions.iter().any(|(of, _)| of == uri));
    let mut resources = offered_for_users(client, registry);
    resources.retain(is_allowed);
    let mut scope = Scope::default();
    for uri in &resources {
        if let Some(resource) = registry.resource(uri) {
            scope.extend(&resource.scopes.intersection(&client.scope));
        }
    }
    if let Some(consent) = consent {
        let allowed = consent.permissions.iter().map(|(_, token)| token.as_str());
        let allowed: Vec<&str> = allowed.filter(|token| !token.is_empty()).collect();
        scope = scope.intersection(&Scope::parse(&allowed.join(" ")).unwrap_or_default());
    }
    (without_offline(&scope), resources)
}

fn without_offline(scope: &Scope) -> Scope {
    let kept: Vec<&str> = scope.iter().filter(|token| *token != OFFLINE).collect();
    Scope::parse(&kept.join(" ")).unwrap_or_default()
}

/// Why there is no token for a session, as its page is told.
fn signed_out(refusal: Refusal) -> OAuthError {
    let error = sign_in::refusal(refusal);
    match error.code() {
        ErrorCode::InvalidGrant => login_required(error.reason()),
        _ => error,
    }
}

/// The refusal of whoever is not signed in, or not any more.
pub fn login_required(reason: &'static str) -> OAuthError {
    let description = "the user has to sign in";
    OAuthError::new(ErrorCode::LoginRequired, reason, description)
}

fn consent_required() -> OAuthError {
    OAuthError::new(
        ErrorCode::ConsentRequired,
        "consent_required",
        "the user has not allowed the client what it asks for",
    )
}
