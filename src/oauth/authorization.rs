//! Authorization requests (RFC 6749 §4.1.1, `OpenID` Connect Core §3.1.2.1): what an app asks for by
//! way of its user's browser.
//!
//! A request is read anew, from the same text, at each step that its user takes: what client and
//! resources are by then is what counts, and nothing is stored for who never signs in.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    access_token::Target,
    error::{ErrorCode, OAuthError},
    form::Form,
};
use crate::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        client::{Client, GrantType},
        code::is_s256,
        consent::Consent,
        id::{ClientId, UserId},
        name::named,
        resource::ResourceUri,
        scope::Scope,
    },
    registry::Registry,
};

/// The longest `state` that is given back, in bytes.
const LONGEST_STATE: usize = 4096;

/// The longest `nonce`, in bytes.
const LONGEST_NONCE: usize = 512;

/// The longest text that is only looked at, in bytes.
const LONGEST_HINT: usize = 1024;

/// What makes a request one of `OpenID` Connect (Core §3.1.2.1).
const OPENID: &str = "openid";

named!(
    /// How an answer goes back through the browser (OAuth 2.0 Multiple Response Type Encoding
    /// Practices §2.1, OAuth 2.0 Form Post Response Mode).
    ResponseMode {
        /// In a form that the browser posts.
        FormPost = "form_post",
        /// In the query of the redirect URI.
        Query = "query",
    }
);

named!(
    /// What the user is to be asked, whatever is known already (`OpenID` Connect Core §3.1.2.1).
    Prompt {
        /// To consent.
        Consent = "consent",
        /// To sign in.
        Login = "login",
        /// Nothing at all.
        None = "none",
        /// Which account to take: here, to sign in.
        SelectAccount = "select_account",
    }
);

/// Where an answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnAddress {
    /// As the request named it, which the client has registered.
    pub redirect_uri: String,
    /// How.
    pub mode: ResponseMode,
    /// What the client wants back with it, exactly.
    pub state: Option<String>,
}

impl ReturnAddress {
    /// The parameters of an answer (RFC 6749 §4.1.2), with the issuer that gives it (RFC 9207 §2).
    pub fn parameters<'a>(
        &'a self,
        issuer: &'a str,
        answer: &[(&'static str, &'a str)],
    ) -> Vec<(&'static str, &'a str)> {
        let state = self.state.iter().map(|state| ("state", state.as_str()));
        let answer = answer.iter().copied();
        answer.chain(state).chain([("iss", issuer)]).collect()
    }

    /// The redirect URI with the parameters in its query; what it has there already stays
    /// (RFC 6749 §3.1.2).
    pub fn location(&self, parameters: &[(&str, &str)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let join = if self.redirect_uri.contains('?') {
            '&'
        } else {
            '?'
        };
        format!("{}{join}{}", self.redirect_uri, query.finish())
    }
}

/// Why a request is refused, and who is told.
#[derive(Debug)]
pub enum Rejection {
    /// The user: nobody knows that the client asks, or that the place is its own (RFC 6749
    /// §4.1.2.1, RFC 9700 §4.11).
    Shown(OAuthError),
    /// The client.
    Returned(ReturnAddress, OAuthError),
}

/// A request whose answer has a place to go to.
pub struct AuthorizationRequest {
    /// Who asks.
    pub client: Arc<Client>,
    /// Where the answer goes.
    pub return_address: ReturnAddress,
    /// Whether the request named that place: then the exchange of the code must do so, too.
    pub names_redirect_uri: bool,
    /// What for.
    pub asked: Asked,
}

