//! Hosts behind a proxy that asks, for each request, who sends it.
//!
//! The proxy authenticates as the client that protects its hosts. A browser that is signed in has a
//! cookie of the host's own, which is good at that host alone and says nothing but which session it
//! is of: whether that lives is asked of the database each time. The cookie comes from a code, so that
//! hosts need not be on the issuer's site.

use std::{sync::Arc, time::Duration};

use countersign_verifier::base64url;
use serde::{Deserialize, Serialize};

use super::{Live, SessionTokens, login_required, signed_out};
use crate::{
    clock::Timestamp,
    domain::{
        change::{Cause, Origin},
        client::{CALLBACK_PATH, Client},
        code::{CodeRefusal, Redeemed, Redemption, s256},
        family::{Party, Refusal},
        id::{FamilyId, SessionId, UserId},
        scope::Scope,
        secret::{Ticket, TicketKind},
    },
    entropy::Entropy,
    oauth::{
        access_token::{AccessToken, Target},
        client_auth::Authenticator,
        error::{ErrorCode, OAuthError},
        form::Form,
        metadata::AUTHORIZATION_PATH,
        refresh_tokens,
        seals::{Purpose, Seals, over},
        store_answer,
    },
};

/// The longest path that a browser is sent back to, in bytes.
const LONGEST_PATH: usize = 2048;

/// A request to a host, as its proxy tells of it.
#[derive(Clone, Copy)]
pub struct HostRequest<'a> {
    /// How the proxy authenticates.
    pub authorization: Option<&'a str>,
    /// The host, with its port if that is not 443.
    pub host: &'a str,
    /// The cookie of the host.
    pub cookie: Option<&'a str>,
    /// The cookie of a sign-in that has begun there.
    pub start: Option<&'a str>,
    /// Where the request came from.
    pub origin: &'a Origin,
}

/// Whoever sends a request.
pub struct Known {
    /// Who it is.
    pub live: Live,
    /// A token for the host.
    pub token: AccessToken,
    /// What it allows.
    pub scope: Scope,
}

/// Where somebody signs in who is not known.
pub struct SignInUrl {
    /// Where the browser goes.
    pub url: String,
    /// The cookie that tells the browser when it comes back.
    pub start: String,
    /// Why.
    pub why: OAuthError,
}

/// Who sends a request to a host.
pub enum Verdict {
    /// Somebody who is signed in.
    Known(Box<Known>),
    /// Nobody yet.
    SignIn(SignInUrl),
}

/// What becomes of a browser that comes back from signing in.
pub enum Taken {
    /// Somebody has signed in.
    SignedIn(SignedIn),
    /// The answer is good for nothing any more, as one that comes twice, or of another tab. The browser
    /// goes on to this path of the host, where it is asked who it is.
    Stale(String),
    /// The user has to authenticate first.
    SignIn(SignInUrl),
    /// Nobody has signed in; it may be tried again by this path of the host.
    NotSignedIn {
        /// Why not.
        error: OAuthError,
        /// Where on the host the browser had been.
        path: String,
    },
}

/// What a browser is given that comes back from signing in.
pub struct SignedIn {
    /// The cookie of the host.
    pub cookie: String,
    /// Where on the host it goes on: a path.
    pub path: String,
}

/// What the cookie of a host says.
#[derive(Deserialize, Serialize)]
struct HostCookie {
    session: String,
    subject: String,
    /// The client's epoch; another one now means that this is over.
    client_epoch: i64,
    /// When the user authenticated, in milliseconds since 1970. Once the user has done so again, cookies
    /// from before are good for nothing, like that of the session itself.
    auth_time: i64,
}

/// What a browser brings back from signing in.
#[derive(Deserialize, Serialize)]
struct Start {
    /// Where it was going: a path on the same host.
    path: String,
    /// What proves that the code was asked for here (RFC 7636).
    verifier: String,
}

