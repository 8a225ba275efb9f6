//! Signing in without a browser (draft-ietf-oauth-first-party-apps): an app of the service's own takes
//! its user's credentials and gets an authorization code.
//!
//! After the password comes a second factor, if the user has one or needs one; what needs a browser is
//! left to one. What has been proved so far goes into the stored [`ChallengeSession`], which is handed
//! on from step to step.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::Serialize;

use super::{
    access_token::Target,
    authorization::second_factor::of_factor,
    client_auth::Authenticator,
    codes,
    error::{ErrorCode, OAuthError},
    form::Form,
    id_token, store_answer,
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Origin},
        claims::RequestedClaims,
        client::Client,
        code::{AuthorizationCode, CHALLENGE_LIFE, CODE_LIFE, ChallengeSession},
        factor::{Proved, method},
        family::Grant,
        name::named,
        resource::ResourceUri,
        scope::Scope,
        secret::{Ticket, TicketKind},
        user::{User, Username},
    },
    entropy::Entropy,
    identity::{
        factor::{FactorRefused, Next, SecondFactors, Wanted, next},
        sign_in::{Place, Refused, SignIn},
    },
    registry::Snapshots,
    store::Store,
    throttle::Throttle,
};

/// How many wrong passwords one sign-in has.
const MOST_FAILURES: u32 = 5;

named!(
    /// What a sign-in still needs. Whatever the user has enrolled is asked for, and nothing skipped.
    Needed {
        /// A second factor that the user has yet to enrol: in a browser.
        Enrolment = "enrolment",
        /// A one-time password of the user's app, or a recovery code, in the parameter `otp`.
        Otp = "otp",
        /// One of the user's passkeys: in a browser.
        Passkey = "passkey",
        /// The user's password, in the parameter `password`.
        Password = "password",
    }
);

/// The answer to whoever has shown all that was needed (draft-ietf-oauth-first-party-apps §5.2.1).
///
/// Neither printable nor clonable: it holds a code.
#[derive(Serialize)]
pub struct ChallengeResponse {
    /// The code, for the token endpoint.
    pub authorization_code: String,
}

/// The answer to everybody else (§5.2.2).
pub struct Unfinished {
    /// What is wrong, or missing.
    pub error: OAuthError,
    /// How to go on, if that is possible.
    pub next: Option<NextStep>,
}

/// How a sign-in is gone on with.
pub struct NextStep {
    /// What it is named by; takes the place of the one that was presented. None where it takes a
    /// browser.
    pub auth_session: Option<Ticket>,
    /// What is to be sent with it.
    pub needed: Needed,
}

impl From<OAuthError> for Unfinished {
    fn from(error: OAuthError) -> Self {
        Self { error, next: None }
    }
}

/// Exchanges the credentials of users for authorization codes.
pub struct ChallengeEndpoint {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Tells whether credentials are right.
    pub sign_in: Arc<SignIn>,
    /// Second factors.
    pub factors: Arc<SecondFactors>,
    /// How often sign-ins may be begun at a place without being gone through with: each time something
    /// is stored.
    pub begun: Throttle<Place>,
    /// Where sign-ins and codes are kept.
    pub store: Arc<dyn Store>,
    /// Clients and resources.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws codes and sessions.
    pub entropy: Entropy,
}

/// A sign-in on its way.
struct Attempt {
    session: ChallengeSession,
    /// Whether it was stored by an earlier step.
    is_continued: bool,
}

impl ChallengeEndpoint {
    /// Answers one request: a step of a sign-in, or all of it at once.
    ///
    /// # Security
    /// `authorization` and `body` come from whoever sends the request. Nothing of the answer, nor the
    /// time it takes, tells whether there is such a user before the right password was presented.
    pub async fn answer(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        origin: &Origin,
    ) -> Result<ChallengeResponse, Unfinished> {
        let form = Form::of_body(body)?;
        let client = self
            .authenticator
            .authenticate(authorization, &form, origin)
            .await?;
        check_client(&client)?;
        check_response_type(&form)?;
        let place = place(&client, &form, origin)?;
        let (password, otp) = (form.one("password")?, form.one("otp")?);
        let attempt = match form.one("auth_session")? {
            Some(auth_session) => self.resume(&client, &form, auth_session).await?,
            None => self.begin(&client, &form)?,
        };
        let place = place.as_ref();
        if let Some(proved) = attempt.session.proved.clone() {
            let user = self.proved(&proved).await?;
            let Some(otp) = otp else {
                return Err(self.ask_for(Needed::Otp, attempt, place).await?);
            };
            return self.second_step(attempt, user, otp, place, origin).await;
        }
        let Some(password) = password else {
            return Err(self.ask_for(Needed::Password, attempt, place).await?);
        };
        let username = &attempt.session.username;
        let user = match self.sign_in.verify(username, password, place).await {
            Ok(user) => user,
            Err(refused) => return Err(self.refuse(refused, attempt).await?),
        };
        self.after_password(
            attempt,
            user,
            (client.second_factor_required, otp),
            place,
            origin,
        )
        .await
    }