/// What a client asks for.
pub struct Asked {
    /// The scope: of the request, else all the client has at the resources.
    pub scope: Scope,
    /// The resources: of the request, else the client's default.
    pub resources: Vec<ResourceUri>,
    /// The S256 transformation of the client's verifier (RFC 7636 §4.3).
    pub code_challenge: Option<String>,
    /// What the ID Token is to repeat.
    pub nonce: Option<String>,
    /// What the user is to be asked in any case.
    pub prompts: Vec<Prompt>,
    /// How long ago the user may have authenticated.
    pub max_age: Option<Duration>,
    /// Whom the client expects.
    pub login_hint: Option<String>,
    /// An ID Token of whom the client expects.
    pub id_token_hint: Option<String>,
}

impl fmt::Debug for AuthorizationRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationRequest")
            .field("client", &self.client.client_id)
            .field("return_address", &self.return_address.redirect_uri)
            .finish_non_exhaustive()
    }
}

impl AuthorizationRequest {
    /// Reads a request.
    ///
    /// # Security
    /// Whoever sends a browser here chooses all of `form`. As long as client and redirect URI are not
    /// known to belong together, the answer goes nowhere but to the user's screen.
    pub fn read(form: &Form, registry: &Registry) -> Result<Self, Rejection> {
        let client = client(form, registry).map_err(Rejection::Shown)?;
        let (redirect_uri, names_redirect_uri) =
            redirect_uri(form, &client).map_err(Rejection::Shown)?;
        let mut return_address = ReturnAddress {
            redirect_uri,
            mode: ResponseMode::Query,
            state: None,
        };
        // How the client wants its answer comes first, so that errors go there in the same way.
        let asked = answer_of(form, &mut return_address)
            .and_then(|()| Asked::read(form, registry, &client));
        match asked {
            Ok(asked) => Ok(Self {
                client,
                return_address,
                names_redirect_uri,
                asked,
            }),
            Err(error) => Err(Rejection::Returned(return_address, error)),
        }
    }
}

impl Asked {
    fn read(form: &Form, registry: &Registry, client: &Client) -> Result<Self, OAuthError> {
        not_supported(form)?;
        match form.one("response_type")? {
            Some("code") => {}
            Some(_) => {
                return Err(OAuthError::new(
                    ErrorCode::UnsupportedResponseType,
                    "response_type",
                    "the response_type must be code",
                ));
            }
            None => return Err(OAuthError::malformed("response_type is missing")),
        }
        if !client.grant_types.contains(&GrantType::AuthorizationCode) {
            return Err(OAuthError::new(
                ErrorCode::UnauthorizedClient,
                "grant_type",
                "the client may not use the authorization code grant",
            ));
        }
        let Target { resources, scope } =
            Target::of_request(client, registry, form.many("resource"), form.one("scope")?)?;
        if resources.iter().any(|uri| registry.is_admin(uri)) {
            return Err(OAuthError::new(
                ErrorCode::InvalidTarget,
                "admin_resource",
                "no user signs in to the admin interface",
            ));
        }
        let nonce = text(form, "nonce", LONGEST_NONCE)?;
        let code_challenge = code_challenge(form)?;
        if code_challenge.is_none() {
            check_without_pkce(client, &scope, nonce.as_deref())?;
        }
        Ok(Self {
            scope,
            resources,
            code_challenge,
            nonce,
            prompts: prompts(form)?,
            max_age: max_age(form)?,
            login_hint: text(form, "login_hint", LONGEST_HINT)?,
            id_token_hint: form.one("id_token_hint")?.map(str::to_owned),
        })
    }

    /// Whether the user is to be asked this.
    pub fn asks_for(&self, prompt: Prompt) -> bool {
        self.prompts.contains(&prompt)
    }

    /// Whether this is a request of `OpenID` Connect.
    pub fn is_openid(&self) -> bool {
        self.scope.contains(OPENID)
    }

    /// Whether a user who authenticated at `auth_time` need not do so again. Whoever has done so since
    /// the request came (`begun_at`) has done what it asked for.
    fn accepts(&self, auth_time: Timestamp, begun_at: Timestamp, now: Timestamp) -> bool {
        let asks_anew = self.asks_for(Prompt::Login) || self.asks_for(Prompt::SelectAccount);
        let is_recent = self
            .max_age
            .is_none_or(|max_age| now.since(auth_time) <= max_age);
        begun_at <= auth_time || !asks_anew && is_recent
    }
}