/// Tells proxies who sends requests to their hosts.
///
/// # Security
/// What a proxy hands on comes from whoever sends the request, but for the host that it names and its
/// own credentials. A host is only ever one of the client's redirect URIs.
pub struct ProtectedHosts {
    /// This issuer's identifier.
    pub issuer: String,
    /// Tells which client a proxy asks for.
    pub authenticator: Arc<Authenticator>,
    /// Mints the tokens.
    pub tokens: SessionTokens,
    /// Seals what browsers keep while they sign in.
    pub seals: Seals,
    /// Draws what tells browsers from each other.
    pub entropy: Entropy,
    /// How long a session lasts in any case.
    pub lifetime: Duration,
}

impl ProtectedHosts {
    /// Tells who sends a request for `path`.
    ///
    /// # Errors
    /// `invalid_client` for a proxy that is none of the client's, `access_denied` for a host that the
    /// client does not protect.
    pub async fn verify(
        &self,
        request: HostRequest<'_>,
        path: &str,
    ) -> Result<Verdict, OAuthError> {
        let client = self.client(request).await?;
        match self.known(&client, request).await {
            Ok(known) => Ok(Verdict::Known(Box::new(known))),
            Err(why) if is_asked_again(&why) => {
                let sign_in = self.sign_in_url(&client, request, path, why);
                Ok(Verdict::SignIn(sign_in?))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the answer of the authorization endpoint to a sign-in that has begun at this host in this
    /// browser.
    ///
    /// # Security
    /// Of an answer that has begun elsewhere nothing is taken, and nothing is told but that.
    pub async fn take(&self, request: HostRequest<'_>, query: &str) -> Result<Taken, OAuthError> {
        let client = self.client(request).await?;
        let form = Form::of_body(query.as_bytes())?;
        // Whoever sends a browser here with a code of their own has not its cookie (login CSRF).
        let start = request.start.ok_or_else(over)?;
        let state = form.one("state")?.ok_or_else(over)?;
        let bound_to = started_at(&client, request.host, start);
        let Ok(begun) = self.seals.open::<Start>(Purpose::Host, state, &bound_to) else {
            // Of two tabs that have begun at once one has the cookie of the other.
            return Ok(Taken::Stale("/".to_owned()));
        };
        if form.one("iss")? != Some(self.issuer.as_str()) {
            return Err(over());
        }
        let Some(code) = form.one("code")? else {
            return Ok(Taken::NotSignedIn {
                error: not_signed_in(form.one("error")?),
                path: begun.path,
            });
        };
        let redeeming = self.redeem(&client, request, code, &begun.verifier);
        let whose = match redeeming.await? {
            Ok(whose) => whose,
            Err(CodeRefusal::Reused | CodeRefusal::Expired | CodeRefusal::Unknown) => {
                return Ok(Taken::Stale(begun.path));
            }
            Err(CodeRefusal::Grant(Refusal::Ended)) => {
                let why = signed_out(Refusal::Ended);
                let sign_in = self.sign_in_url(&client, request, &begun.path, why)?;
                return Ok(Taken::SignIn(sign_in));
            }
            Err(_) => return Err(over()),
        };
        let live = match self.tokens.live(&client, whose, request.origin).await {
            Ok(live) => live,
            // It has ended meanwhile.
            Err(error) if is_asked_again(&error) => return Ok(Taken::Stale(begun.path)),
            Err(error) => return Err(error),
        };
        let cookie = HostCookie {
            session: live.session.id.to_string(),
            subject: live.session.subject.to_string(),
            client_epoch: client.session_epoch,
            auth_time: live.session.auth_time.millis(),
        };
        let plain = serde_json::to_vec(&cookie).map_err(OAuthError::internal)?;
        let now = self.tokens.minter.clock.now();
        let ring = self.tokens.minter.snapshots.mac_ring();
        let bound_to = cookie_of(&client, request.host);
        let sealed = ring.seal(&plain, &bound_to, &self.entropy, now);
        Ok(Taken::SignedIn(SignedIn {
            cookie: sealed.map_err(OAuthError::internal)?,
            path: begun.path,
        }))
    }

    /// The client of a proxy, if it protects the host.
    async fn client(&self, request: HostRequest<'_>) -> Result<Arc<Client>, OAuthError> {
        let authenticating = self
            .authenticator
            .authenticate_proxy(request.authorization, request.origin);
        let client = authenticating.await?;
        if client.protects(request.host) {
            return Ok(client);
        }
        Err(OAuthError::new(
            ErrorCode::AccessDenied,
            "host",
            "the client does not protect this host: register its redirect URI, and forward_auth",
        ))
    }

    async fn known(&self, client: &Client, request: HostRequest<'_>) -> Result<Known, OAuthError> {
        let nobody = || login_required("login_required");
        let (whose, auth_time) = request
            .cookie
            .and_then(|cookie| self.opened(client, request.host, cookie))
            .ok_or_else(nobody)?;
        let live = self.tokens.live(client, whose, request.origin).await?;
        if live.session.auth_time != auth_time {
            return Err(nobody());
        }
        let target = {
            let registry = self.tokens.minter.snapshots.registry();
            Target::for_users(client, &registry, &Form::of_pairs([]))?
        };
        let (token, scope) = self.tokens.mint(client, &live, target).await?;
        let (party, now) = (
            Party::of_origin(request.origin),
            self.tokens.minter.clock.now(),
        );
        if live.session.is_news(now, &party) {
            let noting = self.tokens.store.note_session(live.session.id, &party, now);
            store_answer(&self.tokens.minter.clock, noting).await?;
        }
        Ok(Known { live, token, scope })
    }

    /// The session that a cookie of this host is of, and when its user had authenticated.
    fn opened(
        &self,
        client: &Client,
        host: &str,
        cookie: &str,
    ) -> Option<((SessionId, UserId), Timestamp)> {
        let now = self.tokens.minter.clock.now();
        let ring = self.tokens.minter.snapshots.mac_ring();
        let plain = ring.unseal(cookie, &cookie_of(client, host), now).ok()?;
        let said: HostCookie = serde_json::from_slice(&plain).ok()?;
        let session = SessionId::parse(&said.session).ok()?;
        let subject = UserId::parse(&said.subject).ok()?;
        let auth_time = Timestamp::from_millis(said.auth_time);
        (said.client_epoch == client.session_epoch).then_some(((session, subject), auth_time))
    }

    fn sign_in_url(
        &self,
        client: &Client,
        request: HostRequest<'_>,
        path: &str,
        why: OAuthError,
    ) -> Result<SignInUrl, OAuthError> {
        let known = request
            .start
            .filter(|start| (20..=64).contains(&start.len()));
        let start = match known {
            Some(start) => start.to_owned(),
            None => self.drawn::<16>()?,
        };
        let begun = Start {
            path: within_host(path),
            verifier: self.drawn::<32>()?,
        };
        let challenge = s256(&begun.verifier).unwrap_or_default();
        let now = self.tokens.minter.clock.now();
        let bound_to = started_at(client, request.host, &start);
        let state = self.seals.seal(Purpose::Host, &begun, now, &bound_to)?;
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs([
            ("response_type", "code"),
            ("client_id", client.client_id.as_str()),
            ("redirect_uri", &callback(request.host)),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("state", &state),
        ]);
        // What was ended at this client comes back with an authentication, and not before.
        if why.reason() == "revoked" {
            query.append_pair("prompt", "login");
        }
        Ok(SignInUrl {
            url: format!("{}{AUTHORIZATION_PATH}?{}", self.issuer, query.finish()),
            start,
            why,
        })
    }

    /// Exchanges a code; the session that it was issued in, and whose that is, or why it is not good.
    async fn redeem(
        &self,
        client: &Client,
        request: HostRequest<'_>,
        code: &str,
        verifier: &str,
    ) -> Result<Result<(SessionId, UserId), CodeRefusal>, OAuthError> {
        let minter = &self.tokens.minter;
        minter.check_ready()?;
        let Some(hash) = Ticket::hash_of(TicketKind::AuthorizationCode, code) else {
            return Ok(Err(CodeRefusal::Unknown));
        };
        let now = minter.clock.now();
        let id = minter.entropy.uuid_v7(now).map_err(OAuthError::internal)?;
        let terms = self.tokens.refresh_tokens.terms(now);
        let redemption = Redemption {
            hash,
            client_id: client.client_id.clone(),
            code_challenge: s256(verifier),
            redirect_uri: Some(callback(request.host)),
            dpop_jkt: None,
            scope: None,
            resources: Vec::new(),
            family_id: FamilyId::from_uuid(id),
            for_session: true,
            lifetime: self.lifetime,
            terms: terms.ok_or_else(refresh_tokens::no_key)?,
            cause: Cause::of_request(&client.client_id, request.origin, None),
        };
        let redeeming = self.tokens.store.redeem_code(&redemption, now);
        match store_answer(&minter.clock, redeeming).await? {
            Redeemed::Opened { family, .. } => {
                let session = family.grant.session_id.ok_or_else(over)?;
                Ok(Ok((session, family.grant.subject)))
            }
            Redeemed::Refused(refusal) => Ok(Err(refusal)),
        }
    }

    fn drawn<const BYTES: usize>(&self) -> Result<String, OAuthError> {
        let bytes: [u8; BYTES] = self.entropy.bytes().map_err(OAuthError::internal)?;
        Ok(base64url::encode(&bytes))
    }
}

/// What the error of the authorization endpoint means at a host (RFC 6749 §4.1.2.1).
fn not_signed_in(error: Option<&str>) -> OAuthError {
    match error {
        Some("temporarily_unavailable") => OAuthError::new(
            ErrorCode::TemporarilyUnavailable,
            "temporarily_unavailable",
            "the issuer could not sign anybody in",
        ),
        _ => OAuthError::new(
            ErrorCode::AccessDenied,
            "access_denied",
            "the sign-in was not gone through with",
        ),
    }
}

/// Whether what is refused is asked of the user.
fn is_asked_again(error: &OAuthError) -> bool {
    matches!(
        error.code(),
        ErrorCode::LoginRequired | ErrorCode::ConsentRequired
    )
}

/// Where users come back to at a host.
fn callback(host: &str) -> String {
    format!("https://{host}{CALLBACK_PATH}")
}

/// What the cookie of a host is bound to.
fn cookie_of(client: &Client, host: &str) -> Vec<u8> {
    let id = client.client_id.as_str();
    [b"host cookie\0", id.as_bytes(), b"\0", host.as_bytes()].concat()
}

/// What a sign-in that has begun at a host is bound to. Neither ids nor hosts have a NUL in them.
fn started_at(client: &Client, host: &str, start: &str) -> String {
    [client.client_id.as_str(), host, start].join("\0")
}

/// A path that leads nowhere but to the host that it is for.
///
/// # Security
/// Whoever sends a browser to the host chooses it. Browsers take `//` and `/\` for another host, and
/// leave out what cannot be seen (WHATWG URL §4.4).
fn within_host(path: &str) -> String {
    let is_path = path.starts_with('/') && !path.starts_with("//");
    let is_plain = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_elsewhere = path.starts_with(CALLBACK_PATH) || path.len() > LONGEST_PATH;
    if is_path && is_plain && !is_elsewhere {
        path.to_owned()
    } else {
        "/".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_away_from_the_host() {
        for path in ["/", "/a/b?c=d&e=//f", "/a//b", "/%2f%2fevil.example"] {
            assert_eq!(within_host(path), path);
        }
        let long = format!("/{}", "a".repeat(LONGEST_PATH));
        for path in [
            "",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/a\\b",
            "https://evil.example/",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/\n/evil.example",
            " //evil.example",
            "/\u{e9}",
            "/session/callback?code=x",
            &long,
        ] {
            assert_eq!(within_host(path), "/", "{path:?}");
        }
    }
}