    /// Goes on with a user whose password was right.
    async fn after_password(
        &self,
        mut attempt: Attempt,
        user: User,
        (client_requires, otp): (bool, Option<&str>),
        place: Option<&Place>,
        origin: &Origin,
    ) -> Result<ChallengeResponse, Unfinished> {
        let factors = self.factors.of(user.id).await;
        let factors = factors.map_err(OAuthError::of_store)?;
        let amr = vec![method::PASSWORD.to_owned()];
        let wanted = Wanted {
            required: user.second_factor_required || client_requires,
            is_fresh: true,
            ..Wanted::default()
        };
        match next(factors.is_enrolled(), wanted, &amr) {
            Next::Nothing => self.issue(attempt, user, amr, place).await,
            Next::Enrol => Err(in_a_browser(Needed::Enrolment)),
            Next::Prove if factors.totp.is_none() && factors.recovery_codes == 0 => {
                Err(in_a_browser(Needed::Passkey))
            }
            Next::Prove => {
                attempt.session.proved = Some(Proved::new(&user, amr, self.clock.now()));
                match otp {
                    Some(otp) => self.second_step(attempt, user, otp, place, origin).await,
                    None => Err(self.ask_for(Needed::Otp, attempt, place).await?),
                }
            }
        }
    }

    /// Takes a code of a user whose password was right.
    async fn second_step(
        &self,
        attempt: Attempt,
        user: User,
        otp: &str,
        place: Option<&Place>,
        origin: &Origin,
    ) -> Result<ChallengeResponse, Unfinished> {
        let cause = Cause::of_user(user.id, origin);
        match self.factors.verify(&user, otp, place, &cause).await {
            Ok(more) => {
                let proved = attempt.session.proved.clone();
                let before = proved.map(|proved| proved.amr).unwrap_or_default();
                let amr = before.into_iter().chain(more).collect();
                self.issue(attempt, user, amr, place).await
            }
            Err(refused) => Err(self.refuse_code(refused, attempt).await?),
        }
    }

    /// Who has proved something in an earlier step, if that still counts.
    async fn proved(&self, proved: &Proved) -> Result<User, OAuthError> {
        let reading = self.store.user(proved.subject());
        let user = store_answer(&self.clock, reading).await?;
        let now = self.clock.now();
        user.filter(|user| proved.is_of(user, now))
            .ok_or_else(invalid_session)
    }

    /// Ends an attempt whose code was wrong.
    async fn refuse_code(
        &self,
        refused: FactorRefused,
        attempt: Attempt,
    ) -> Result<Unfinished, OAuthError> {
        let mut session = attempt.session;
        let is_wrong = matches!(refused, FactorRefused::Wrong);
        let error = match of_factor(refused) {
            // What was stored is lost with the database.
            error if !is_wrong && error.code() != ErrorCode::TooOften => return Err(error),
            error if !is_wrong => error,
            _ => OAuthError::new(
                ErrorCode::InvalidGrant,
                "otp",
                "the code is wrong, or was used before",
            ),
        };
        session.failures += u32::from(is_wrong);
        let goes_on = session.failures < MOST_FAILURES;
        Ok(Unfinished {
            error,
            next: if goes_on {
                Some(self.keep(&session, Needed::Otp).await?)
            } else {
                None
            },
        })
    }

    /// What a first step asks for.
    fn begin(&self, client: &Client, form: &Form) -> Result<Attempt, OAuthError> {
        let username = form
            .one("username")?
            .ok_or_else(|| OAuthError::malformed("username and auth_session are missing"))?;
        let code_challenge = codes::code_challenge(form)?;
        let registry = self.snapshots.registry();
        let target = Target::for_users(client, &registry, form)?;
        let (ring, now) = (self.snapshots.ring(), self.clock.now());
        id_token::check_asked(&ring, client, &target.scope, now)?;
        let session = ChallengeSession {
            client_id: client.client_id.clone(),
            client_epoch: client.session_epoch,
            username: name_to_keep(username).to_owned(),
            code_challenge,
            scope: target.scope,
            resources: target.resources,
            dpop_jkt: None,
            failures: 0,
            expires_at: now.plus(CHALLENGE_LIFE),
            proved: None,
        };
        Ok(Attempt {
            session,
            is_continued: false,
        })
    }