/// What is left to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The user has to sign in.
    SignIn,
    /// The user has to say whether the client may have what it asks for.
    Consent,
    /// The client gets its code.
    Issue,
}

/// What is known of a user when a request is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The session of the browser, which lives.
    pub session: Option<&'a BrowserSession>,
    /// What its user has allowed the client.
    pub consent: Option<&'a Consent>,
    /// Whether the user has just been asked for consent, in this request, and gave it.
    pub has_consented: bool,
    /// Whom the client expects, of a hint that was verified.
    pub expected: Option<UserId>,
}

impl AuthorizationRequest {
    /// What is left to do, for a request that came at `begun_at`.
    ///
    /// # Errors
    /// `login_required` or `consent_required` for a client that wants nobody asked.
    pub fn next(
        &self,
        known: Known<'_>,
        begun_at: Timestamp,
        now: Timestamp,
    ) -> Result<Step, OAuthError> {
        let is_silent = self.asked.asks_for(Prompt::None);
        let session = known.session.filter(|session| {
            let is_expected = known.expected.is_none_or(|it| it == session.subject);
            is_expected && self.asked.accepts(session.auth_time, begun_at, now)
        });
        let Some(session) = session else {
            return if is_silent {
                Err(OAuthError::new(
                    ErrorCode::LoginRequired,
                    "login_required",
                    "the user has to sign in",
                ))
            } else {
                Ok(Step::SignIn)
            };
        };
        let is_allowed = known.consent.is_some_and(|consent| {
            consent.subject == session.subject
                && consent.covers(&self.asked.scope, &self.asked.resources)
        });
        let asks_anew = self.asked.asks_for(Prompt::Consent) && !known.has_consented;
        // Apps of the same house need no leave.
        let is_needed = !self.client.first_party && !is_allowed || asks_anew;
        match (is_needed, is_silent) {
            (false, _) => Ok(Step::Issue),
            (true, false) => Ok(Step::Consent),
            (true, true) => Err(OAuthError::new(
                ErrorCode::ConsentRequired,
                "consent_required",
                "the user has to allow the client what it asks for",
            )),
        }
    }
}

fn client(form: &Form, registry: &Registry) -> Result<Arc<Client>, OAuthError> {
    let id = form
        .one("client_id")?
        .ok_or_else(|| OAuthError::malformed("client_id is missing"))?;
    let client = ClientId::parse(id).ok();
    let client = client.and_then(|id| registry.client(&id).cloned());
    client
        .filter(|client| !client.disabled)
        .ok_or(OAuthError::new(
            ErrorCode::InvalidRequest,
            "unknown_client",
            "the client_id is none of this service, or its client is disabled",
        ))
}

/// Where the answer goes, and whether the request says so.
fn redirect_uri(form: &Form, client: &Client) -> Result<(String, bool), OAuthError> {
    let Some(presented) = form.one("redirect_uri")? else {
        // "if only one has been registered" (RFC 6749 §3.1.2.3); OpenID Connect Core §3.1.2.1
        // requires it in any case.
        let asks_openid = form.one("scope").ok().flatten();
        let asks_openid = asks_openid.is_some_and(|scope| scope.split(' ').any(|it| it == OPENID));
        return match client.redirect_uris.as_slice() {
            [only] if !asks_openid => Ok((only.as_str().to_owned(), false)),
            _ => Err(OAuthError::new(
                ErrorCode::InvalidRequest,
                "redirect_uri",
                "redirect_uri is missing",
            )),
        };
    };
    if client.redirect_uris.iter().any(|uri| uri.admits(presented)) {
        Ok((presented.to_owned(), true))
    } else {
        Err(OAuthError::new(
            ErrorCode::InvalidRequest,
            "redirect_uri",
            "the redirect_uri is not registered for this client",
        ))
    }
}

/// How the client wants its answer.
fn answer_of(form: &Form, address: &mut ReturnAddress) -> Result<(), OAuthError> {
    address.state = text(form, "state", LONGEST_STATE)?;
    if let Some(mode) = form.one("response_mode")? {
        address.mode = mode.parse().map_err(|_| {
            OAuthError::new(
                ErrorCode::InvalidRequest,
                "response_mode",
                "the response_mode must be query or form_post",
            )
        })?;
    }
    Ok(())
}

/// Refuses what would change the meaning of the request if it were passed over (RFC 9101 §4,
/// `OpenID` Connect Core §3.1.2.6).
fn not_supported(form: &Form) -> Result<(), OAuthError> {
    for (name, code, description) in [
        (
            "request",
            ErrorCode::RequestNotSupported,
            "request objects are not supported",
        ),
        (
            "request_uri",
            ErrorCode::RequestUriNotSupported,
            "request_uri is not supported",
        ),
    ] {
        if form.one(name)?.is_some() {
            return Err(OAuthError::new(code, name, description));
        }
    }
    Ok(())
}

/// The challenge: S256, as `plain` protects nobody who can read the request (RFC 7636 §4.2).
fn code_challenge(form: &Form) -> Result<Option<String>, OAuthError> {
    let method = form.one("code_challenge_method")?;
    let Some(challenge) = form.one("code_challenge")? else {
        return match method {
            None => Ok(None),
            Some(_) => Err(OAuthError::malformed("code_challenge is missing")),
        };
    };
    // RFC 7636 §4.3: "Defaults to "plain" if not present in the request."
    if method != Some("S256") {
        return Err(OAuthError::malformed("code_challenge_method must be S256"));
    }
    if !is_s256(challenge) {
        return Err(OAuthError::malformed(
            "code_challenge is not the S256 transformation of anything",
        ));
    }
    Ok(Some(challenge.to_owned()))
}

/// RFC 9700 §2.1.1: a confidential client of `OpenID` Connect may rely on its `nonce` instead.
fn check_without_pkce(
    client: &Client,
    scope: &Scope,
    nonce: Option<&str>,
) -> Result<(), OAuthError> {
    if client.require_pkce || client.is_public() {
        return Err(OAuthError::malformed("code_challenge is missing"));
    }
    if !scope.contains(OPENID) || nonce.is_none() {
        return Err(OAuthError::malformed(
            "without a code_challenge, the scope openid and a nonce are needed",
        ));
    }
    Ok(())
}

fn prompts(form: &Form) -> Result<Vec<Prompt>, OAuthError> {
    let text = form.one("prompt")?.unwrap_or_default();
    // What is not known asks for nothing.
    let prompts: Vec<Prompt> = text
        .split(' ')
        .filter_map(|name| name.parse().ok())
        .collect();
    if prompts.contains(&Prompt::None) && text.split(' ').count() > 1 {
        return Err(OAuthError::malformed(
            "prompt=none stands for itself or not at all",
        ));
    }
    Ok(prompts)
}

fn max_age(form: &Form) -> Result<Option<Duration>, OAuthError> {
    let Some(seconds) = form.one("max_age")? else {
        return Ok(None);
    };
    let is_number = seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds.parse::<u64>().ok().filter(|_| is_number);
    seconds
        .map(|seconds| Some(Duration::from_secs(seconds)))
        .ok_or_else(|| OAuthError::malformed("max_age is not a number of seconds"))
}

/// A parameter that may be of any characters, but no longer than this.
fn text(form: &Form, name: &'static str, longest: usize) -> Result<Option<String>, OAuthError> {
    let text = form.one(name)?;
    if text.is_some_and(|text| text.len() > longest) {
        return Err(OAuthError::new(
            ErrorCode::InvalidRequest,
            "too_long",
            "state, nonce or login_hint is too long",
        ));
    }
    Ok(text.map(str::to_owned))
}