    /// Takes up the sign-in of an `auth_session`, which nobody can do twice. What is asked for stays
    /// as it was at the first step.
    async fn resume(
        &self,
        client: &Client,
        form: &Form,
        auth_session: &str,
    ) -> Result<Attempt, OAuthError> {
        let (username, scope) = (form.one("username")?, form.one("scope")?);
        let challenge = form.one("code_challenge")?;
        let method = form.one("code_challenge_method")?;
        let resources: Vec<&str> = form.many("resource").collect();
        let hash = Ticket::hash_of(TicketKind::AuthSession, auth_session);
        let hash = hash.ok_or_else(invalid_session)?;
        let now = self.clock.now();
        let taking = self.store.take_challenge(&hash, &client.client_id, now);
        let session = store_answer(&self.clock, taking).await?;
        let session = session.ok_or_else(invalid_session)?;
        // Otherwise somebody would be signed in as another one than this request names, with a
        // challenge whose verifier nobody has, or for something else than this request asks for.
        // But for the userinfo endpoint, which need not be named.
        let registry = self.snapshots.registry();
        let userinfo = registry.userinfo().map(|userinfo| &userinfo.resource);
        let is_named =
            |uri: &&ResourceUri| Some(*uri) != userinfo || resources.contains(&uri.as_str());
        let granted = session.resources.iter().filter(is_named);
        let granted: Vec<&str> = granted.map(ResourceUri::as_str).collect();
        let differences = [
            (
                username.is_some_and(|name| name_to_keep(name) != session.username),
                "the auth_session began with another username",
            ),
            (
                challenge.is_some_and(|challenge| challenge != session.code_challenge),
                "the auth_session began with another code_challenge",
            ),
            (
                method.is_some_and(|method| method != codes::S256),
                "code_challenge_method must be S256",
            ),
            (
                scope
                    .is_some_and(|scope| Scope::parse(scope).ok().as_ref() != Some(&session.scope)),
                "the auth_session began with another scope",
            ),
            (
                !resources.is_empty()
                    && (resources.iter().any(|uri| !granted.contains(uri))
                        || granted.iter().any(|uri| !resources.contains(uri))),
                "the auth_session began with other resources",
            ),
        ];
        let difference = differences.into_iter().find(|(differs, _)| *differs);
        if let Some((_, description)) = difference {
            return Err(OAuthError::malformed(description));
        }
        Ok(Attempt {
            session,
            is_continued: true,
        })
    }

    /// Ends a step that was not the last one.
    async fn ask_for(
        &self,
        needed: Needed,
        attempt: Attempt,
        place: Option<&Place>,
    ) -> Result<Unfinished, OAuthError> {
        if !attempt.is_continued
            && let Some(place) = place
        {
            self.begun
                .take(place, self.clock.monotonic())
                .map_err(|wait| {
                    OAuthError::too_often(wait, "too many sign-ins are begun from this address")
                })?;
        }
        Ok(Unfinished {
            error: OAuthError::new(
                ErrorCode::InsufficientAuthorization,
                needed.as_str(),
                "more is needed to sign in; send it with the auth_session",
            ),
            next: Some(self.keep(&attempt.session, needed).await?),
        })
    }

    /// Ends an attempt that failed. A sign-in that had begun before can be gone on with, unless it has
    /// failed too often.
    async fn refuse(&self, refused: Refused, attempt: Attempt) -> Result<Unfinished, OAuthError> {
        let mut session = attempt.session;
        let error = match refused {
            Refused::Credentials => {
                session.failures += 1;
                wrong_credentials()
            }
            Refused::TooOften(wait) => {
                OAuthError::too_often(wait, "signing in failed too often; try again later")
            }
            Refused::Busy(_) => OAuthError::new(
                ErrorCode::TemporarilyUnavailable,
                "busy",
                "too many passwords are being checked",
            ),
            // What was stored is lost with the database.
            Refused::Store(error) => return Err(OAuthError::of_store(error)),
        };
        let goes_on = attempt.is_continued && session.failures < MOST_FAILURES;
        Ok(Unfinished {
            error,
            next: if goes_on {
                Some(self.keep(&session, Needed::Password).await?)
            } else {
                None
            },
        })
    }

    /// Ends a sign-in: its user has shown all that is needed.
    async fn issue(
        &self,
        attempt: Attempt,
        user: User,
        amr: Vec<String>,
        place: Option<&Place>,
    ) -> Result<ChallengeResponse, Unfinished> {
        let Attempt {
            session,
            is_continued,
        } = attempt;
        let now = self.clock.now();
        if is_continued && let Some(place) = place {
            let begun_at = Timestamp::minus(session.expires_at, CHALLENGE_LIFE);
            let monotonic = self.clock.monotonic();
            let begun = monotonic.saturating_sub(now.since(begun_at));
            self.begun.give_back(place, begun, monotonic);
        }
        let code = AuthorizationCode {
            grant: Grant {
                client_id: session.client_id,
                client_epoch: session.client_epoch,
                subject: user.id,
                // As it was when the password was read: if that was changed since, or the user
                // disabled, the code is not stored.
                user_epoch: user.session_epoch,
                session_id: None,
                scope: session.scope,
                resources: session.resources,
                auth_time: now,
                amr,
                dpop_jkt: session.dpop_jkt,
                claims: RequestedClaims::default(),
            },
            redirect_uri: None,
            code_challenge: Some(session.code_challenge),
            nonce: None,
            expires_at: now.plus(CODE_LIFE),
            family_id: None,
        };
        // The app asks its user by itself.
        let asked = BTreeSet::new();
        let issued = codes::issue(&*self.store, &self.clock, &self.entropy, &code, &asked).await?;
        let text = issued.ok_or_else(wrong_credentials)?;
        Ok(ChallengeResponse {
            authorization_code: text.expose().to_owned(),
        })
    }

    /// Stores a sign-in for its next step, under a new `auth_session`.
    async fn keep(
        &self,
        session: &ChallengeSession,
        needed: Needed,
    ) -> Result<NextStep, OAuthError> {
        let auth_session =
            Ticket::mint(TicketKind::AuthSession, &self.entropy).map_err(OAuthError::internal)?;
        let hash = auth_session.hash();
        store_answer(&self.clock, self.store.put_challenge(&hash, session)).await?;
        Ok(NextStep {
            auth_session: Some(auth_session),
            needed,
        })
    }
}

/// What a client cannot ask its user for: that takes a browser.
fn in_a_browser(needed: Needed) -> Unfinished {
    Unfinished {
        error: OAuthError::new(
            ErrorCode::RedirectToWeb,
            needed.as_str(),
            "the user has to sign in with a browser",
        ),
        next: Some(NextStep {
            auth_session: None,
            needed,
        }),
    }
}

/// "The Authorization Server MUST verify the first-partyness of the client before continuing" (§5).
fn check_client(client: &Client) -> Result<(), OAuthError> {
    if !client.first_party {
        return Err(OAuthError::new(
            ErrorCode::UnauthorizedClient,
            "first_party",
            "the client may not take the credentials of users",
        ));
    }
    codes::check_client(client)
}

/// There is nothing but codes; later drafts want that said (§5.1).
fn check_response_type(form: &Form) -> Result<(), OAuthError> {
    match form.one("response_type")? {
        None | Some("code") => Ok(()),
        Some(_) => Err(codes::not_a_code()),
    }
}

/// A user name as it is stored: the empty one, which nobody has, in place of all that nobody can have.
fn name_to_keep(username: &str) -> &str {
    Username::parse(username).map_or("", |_| username)
}

/// Where the user is. A back end tells so in `user_address`: all its users ask from its own address,
/// so that without it nobody can tell one who guesses from the others.
fn place(client: &Client, form: &Form, origin: &Origin) -> Result<Option<Place>, OAuthError> {
    let told = form.one("user_address")?;
    if told.is_some() && client.is_public() {
        return Err(OAuthError::malformed(
            "user_address is for clients that authenticate",
        ));
    }
    let told: Option<IpAddr> = told
        .map(str::parse)
        .transpose()
        .map_err(|_| OAuthError::malformed("user_address is not an IPv4 or IPv6 address"))?;
    Ok(Place::of(client, origin, told))
}

const fn invalid_session() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidSession,
        "auth_session",
        "the auth_session is none of this client, has been used, or is over; begin anew",
    )
}

/// Which of the two is wrong, and whether there is such a user, is not told.
const fn wrong_credentials() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidGrant,
        "credentials",
        "the user name or the password is wrong",
    )
}
